"""What input_factor refuses, how it writes into out=, and how torch sees the ops."""

import pytest
import torch

from spectral_ext import reference
from spectral_ext.ops import Geometry, expand_lag_sums, input_factor, lag_state_size, lag_sums_
from spectral_ext.ops.geometry import prepare
from spectral_ext.ops.scales import input_scale, output_scale

ops = torch.ops.spectral_ext


@pytest.mark.parametrize(
    "shape, arguments, words",
    [
        ((2, 3, 2, 2), dict(kernel_size=3), "no output position"),
        ((2, 3, 0, 2), dict(kernel_size=1), "no output position"),
        ((2, 3, 5, 5), dict(kernel_size=3, groups=2), "groups=2 does not divide the 3 channels"),
        ((2, 3, 5, 5), dict(kernel_size=(3, 3, 3)), "2 numbers are needed"),
        ((2, 3, 5, 5), dict(kernel_size=0), "at least 1"),
        ((2, 3, 5, 5), dict(kernel_size=3, stride=0), "at least 1"),
        ((2, 3, 5, 5), dict(kernel_size=3, padding=-1), "at least 0"),
        ((2, 3, 5, 5), dict(kernel_size=3, padding="same", stride=2), "stride 1"),
        ((2, 3, 5, 5), dict(kernel_size=3, padding="full"), "'same' or 'valid'"),
        ((2, 3, 5, 5), dict(kernel_size=3, padding_mode="mirror"), "padding_mode"),
        ((2, 3, 5, 5), dict(kernel_size=3, output_padding=1), "transposed"),
        ((2, 3, 5, 5), dict(kernel_size=3, transposed=True, padding_mode="reflect"), "zeros"),
        ((2, 3), dict(kernel_size=3), "three spatial"),
        ((2, 3), dict(groups=2), "kernel_size"),
        ((2, 3), dict(order="nhwc"), "order"),
        ((2, 3), dict(scale="mine"), "scale"),
        ((2, 3), dict(scale="nngeometry"), "num_classes"),
        ((2, 3), dict(reduction="mean"), "reduction"),
    ],
)
def test_bad_arguments(shape, arguments, words):
    with pytest.raises(ValueError, match=words):
        input_factor(torch.randn(shape), **arguments)


@pytest.mark.parametrize("x", [torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 3, dtype=torch.complex64), [1.0]])
def test_bad_types(x):
    with pytest.raises(TypeError, match="x must be"):
        input_factor(x)


def test_non_finite_input_is_named_on_request():
    x = torch.randn(3, 2, 5, 5)
    x[1, 0, 2, 3] = float("nan")
    x[2, 1, 0, 0] = float("inf")
    with pytest.raises(ValueError, match=r"x has 2 of 150 numbers that are not finite, the first at \(1, 0, 2, 3\)"):
        input_factor(x, kernel_size=3, finite=True)
    assert input_factor(x, kernel_size=3).isnan().any()


@pytest.mark.parametrize("groups", [1, 2])
def test_out_is_updated_in_place(groups):
    x = torch.randn(5, 4, 7, 7, dtype=torch.float64)
    geometry = dict(kernel_size=3, padding=1, groups=groups, bias=True)
    factor = input_factor(x, **geometry)
    out = torch.full_like(factor, float("nan"))
    assert input_factor(x, out=out, **geometry) is out
    assert torch.equal(out, factor)
    old = torch.randn_like(factor)
    out = old.clone()
    input_factor(x, out=out, beta=0.9, alpha=0.1, **geometry)
    torch.testing.assert_close(out, 0.9 * old + 0.1 * factor, rtol=0, atol=1e-13)


def test_bad_out():
    x = torch.randn(40, 6)
    buffer = torch.randn(1000)
    for out, kind, words in (
        (torch.zeros(5, 6), ValueError, "shape"),
        (torch.zeros(6, 6, dtype=torch.float64), TypeError, "float64"),
        (torch.zeros(6, 12)[:, ::2], ValueError, "contiguous"),
        (torch.zeros(6, 6, requires_grad=True), ValueError, "gradient"),
    ):
        with pytest.raises(kind, match=words):
            input_factor(x, out=out)
    with pytest.raises(ValueError, match="overlaps"):
        input_factor(buffer[:600].view(100, 6), out=buffer[590:626].view(6, 6))
    apart = buffer[600:636].view(6, 6)
    assert torch.equal(input_factor(buffer[:600].view(100, 6), out=apart), input_factor(buffer[:600].view(100, 6)))


def test_no_gradient_is_recorded():
    x = torch.randn(5, 3, requires_grad=True)
    assert not input_factor(x).requires_grad
    assert not input_factor(x, reduction="reduce").requires_grad
    assert torch.equal(input_factor(x, out=torch.empty(3, 3)), input_factor(x.detach()))


GEOMETRY = Geometry((3, 2), (1, 2), (1, 0), (1, 2), 2, True, False, (0, 0))


