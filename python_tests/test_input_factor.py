"""input_factor against its definition, over the whole range of geometries, layouts and number types."""

import itertools

import dense_reference
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from spectral_ext import reference
from spectral_ext._extension import compiled
from spectral_ext.ops import geometry_of, input_factor
from spectral_ext.ops.geometry import prepare

# float64 sums of up to ~1e5 products of O(1): the bound of the design, far above c·eps·sqrt(rows).
TOLERANCE = 1e-12


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return ((found.double() - expected.double()).abs().max() / expected.double().abs().max().clamp_min(1e-300)).item()


def to_channels_last(factor: torch.Tensor, channels: int, taps: int, bias: bool) -> torch.Tensor:
    index = torch.arange(channels * taps).view(channels, taps).mT.flatten()
    if bias:
        index = torch.cat([index, torch.tensor([channels * taps])])
    return factor[..., index, :][..., index]


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5, 7, (3, 5), (4, 1)])
def test_grid_2d(kernel, stride):
    checked = 0
    for p, d, C, bias in itertools.product((0, 1, 2, 3), (1, 2, 3), (3, 20), (False, True)):
        x = torch.randn(2, C, 15, 17, dtype=torch.float64)
        geometry = dict(kernel_size=kernel, stride=stride, padding=p, dilation=d, bias=bias)
        extent = [d * (k - 1) + 1 for k in reference.as_tuple(kernel, 2)]
        if extent[0] > 15 + 2 * p or extent[1] > 17 + 2 * p:
            with pytest.raises(ValueError, match="no output position"):
                input_factor(x, **geometry)
            continue
        expected = reference.input_factor(x, **geometry)
        found = input_factor(x, **geometry)
        assert error(found, expected) < TOLERANCE
        assert torch.equal(found, found.mT)
        taps = (found.shape[0] - bias) // C
        swapped = input_factor(x, order="channels_last", **geometry)
        assert error(swapped, to_channels_last(expected, C, taps, bias)) < TOLERANCE
        checked += 1
    assert checked > 20


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("bias", [False, True])
def test_dimensions_and_groups(dims, groups, bias):
    x = torch.randn(3, 6, *(9, 7, 6)[:dims], dtype=torch.float64)
    cases = (
        dict(kernel_size=3, padding=1),
        dict(kernel_size=(2, 3, 2)[:dims], stride=(1, 2, 3)[:dims], padding=(1, 0, 2)[:dims]),
        dict(kernel_size=2, dilation=2, stride=2, padding=1),
        dict(kernel_size=1),
    )
    for case in cases:
        expected = reference.input_factor(x, groups=groups, bias=bias, **case)
        assert error(input_factor(x, groups=groups, bias=bias, **case), expected) < TOLERANCE


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(7, 5), (3, 4, 17), (2, 3, 4, 33), (1, 1), (9,), (5, 64), (2, 300)])
def test_linear(shape, bias):
    x = torch.randn(shape, dtype=torch.float64)
    rows = x.reshape(-1, shape[-1])
    expected = reference.input_factor(rows, bias=bias)
    assert error(input_factor(x, bias=bias), expected) < TOLERANCE


MODULES = [
    nn.ConvTranspose1d(4, 6, 4, stride=2, padding=1),
    nn.ConvTranspose1d(4, 6, 5, stride=3, padding=2, output_padding=2, dilation=2, bias=False),
    nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1),
    nn.ConvTranspose2d(4, 6, 2, stride=2, bias=False),
    nn.ConvTranspose2d(4, 6, (3, 4), stride=(1, 3), padding=(0, 2), groups=2),
    nn.ConvTranspose2d(4, 4, 3, stride=2, groups=4),
    nn.ConvTranspose3d(4, 2, (2, 3, 3), stride=(2, 1, 2), padding=(0, 1, 1)),
    nn.Conv1d(4, 6, 5, padding="same", padding_mode="reflect"),
    nn.Conv2d(4, 6, 4, padding="same"),
    nn.Conv2d(4, 6, 3, padding="valid", stride=2),
    nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular", groups=2),
    nn.Conv2d(4, 6, (2, 3), padding=(1, 2), padding_mode="replicate", stride=2),
    nn.Conv3d(4, 6, 3, padding=1, padding_mode="replicate", bias=False),
    nn.Linear(6, 3),
]


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_module_output_is_weight_times_patches(module):
    """Outside oracle, free of unfold: Σ y yᵀ = W̃ (Σ a aᵀ) W̃ᵀ for torch's own layer, any weights."""
    module = module.double()
    dims = module.weight.dim() - 2
    x = torch.randn((5, 6) if dims == 0 else (3, 4, *(7, 6, 5)[:dims]), dtype=torch.float64)
    factor = input_factor(x, scale="sum", **geometry_of(module))
    factor = factor if factor.dim() == 3 else factor[None]
    with torch.no_grad():
        y = module(x)
    groups = len(factor)
    weight = module.weight.detach()
    if getattr(module, "transposed", False):
        weight = weight.unflatten(0, (groups, -1)).transpose(1, 2)
    else:
        weight = weight.unflatten(0, (groups, -1))
    weight = weight.flatten(2)
    if module.bias is not None:
        weight = torch.cat([weight, module.bias.detach().view(groups, -1, 1)], 2)
    rows = y if dims == 0 else y.flatten(2).mT.reshape(-1, y.shape[1])
    rows = rows.unflatten(1, (groups, -1))
    expected = torch.einsum("rgm,rgk->gmk", rows, rows)
    assert error(weight @ factor @ weight.mT, expected) < TOLERANCE


