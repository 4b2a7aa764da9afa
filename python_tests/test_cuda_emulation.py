"""The CUDA kernels and bindings, executed on the CPU by python_tests/cuda_emulator: every index, bound and barrier.

One file for all ops, and longer than others, because they share one build and one test of the order of blocks.
"""

import subprocess
from pathlib import Path

import cuda_emulator
import pytest
import torch

from spectral_ext import reference
from spectral_ext.ops import (
    Geometry,
    expand_lag_sums,
    geometry_of,
    input_factor,
    lag_state_size,
    lag_sums_,
    output_factor,
)
from spectral_ext.ops.rayleigh_quotients import rayleigh_quotients
from spectral_ext.ops.spectral_newton import spectral_newton

TOOLS = Path(__file__).resolve().parents[1] / "tools"

ORDERS = ["forward", "reverse", "5"]
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 1e-6, torch.float16: 1e-6}


@pytest.fixture(scope="module")
def ops():
    return cuda_emulator.load()


@pytest.fixture
def emulated(ops, monkeypatch):
    """The public functions call the emulated CUDA ops instead of the CPU ones."""
    monkeypatch.setattr(torch.ops, "spectral_ext", ops)


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want).abs().max() / want.abs().max().clamp_min(1e-300))


def channels_last_order(C: torch.Tensor, channels: int, taps: int, bias: bool) -> torch.Tensor:
    index = torch.arange(channels * taps).view(channels, taps).t().flatten()
    if bias:
        index = torch.cat([index, torch.tensor([channels * taps])])
    return C[..., index, :][..., index]


# (shape, geometry): the lag kernel takes 16 channels a group and more, the direct kernel fewer.
CONVOLUTIONS = [
    ((3, 3, 6, 5), dict(kernel_size=3, padding=1, bias=True)),
    ((2, 16, 6, 7), dict(kernel_size=(3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2))),
    ((3, 20, 6, 5), dict(kernel_size=3, padding=1, bias=True)),
    ((2, 70, 4, 4), dict(kernel_size=3, padding=1)),
    ((40, 72, 3, 3), dict(kernel_size=3, padding=1, bias=True)),
    ((2, 32, 7, 7), dict(kernel_size=3, padding=2, dilation=2, groups=2, bias=True)),
    ((2, 8, 7, 7), dict(kernel_size=3, padding=1, groups=8)),
    ((2, 16, 9), dict(kernel_size=5, padding=2, bias=True)),
    ((1, 17, 4, 5, 3), dict(kernel_size=3, padding=1, bias=True)),
    ((2, 16, 8, 8), dict(kernel_size=2, stride=2)),
    ((3, 33, 5, 5), dict(kernel_size=1, stride=2)),
    ((300, 16, 2, 2), dict(kernel_size=3, padding=1)),
    ((2, 3, 15, 14), dict(kernel_size=7, stride=2, padding=3)),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize(("shape", "geometry"), CONVOLUTIONS, ids=lambda v: str(v))
def test_input_factor_of_convolutions(emulated, shape, geometry, memory_format, dtype):
    x = torch.randn(shape, dtype=torch.float64).to(dtype)
    if memory_format == "channels_last":
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    elif memory_format == "strided":
        x = torch.randn(*shape[:-1], 2 * shape[-1], dtype=torch.float64).to(dtype)[..., ::2]
    want = reference.input_factor(x.double(), **geometry)
    got = input_factor(x, **geometry)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert error(got, want) < TOLERANCE[dtype]
    assert torch.equal(got, got.mT)
    if memory_format == "contiguous" and dtype == torch.float32:
        kernel = geometry["kernel_size"]
        taps = torch.Size(reference.as_tuple(kernel, x.dim() - 2)).numel()
        channels = shape[1] // geometry.get("groups", 1)
        reordered = channels_last_order(want, channels, taps, geometry.get("bias", False))
        assert error(input_factor(x, order="channels_last", **geometry), reordered) < TOLERANCE[dtype]


@pytest.mark.parametrize(
    "layer",
    [
        torch.nn.ConvTranspose2d(18, 5, 3, stride=2, padding=1, output_padding=1),
        torch.nn.ConvTranspose2d(4, 5, (3, 2), stride=(1, 2), dilation=(2, 1)),
    ],
    ids=str,
)
def test_input_factor_of_transposed_convolutions_agrees_with_the_cpu(ops, monkeypatch, layer):
    x = torch.randn(2, layer.in_channels, 4, 5, dtype=torch.float64)
    arguments = geometry_of(layer)
    want = input_factor(x, **arguments)
    monkeypatch.setattr(torch.ops, "spectral_ext", ops)
    assert error(input_factor(x, **arguments), want) < 1e-13


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("rows", "n"), [(1, 1), (5, 7), (40, 20), (300, 70), (33, 129), (150, 250), (100, 128)])
@pytest.mark.parametrize("bias", [False, True])
def test_input_factor_of_linear_layers(emulated, rows, n, bias, dtype):
    x = torch.randn(rows, 1, n).to(dtype)
    assert error(input_factor(x, bias=bias), reference.input_factor(x.double(), bias=bias)) < 1e-6