def samples():
    x = torch.randn(3, 4, 6, 7)
    size = lag_state_size((4, 6, 7), GEOMETRY)
    n = GEOMETRY.side(4)
    return {
        "input_factor": (x, *GEOMETRY.arguments, False, 0.5),
        "input_factor_": (torch.randn(2, n, n), x, *GEOMETRY.arguments, True, 0.25, 0.5),
        "lag_sums_": (torch.randn(size), x, *GEOMETRY.arguments, 0.25, 0.5),
        "expand_lag_sums": (torch.randn(size), [4, 6, 7], *GEOMETRY.arguments, False),
    }


@pytest.mark.parametrize("name", ["input_factor", "input_factor_", "lag_sums_", "expand_lag_sums"])
def test_opcheck(name):
    torch.library.opcheck(getattr(ops, name), samples()[name])


def test_compiles_as_one_graph():
    @torch.compile(fullgraph=True, backend="aot_eager")
    def both(x, out):
        input_factor(x, kernel_size=3, padding="same", bias=True, out=out, beta=0.5, alpha=0.5)
        return input_factor(x, kernel_size=3, reduction="reduce") + 1

    x, out = torch.randn(2, 3, 6, 6), torch.ones(28, 28)
    expected = 0.5 + 0.5 * input_factor(x, kernel_size=3, padding=1, bias=True)
    torch.testing.assert_close(both(x, out), input_factor(x, kernel_size=3, reduction="reduce") + 1)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("order", ["unfold", "channels_last"])
@pytest.mark.parametrize(
    "shape, arguments",
    [
        ((6, 20, 9, 8), dict(kernel_size=3, padding=1, bias=True)),
        ((6, 20, 9, 8), dict(kernel_size=3, stride=2, groups=2)),
        ((6, 4, 9, 8), dict(kernel_size=3, groups=4, bias=True)),
        ((6, 3, 5, 4), dict(kernel_size=4, stride=2, padding=1, transposed=True, bias=True)),
        ((6, 3, 30), dict(kernel_size=7, dilation=2)),
        ((6, 3, 4, 5, 6), dict(kernel_size=2, padding=1)),
    ],
)
def test_lag_sums_are_linear_and_expand(shape, arguments, order):
    x = torch.randn(shape, dtype=torch.float64)
    _, geometry = prepare(x, **arguments)
    state = torch.full((lag_state_size(shape[1:], geometry),), float("nan"), dtype=torch.float64)
    lag_sums_(state, x[:4], geometry, beta=0.0)
    lag_sums_(state, x[4:], geometry)
    found = expand_lag_sums(state, shape[1:], geometry, order=order)
    expected = input_factor(x, scale="sum", order=order, **arguments)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12 * expected.abs().max().item())
    lag_sums_(state, x, geometry, beta=0.5, scale=0.25)
    found = expand_lag_sums(state, shape[1:], geometry, order=order)
    torch.testing.assert_close(found, 0.75 * expected, rtol=0, atol=1e-12 * expected.abs().max().item())


def test_lag_state_is_smaller_where_the_note_counts():
    for k, regions in ((3, 29), (5, 157), (7, 505)):
        _, geometry = prepare(torch.empty(1, 64, 16, 16), kernel_size=k, padding="same")
        assert lag_state_size((64, 16, 16), geometry) == regions * 64 * 64


def test_bad_state():
    x = torch.randn(2, 3, 6, 6)
    _, geometry = prepare(x, kernel_size=3, padding=1)
    with pytest.raises(ValueError, match="this geometry needs"):
        lag_sums_(torch.zeros(7), x, geometry)
    with pytest.raises(TypeError, match="float64"):
        lag_sums_(torch.zeros(lag_state_size((3, 6, 6), geometry), dtype=torch.float64), x, geometry)


def test_scales_by_hand():
    """B = 4, S = 9, C = 5 classes."""
    inputs = dict(zip(("curvlinops", "paper", "backpack", "kfac-jax", "sum"), (1 / 36, 1 / 36, 1 / 4, 1 / 36, 1)))
    outputs = dict(zip(("curvlinops", "paper", "backpack", "kfac-jax", "sum"), (1 / 4, 1 / 4, 1 / 4, 1 / 36, 1)))
    inputs |= {"nngeometry": 2 / 4, "kfac-pytorch": 1 / (4 * 9**3)}
    outputs |= {"nngeometry": 1 / (4 * 9 * 2), "kfac-pytorch": 1 / (4**3 * 9**3)}
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    total = reference.input_factor(x, kernel_size=3) * 36
    for name in inputs:
        assert input_scale(name, 4, 9, 5) == pytest.approx(inputs[name], rel=1e-15)
        assert output_scale(name, 4, 9, 5) == pytest.approx(outputs[name], rel=1e-15)
        found = input_factor(x, kernel_size=3, scale=name, num_classes=5)
        torch.testing.assert_close(found, inputs[name] * total, rtol=1e-12, atol=1e-14)