def layouts(x):
    wide = torch.zeros(x.shape[0] + 1, 2 * x.shape[1], *x.shape[2:-1], x.shape[-1] + 3, dtype=x.dtype)
    wide[1:, ::2, ..., 2:-1] = x
    return {
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "transposed": x.mT.contiguous().mT,
        "strided view": wide[1:, ::2, ..., 2:-1],
        "expanded": x[:1].expand_as(x),
    }


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "strided view", "expanded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", [dict(kernel_size=3, padding=1), dict(kernel_size=3, stride=2), dict(kernel_size=1)])
def test_layouts_and_types(layout, dtype, case):
    x = layouts(torch.randn(3, 21, 10, 19).to(dtype))[layout]
    before, version = x.clone(), x._version
    found = input_factor(x, bias=True, **case)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert error(found, reference.input_factor(x.double(), bias=True, **case)) < (
        1e-12 if dtype == torch.float64 else 1e-6
    )
    assert torch.equal(x, before) and x._version == version


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_input_is_read_exactly(dtype):
    """Every finite number of the type, subnormals included: the bias column of one row is the row itself."""
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    for row in numbers[torch.isfinite(numbers)].split(256):
        assert torch.equal(input_factor(row[None], bias=True)[-1, :-1], row.float())


@pytest.mark.parametrize(
    "geometry",
    [
        dict(kernel_size=3, padding=1),
        dict(kernel_size=(3, 2), stride=2, dilation=(1, 2)),
        dict(kernel_size=3, stride=2, padding=1, output_padding=1, transposed=True),
    ],
)
def test_reduced_patches_spread_no_nan(geometry):
    """A pixel that is not a number reaches those entries of the mean patches that read it, and no other."""
    x = torch.randn(2, 3, 7, 8, dtype=torch.float64)
    _, full = prepare(x, **geometry)
    exact = dense_reference.mean_patch_factor(dense_reference.patches(x, *full.arguments), bias=False)[0]
    assert error(input_factor(x, reduction="reduce", **geometry), exact) < TOLERANCE
    one = torch.zeros_like(x)
    one[1, 2, 2, 2] = 1.0
    reads = dense_reference.patches(one, *full.arguments).sum((0, 1, 2)) > 0
    x[1, 2, 2, 2] = float("nan")
    found = input_factor(x, reduction="reduce", **geometry)
    assert torch.equal(found.isnan(), reads[:, None] | reads)
    assert 0 < int(reads.sum()) < len(reads)


@pytest.mark.parametrize("level", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(level):
    try:
        compiled.set_cpu_capability(level)
        for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, TOLERANCE)):
            for C, geometry in itertools.product(
                (1, 5, 16, 37, 70), (dict(kernel_size=3, padding=1, bias=True), dict(kernel_size=3, stride=2), {})
            ):
                x = torch.randn(9, C, 9, 12, dtype=dtype) if geometry else torch.randn(123, C, dtype=dtype)
                assert error(input_factor(x, **geometry), reference.input_factor(x.double(), **geometry)) < tolerance
            x = torch.randn(9, 20, 9, 12, dtype=dtype)
            geometry = dict(kernel_size=3, padding=1, bias=True, groups=20)
            assert error(input_factor(x, **geometry), reference.input_factor(x.double(), **geometry)) < tolerance
    finally:
        compiled.set_cpu_capability("avx512")


@pytest.mark.parametrize(
    "shape, case",
    [
        ((128, 16, 32, 32), dict(kernel_size=3, padding=1)),
        ((64, 3, 64, 64), dict(kernel_size=7, stride=2, padding=3)),
        ((64, 64, 8, 8), dict(kernel_size=3, padding=1)),
        ((16384, 64), {}),
    ],
)
def test_float32_stays_near_one_part_in_a_million(shape, case):
    for x in (torch.randn(shape), torch.randn(shape).relu(), 1 + 0.01 * torch.rand(shape)):
        assert error(input_factor(x, **case), input_factor(x.double(), **case)) < 1e-6