def test_long_sums_keep_their_accuracy(emulated):
    """All-positive input: what a plain fp32 sum loses most on."""
    x = torch.rand(30000, 16)
    assert error(input_factor(x), reference.input_factor(x.double().unsqueeze(1))) < 1e-6


@pytest.mark.parametrize("channels", [3, 20])
def test_accumulation_into_a_buffer(emulated, channels):
    x, y = torch.randn(2, channels, 5, 4), torch.randn(3, channels, 5, 4)
    geometry = dict(kernel_size=3, padding=1, bias=True)
    out = input_factor(x, **geometry)
    want = 0.9 * reference.input_factor(x.double(), **geometry) + 0.1 * reference.input_factor(y.double(), **geometry)
    input_factor(y, **geometry, out=out, beta=0.9, alpha=0.1)
    assert error(out, want) < 1e-6
    poisoned = torch.full_like(out, torch.nan)
    input_factor(x, **geometry, out=poisoned)
    assert poisoned.isfinite().all()


def test_empty_batch_gives_zero_and_keeps_the_average(emulated):
    for channels in (3, 20):
        x = torch.randn(0, channels, 5, 4)
        assert not input_factor(x, kernel_size=3).any()
        out = torch.ones(9 * channels, 9 * channels)
        input_factor(x, kernel_size=3, out=out, beta=0.5)
        assert (out == 0.5).all()


@pytest.mark.parametrize("channels", [5, 20])
def test_lag_sums_are_the_state_of_the_cpu(ops, monkeypatch, channels):
    x = torch.randn(2, channels, 6, 5, dtype=torch.float64)
    geometry = Geometry((3, 3), (1, 1), (1, 1), (1, 1), bias=True, output_padding=(0, 0))
    state = torch.zeros(lag_state_size(x.shape[1:], geometry), dtype=torch.float64)
    lag_sums_(state, x, geometry)
    factor = expand_lag_sums(state, x.shape[1:], geometry)
    monkeypatch.setattr(torch.ops, "spectral_ext", ops)
    again = torch.full_like(state, torch.nan)
    lag_sums_(again, x, geometry, beta=0.0)
    assert error(again, state) < 1e-13
    assert error(expand_lag_sums(state, x.shape[1:], geometry), factor) < 1e-13


def test_output_factor(emulated):
    delta = torch.randn(3, 17, 4, 5)
    assert (
        error(output_factor(delta, convolution=True), reference.output_factor(delta.double(), convolution=True)) < 1e-6
    )


