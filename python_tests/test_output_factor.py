"""output_factor against its definition, and both factors against curvlinops."""

import pytest
import torch
from torch import nn

from spectral_ext import reference
from spectral_ext.ops import geometry_of, input_factor, output_factor


@pytest.mark.parametrize(
    "shape, convolution",
    [
        ((5, 7), False),
        ((5, 3, 7), False),
        ((5, 2, 3, 40), False),
        ((4, 7, 5), True),
        ((4, 33, 5, 6), True),
        ((4, 3, 2, 3, 4), True),
    ],
)
def test_definition(shape, convolution):
    delta = torch.randn(shape, dtype=torch.float64)
    expected = reference.output_factor(delta, convolution=convolution)
    found = output_factor(delta, convolution=convolution)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert torch.equal(found, found.mT)
    summed = reference.errors(delta, convolution=convolution).sum(1)
    reduced = summed.mT @ summed / len(delta)
    for arguments in (dict(reduction="reduce"), dict(scale="backpack")):
        torch.testing.assert_close(
            output_factor(delta, convolution=convolution, **arguments), reduced, rtol=0, atol=1e-11
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_types_and_layouts(dtype):
    delta = torch.randn(6, 20, 8, 8).to(dtype).contiguous(memory_format=torch.channels_last)
    expected = reference.output_factor(delta.double(), convolution=True)
    found = output_factor(delta, convolution=True)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 1e-6 * expected.abs().max()


def test_groups_out_and_average():
    delta = torch.randn(6, 8, 5, dtype=torch.float64)
    found = output_factor(delta, convolution=True, groups=4)
    for g in range(4):
        expected = reference.output_factor(delta[:, 2 * g : 2 * g + 2], convolution=True)
        torch.testing.assert_close(found[g], expected, rtol=0, atol=1e-13)
    out = torch.ones_like(found)
    assert output_factor(delta, convolution=True, groups=4, out=out, beta=0.5, alpha=2.0) is out
    torch.testing.assert_close(out, 0.5 + 2 * found, rtol=0, atol=1e-13)


def test_empty():
    assert torch.equal(output_factor(torch.randn(0, 3)), torch.zeros(3, 3))
    assert torch.equal(output_factor(torch.randn(0, 3, 4), convolution=True), torch.zeros(3, 3))
    assert torch.equal(output_factor(torch.randn(2, 3, 0), convolution=True), torch.zeros(3, 3))
    out = torch.ones(3, 3)
    assert torch.equal(
        output_factor(torch.randn(2, 3, 0), convolution=True, out=out, beta=0.5), torch.full((3, 3), 0.5)
    )


@pytest.mark.parametrize(
    "delta, arguments, words",
    [
        (torch.ones(2, 3, 4, dtype=torch.int64), {}, "float32"),
        (torch.ones(2, 3), dict(convolution=True), r"\(B, m, \*spatial\)"),
        (torch.ones(2, 3, 4), dict(convolution=True, groups=2), "does not divide"),
        (torch.ones(2, 3), dict(groups=3), "groups 1"),
        (torch.ones(2, 3), dict(scale="mine"), "scale"),
        (torch.full((2, 3), float("inf")), dict(finite=True), "delta has 6 of 6"),
    ],
)
def test_bad_input(delta, arguments, words):
    with pytest.raises((ValueError, TypeError), match=words):
        output_factor(delta, **arguments)


LAYERS = [
    nn.Conv2d(3, 4, 3, padding=1),
    nn.Conv2d(3, 4, (3, 2), stride=(1, 2), padding=(0, 1), bias=False),
    nn.Conv2d(3, 4, 5, stride=2, padding=2),
    nn.Conv2d(3, 4, 1),
]


@pytest.mark.parametrize("approximation", ["expand", "reduce"])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_curvlinops(layer, approximation):
    """Outside oracle for the definitions and the scale that is named after it."""
    curvlinops = pytest.importorskip("curvlinops")
    model = nn.Sequential(layer, nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5)).double()
    x, y = torch.randn(6, 3, 8, 9, dtype=torch.float64), torch.randint(5, (6,))
    parameters = list(layer.parameters())
    operator = curvlinops.KFACLinearOperator(
        model,
        nn.CrossEntropyLoss(),
        parameters,
        [(x, y)],
        fisher_type="empirical",
        kfac_approx=approximation,
        separate_weight_and_bias=False,
        check_deterministic=False,
    )
    operator.compute_kronecker_factors()
    held = []
    handle = layer.register_forward_hook(lambda module, inputs, output: held.append(output))
    loss = nn.functional.cross_entropy(model(x), y)
    handle.remove()
    delta = torch.autograd.grad(loss, held[0])[0] * len(x)
    name = next(iter(operator._input_covariances))
    found = input_factor(x, reduction=approximation, **geometry_of(layer))
    torch.testing.assert_close(found, operator._input_covariances[name], rtol=0, atol=1e-10)
    found = output_factor(delta, convolution=True, reduction=approximation)
    torch.testing.assert_close(found, operator._gradient_covariances[name], rtol=0, atol=1e-10)