@pytest.mark.parametrize(
    "shape, case",
    [
        ((40, 24, 16, 16), dict(kernel_size=3, padding=1, bias=True)),
        ((40, 24, 16, 16), dict(kernel_size=3, stride=2, groups=24)),
        ((9, 40, 12, 12), dict(kernel_size=3, groups=2)),
        ((5000, 50), dict(bias=True)),
    ],
)
def test_result_does_not_depend_on_threads(shape, case):
    x = torch.randn(shape)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            found += [input_factor(x, **case), input_factor(x, **case)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found[1:])


@st.composite
def convolutions(draw):
    dims = draw(st.integers(1, 3))
    ints = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(dims))  # noqa: E731
    kernel, stride, padding, dilation = ints(1, 4), ints(1, 3), ints(0, 3), ints(1, 2)
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    channels = groups * draw(st.sampled_from([1, 2, 5]))
    size = [max(1, d * (k - 1) + 1 - 2 * p) + draw(st.integers(0, 5)) for k, p, d in zip(kernel, padding, dilation)]
    x = torch.randn(draw(st.integers(1, 5)), channels, *size, dtype=torch.float64)
    bias = draw(st.booleans())
    geometry = dict(kernel_size=kernel, stride=stride, padding=padding, dilation=dilation, groups=groups, bias=bias)
    return x, geometry


@settings(deadline=None, max_examples=60)
@given(convolutions(), st.integers(1, 4))
def test_properties(case, cut):
    x, geometry = case
    factor = input_factor(x, scale="sum", **geometry)
    scale = factor.abs().max().clamp_min(1e-300)
    assert torch.equal(factor, factor.mT)
    assert torch.linalg.eigvalsh(factor).min() >= -1e-12 * scale * factor.shape[-1]
    assert error(input_factor(x, **geometry), reference.input_factor(x, **geometry)) < TOLERANCE
    parts = input_factor(x[:cut], scale="sum", **geometry)
    if cut < len(x):
        input_factor(x[cut:], scale="sum", out=parts, beta=1.0, **geometry)
    assert ((parts - factor).abs().max() / scale) < TOLERANCE
    assert ((input_factor(x.flip(0), scale="sum", **geometry) - factor).abs().max() / scale) < TOLERANCE
    without_bias = {**geometry, "bias": False}
    scaled = input_factor(3 * x, scale="sum", **without_bias)
    assert ((scaled - 9 * input_factor(x, scale="sum", **without_bias)).abs().max() / scale) < 9 * TOLERANCE


def test_permuting_channels_permutes_the_factor():
    x, order = torch.randn(4, 10, 8, 8, dtype=torch.float64), torch.randperm(10)
    index = (order[:, None] * 9 + torch.arange(9)).flatten()
    factor = input_factor(x, kernel_size=3, padding=1)
    assert error(input_factor(x[:, order], kernel_size=3, padding=1), factor[index][:, index]) < TOLERANCE


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("order", ["unfold", "channels_last"])
@pytest.mark.parametrize(
    "case", [dict(stride=2, padding=1), dict(dilation=2), dict(padding=1, transposed=True, stride=2)]
)
def test_reduce_takes_the_mean_patch(case, order, groups):
    x = torch.randn(5, 4, 9, 8, dtype=torch.float64)
    geometry = dict(kernel_size=3, groups=groups, bias=True, **case)
    found = input_factor(x, reduction="reduce", order=order, **geometry)
    samples = [input_factor(one[None], order=order, **geometry) for one in x]  # row n: the mean patch of one sample
    rows = torch.stack([sample[..., -1, :] for sample in samples])
    expected = torch.einsum("b...i,b...j->...ij", rows, rows) / len(x)
    assert error(found, expected) < TOLERANCE


def test_reduce_of_a_linear_layer():
    x = torch.randn(5, 7, 3, 6, dtype=torch.float64)
    rows = torch.cat([x.mean((1, 2)), torch.ones(5, 1, dtype=torch.float64)], 1)
    assert error(input_factor(x, bias=True, reduction="reduce"), rows.mT @ rows / 5) < TOLERANCE


@pytest.mark.parametrize("shape", [(0, 4, 6, 6), (2, 0, 6, 6), (1, 1, 1, 1)])
def test_empty_and_single(shape):
    x = torch.randn(shape, dtype=torch.float64)
    found = input_factor(x, kernel_size=1, bias=True)
    assert torch.equal(found, reference.input_factor(x, kernel_size=1, bias=True))


def test_empty_linear():
    assert torch.equal(input_factor(torch.randn(0, 3)), torch.zeros(3, 3))
    assert torch.equal(input_factor(torch.randn(4, 0, 3)), torch.zeros(3, 3))
    assert input_factor(torch.randn(4, 0)).shape == (0, 0)


def test_unfold_order_is_unfold():
    x = torch.randn(4, 3, 9, 9, dtype=torch.float64)
    rows = F.unfold(x, 3, padding=1).mT.flatten(0, 1)
    assert error(input_factor(x, kernel_size=3, padding=1, scale="sum"), rows.mT @ rows) < TOLERANCE