# (x, delta, geometry, K). Tiles of 128 rows hold whole samples or a part of one; few tiles: patch entries in slices.
RAYLEIGH = [
    ((7, 5), (7, 4), {}, 5),
    ((3, 6, 9), (3, 6, 4), dict(bias=True), 5),
    ((600, 9), (600, 33), {}, 20),
    ((20, 150), (20, 90), {}, 33),  # slices
    ((2, 300, 40), (2, 300, 8), {}, 30),  # parts of a sample
    ((3, 4, 6, 5), (3, 5, 6, 5), dict(kernel_size=3, padding=1, bias=True), 5),
    ((2, 4, 9, 8), (2, 6, 4, 4), dict(kernel_size=3, stride=2, padding=(0, 1), groups=2), 5),
    ((2, 3, 13, 12), (2, 2, 13, 12), dict(kernel_size=3, padding=2, dilation=2), 70),  # two blocks of directions
    ((40, 3, 7), (40, 2, 5), dict(kernel_size=3), 5),
    ((1, 2, 4, 5, 3), (1, 2, 4, 5, 3), dict(kernel_size=(3, 1, 3), padding=(1, 0, 1)), 5),
    ((2, 3, 1, 1), (2, 2, 1, 1), dict(kernel_size=1), 5),
]


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("shape", "delta_shape", "geometry", "K"), RAYLEIGH, ids=lambda v: str(v))
def test_rayleigh_quotients(emulated, shape, delta_shape, geometry, K, dtype, strided):
    groups = geometry.get("groups", 1)
    x, delta = torch.randn(shape).to(dtype), torch.randn(delta_shape).to(dtype)
    if strided:  # channels last and every other number, or a transposed matrix
        last = torch.stack([x, torch.full_like(x, torch.nan)], -1).movedim(1, -2).contiguous()
        x, delta = last.movedim(-2, 1)[..., 0], delta.movedim(0, -1).contiguous().movedim(-1, 0)
    plain = {key: value for key, value in geometry.items() if key != "groups"}
    n = reference.patches(x.double(), **geometry).shape[-1]
    m = delta.shape[1 if "kernel_size" in geometry else -1] // groups
    U, V = torch.randn(groups, m, K), torch.randn(groups, n, K)
    got = rayleigh_quotients(x, delta, U, V, **geometry)
    for g in range(groups):
        dims = [slice(None)] if "kernel_size" in geometry else []
        part = [
            (t[(*dims, slice(g * t.shape[1] // groups, (g + 1) * t.shape[1] // groups))] if dims else t)
            for t in (x, delta)
        ]
        want = reference.rayleigh_quotients(part[0].double(), part[1].double(), U[g].double(), V[g].double(), **plain)
        for one, two in zip(got, want):
            one = one[g] if groups > 1 else one
            assert torch.allclose(one, two, rtol=1e-12 if dtype == torch.float64 else 1e-5, atol=0)


def test_rayleigh_quotients_of_a_transposed_convolution_and_of_two_dtypes_agree_with_the_cpu(ops, monkeypatch):
    layer = torch.nn.ConvTranspose2d(4, 3, (3, 2), stride=(2, 1), padding=1, output_padding=(1, 0))
    x = torch.randn(2, 4, 5, 6)
    delta = torch.randn_like(layer(x)).bfloat16()
    U, V = torch.randn(3, 5), torch.randn(24, 5)
    want = rayleigh_quotients(x, delta, U, V, **geometry_of(layer) | {"bias": False})
    monkeypatch.setattr(torch.ops, "spectral_ext", ops)
    got = rayleigh_quotients(x, delta, U, V, **geometry_of(layer) | {"bias": False})
    for one, two in zip(got, want):
        assert torch.allclose(one, two, rtol=1e-5, atol=0)


def test_nan_stays_in_the_directions_and_rows_that_it_meets(emulated):
    """One NaN in x makes the input quotients NaN; a NaN in one direction leaves the others alone."""
    x, delta, U, V = torch.randn(300, 20), torch.randn(300, 6), torch.randn(6, 30), torch.randn(20, 30)
    V[3, 7] = torch.nan
    got = rayleigh_quotients(x, delta, U, V)
    assert got.input.isnan().nonzero().tolist() == [[7]]
    assert got.gauss_newton.isnan().nonzero().tolist() == [[7]]
    assert got.output.isfinite().all()
    x[299, 19] = torch.nan
    assert rayleigh_quotients(x, delta, U, V.nan_to_num()).input.isnan().all()


def far_apart(tmp_path, shape, strides, dtype):
    """A tensor whose elements lie more than 2³¹ apart, in a sparse file."""
    last = sum((size - 1) * stride for size, stride in zip(shape, strides))
    path = tmp_path / "sparse"
    with open(path, "wb") as file:
        file.truncate((last + 1) * dtype.itemsize)
    storage = torch.from_file(str(path), shared=True, size=last + 1, dtype=dtype)
    return storage.as_strided(shape, strides).copy_(torch.randn(shape))


def test_more_than_two_to_the_31_elements(emulated, ops, tmp_path):
    far = 2**31 + 24
    x = far_apart(tmp_path, (2, 20, 24), (far, 24, 1), torch.bfloat16)
    near = x.clone()
    delta, U, V = torch.randn(2, 20, 4), torch.randn(4, 3), torch.randn(24, 3)
    for one, two in zip(rayleigh_quotients(x, delta, U, V), rayleigh_quotients(near, delta, U, V)):
        assert torch.equal(one, two)
    image = x.mT.unflatten(-1, (4, 5))  # channels last
    geometry = dict(kernel_size=3, padding=1)
    assert torch.equal(input_factor(image, **geometry), input_factor(image.clone(), **geometry))
    assert torch.equal(input_factor(image[:, :3], **geometry), input_factor(image[:, :3].clone(), **geometry))
    outs = []
    for G in (x, near):
        out, status, one = torch.empty_like(near), torch.zeros(2, dtype=torch.int32), torch.ones(2, 1)
        ops.spectral_newton_poles_(out, status, G, one[:, 0], one, one, 1.0, 0.0)
        outs.append(out)
    assert torch.equal(*outs)


def newton_case(batch, rows, columns, terms, dtype=torch.float32, seed=0):
    random = torch.Generator().manual_seed(seed)
    G = (torch.randn(batch, rows, columns, generator=random) / max(rows, columns) ** 0.5).to(dtype)
    constant, weights = torch.rand(batch, generator=random), torch.rand(batch, terms, generator=random) + 0.5
    poles = torch.rand(batch, terms, generator=random) + 0.05
    wide = G.double() if rows <= columns else G.double().mT
    R, identity = wide @ wide.mT, torch.eye(min(rows, columns), dtype=torch.float64)
    f = constant[:, None, None] * identity
    for j in range(terms):
        f = f + weights[:, j, None, None] * torch.linalg.inv(R + poles[:, j, None, None] * identity)
    want = f @ wide
    return G, constant, weights, poles, want if rows <= columns else want.mT


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("batch", "rows", "columns", "terms"),
    [(2, 1, 1, 1), (2, 5, 9, 3), (1, 64, 300, 1), (2, 40, 10, 2), (1, 128, 65, 1), (1, 100, 150, 2), (1, 160, 170, 1)],
)
def test_spectral_newton_of_small_matrices(ops, batch, rows, columns, terms, dtype):
    G, constant, weights, poles, want = newton_case(batch, rows, columns, terms, dtype)
    out, status = torch.full_like(G, torch.nan), torch.full((batch,), -1, dtype=torch.int32)
    ops.spectral_newton_poles_(out, status, G, constant, weights, poles, 1.0, 0.0)
    assert (status == 0).all()
    assert error(out, want) < (2e-6 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps)


# n > 160: blocked, with products of operands split into two bfloat16 numbers. Two tiles per side, the last one ragged;
# three poles are two chunks here.
@pytest.mark.parametrize(
    ("batch", "rows", "columns", "terms", "dtype"),
    [(1, 170, 200, 3, torch.float32), (1, 200, 161, 1, torch.bfloat16), (1, 161, 170, 1, torch.float16)],
    ids=str,
)
def test_spectral_newton_of_larger_matrices(ops, batch, rows, columns, terms, dtype):
    G, constant, weights, poles, want = newton_case(batch, rows, columns, terms, dtype)
    out, status = torch.full_like(G, torch.nan), torch.full((batch,), -1, dtype=torch.int32)
    ops.spectral_newton_poles_(out, status, G, constant, weights, poles, 1.0, 0.0)
    assert not status.any()
    tolerance = 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps
    assert float((out.double() - want).norm() / want.norm()) < tolerance


def test_spectral_newton_of_larger_matrices_adds_slices_and_fails_one_at_a_time(ops):
    """The large side is summed in slices; a scale and a decay of what was there are applied on the way out."""
    G, constant, weights, poles, want = newton_case(2, 161, 520, 1)
    G[1, 150, 3] = torch.nan
    storage = torch.ones(2, 520, 322)
    out, status = storage[..., ::2].mT, torch.full((2,), -1, dtype=torch.int32)
    ops.spectral_newton_poles_(out, status, G, constant, weights, poles, -0.5, 0.9)
    assert status.tolist() == [0, 151]
    assert error(out[0], 0.9 - 0.5 * want[0]) < 1e-5
    assert (out[1] == torch.tensor(0.9)).all()
    assert (storage[..., 1::2] == 1).all()


def test_spectral_newton_of_larger_matrices_does_not_depend_on_the_order_of_blocks(ops, monkeypatch):
    G, constant, weights, poles, _ = newton_case(1, 161, 161, 1)
    outs = []
    for order in ("forward", "7"):
        monkeypatch.setenv("CUDA_EMULATOR_ORDER", order)
        out, status = torch.empty_like(G), torch.zeros(1, dtype=torch.int32)
        ops.spectral_newton_poles_(out, status, G, constant, weights, poles, 1.0, 0.0)
        outs.append(out)
    assert torch.equal(*outs)


@pytest.mark.skipif(not TOOLS.is_dir(), reason="needs the source tree")
def test_what_the_benchmark_times_is_the_transfer_map(emulated, monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    import gpu_bench

    G = torch.randn(1, 162, 161) / 13
    for alpha, stack in ((2.0, G), (1.0, G[:, :20])):
        got = gpu_bench.own_kernels([stack], alpha, 0.1)[0]
        want = spectral_newton(stack.double(), alpha, 0.1, damping_mode="rms", solver="svd")
        assert float((got - want).norm() / want.norm()) < 1e-3


def test_spectral_newton_epilogue_and_strides(ops):
    G, constant, weights, poles, want = newton_case(2, 6, 9, 2)
    storage = torch.ones(2, 9, 12)
    out, status = storage[..., ::2].mT, torch.zeros(2, dtype=torch.int32)
    ops.spectral_newton_poles_(out, status, G.mT.contiguous().mT, constant, weights, poles, -0.5, 0.9)
    assert error(out, 0.9 - 0.5 * want) < 1e-6
    assert (storage[..., 1::2] == 1).all()


def test_spectral_newton_fails_one_matrix_at_a_time(ops):
    G, constant, weights, poles, want = newton_case(3, 6, 9, 1)
    G[1, 2, 3], poles[2] = torch.nan, -50.0
    out, status = torch.full_like(G, torch.nan), torch.zeros(3, dtype=torch.int32)
    ops.spectral_newton_poles_(out, status, G, constant, weights, poles, 1.0, 0.0)
    assert status.tolist() == [0, 3, 1]
    assert error(out[0], want[0]) < 1e-6
    assert not out[1:].any()


@pytest.mark.parametrize("order", ORDERS)
def test_no_result_depends_on_the_order_of_threads_and_blocks(ops, monkeypatch, order):
    """A race that the barriers leave open shows as a difference between orders, bit by bit."""

    def results():
        generator = torch.Generator().manual_seed(3)
        x = torch.randn(3, 34, 6, 5, generator=generator)
        geometry = ([3, 3], [1, 1], [1, 1], [1, 1])
        yield ops.input_factor(x, *geometry, 1, True, False, [0, 0], False, 1.0)
        yield ops.input_factor(x.bfloat16(), *geometry, 1, True, False, [0, 0], False, 1.0)
        yield ops.input_factor(x[:, :3], *geometry, 1, True, False, [0, 0], True, 1.0)
        P, Q = torch.randn(40, 6, 7, generator=generator), torch.randn(40, 6, 4, generator=generator)
        U, V = torch.randn(1, 4, 5, generator=generator), torch.randn(1, 7, 5, generator=generator)
        yield ops.rayleigh_quotients(P, Q, U, V, [], [], [], [], 1, False, False, [], 1 << 20)
        yield ops.rayleigh_quotients(
            x,
            x,
            U.new_ones(1, 34, 2),
            V.new_ones(1, 34, 2),
            [1, 1],
            [1, 1],
            [0, 0],
            [1, 1],
            1,
            False,
            False,
            [0, 0],
            1 << 20,
        )
        G, constant, weights, poles, _ = newton_case(2, 70, 80, 2)
        out, status = torch.empty_like(G), torch.empty(2, dtype=torch.int32)
        ops.spectral_newton_poles_(out, status, G, constant, weights, poles, 1.0, 0.0)
        yield out

    monkeypatch.setenv("CUDA_EMULATOR_ORDER", "forward")
    want = list(results())
    monkeypatch.setenv("CUDA_EMULATOR_ORDER", order)
    for got, expected in zip(results(), want):
        assert torch.equal(got, expected)


def test_bad_arguments_are_errors(ops):
    x = torch.randn(2, 4, 5, 5)
    geometry = ([3, 3], [1, 1], [0, 0], [1, 1], 1, False, False, [0, 0])
    with pytest.raises(RuntimeError, match="out must"):
        ops.input_factor_(torch.zeros(36, 35), x, *geometry, False, 0.0, 1.0)
    G = torch.randn(1, 161, 170)
    one, status = torch.ones(1, 1), torch.zeros(1, dtype=torch.int32)
    many = torch.ones(70000, 1, 1)
    with pytest.raises(RuntimeError, match="70000 matrices of 1 poles are more than one call takes, 65535"):
        ops.spectral_newton_poles_(
            torch.empty_like(many),
            torch.zeros(70000, dtype=torch.int32),
            many,
            many[:, 0, 0],
            many[:, 0],
            many[:, 0],
            1.0,
            0.0,
        )
    with pytest.raises(RuntimeError, match="weights must have at least one pole"):
        ops.spectral_newton_poles_(torch.empty_like(G), status, G, one[0], one[:, :0], one[:, :0], 1.0, 0.0)
    with pytest.raises(RuntimeError, match="poles must be float32"):
        ops.spectral_newton_poles_(torch.zeros(1, 8, 170), status, G[:, :8], one[0], one, one.double(), 1.0, 0.0)
    with pytest.raises(RuntimeError, match="out overlaps the memory of G"):
        ops.spectral_newton_poles_(G[:, :8], status, G[:, :8], one[0], one, one, 1.0, 0.0)


def test_sizes_beyond_a_launch_are_named(emulated):
    with pytest.raises(RuntimeError, match="lag sums: the sizes are beyond what one launch takes; split the batch"):
        input_factor(torch.zeros(1, 70000 * 16, 1), kernel_size=1, groups=70000)
    x, directions = torch.zeros(1, 70000, 1), torch.zeros(70000, 1, 1)
    with pytest.raises(RuntimeError, match="groups: at most 65535 on CUDA, not 70000"):
        rayleigh_quotients(x, x, directions, directions, kernel_size=1, groups=70000)


def test_an_allocation_that_fails_in_the_middle_leaves_the_output_and_the_next_call_alone(ops):
    resource = pytest.importorskip("resource")
    G, constant, weights, poles, want = newton_case(1, 161, 170, 1)
    many = [t.expand(300, *t.shape[1:]).contiguous() for t in (G, constant, weights, poles)]
    out, status = torch.full((300, 161, 170), 7.0), torch.full((300,), 7, dtype=torch.int32)
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + (1 << 26), before[1]))  # the scratch takes 200 MiB
    try:
        with pytest.raises(RuntimeError, match=r"spectral_newton: \d+ bytes of scratch could not be allocated"):
            ops.spectral_newton_poles_(out, status, *many, 1.0, 0.0)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert (out == 7).all() and (status == 7).all()
    ops.spectral_newton_poles_(out[:1], status[:1], G, constant, weights, poles, 1.0, 0.0)
    assert error(out[:1], want) < 3e-4  # R + p has a condition number of up to 80 here, and products err by 3·2⁻¹⁸


def test_gpu_older_than_the_binary_is_named(emulated, monkeypatch):
    monkeypatch.setenv("CUDA_EMULATOR_OLD_GPU", "1")
    with pytest.raises(RuntimeError, match=r"no code for this GPU of compute capability 7\.5: 8\.0 or newer is needed"):
        input_factor(torch.randn(2, 3, 4))


def test_race_checker_finds_no_race_and_would_find_one():
    program = cuda_emulator.racecheck()
    racy = subprocess.run([program, "racy"], capture_output=True, text=True)
    if "unexpected memory mapping" in racy.stderr:
        pytest.skip("ThreadSanitizer does not run on this kernel's address space layout")
    assert racy.returncode != 0 and "data race" in racy.stderr
    clean = subprocess.run([program], capture_output=True, text=True)
    assert clean.returncode == 0, clean.stderr[:4000]
