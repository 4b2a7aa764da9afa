"""The ops on a CUDA device: accuracy, repeatability, streams, graphs, devices. Skipped, and said so, without one."""

from functools import partial

import pytest
import torch

from spectral_ext import reference
from spectral_ext.ops import input_factor, output_factor
from spectral_ext.ops.rayleigh_quotients import rayleigh_quotients
from spectral_ext.ops.spectral_newton import spectral_newton

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="no CUDA device: the kernels run in test_cuda_emulation.py"
    ),
]

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# 16-bit input runs on the tensor cores, whose float32 sums are cut off instead of rounded: the error has one sign.
# A unit adds kFold·kDepth/16 = 16 products of 16 rows between folds (csrc/cuda/input_factor_lag_mma.cu). A diagonal
# entry grows evenly, so that product i loses at most 2⁻²³·i/16 of the fold: 8.5·2⁻²³ = 1.0e-6 of the fold and of the
# total. Folds, slices and the expansion are rounded and add less than 0.2e-6. The limit is twice that sum.
EPS = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2.4e-6, torch.float16: 2.4e-6}

# (shape, geometry)
INPUTS = [
    ((16384, 1, 256), {}),
    ((1000, 7, 77), dict(bias=True)),
    ((128, 64, 32, 32), dict(kernel_size=3, padding=1)),
    ((64, 128, 16, 16), dict(kernel_size=3, padding=1, bias=True)),
    ((32, 512, 4, 4), dict(kernel_size=3, padding=1)),
    ((32, 64, 16, 16), dict(kernel_size=5, padding=2)),
    ((32, 64, 32, 32), dict(kernel_size=3, padding=1, stride=2)),
    ((16, 3, 64, 64), dict(kernel_size=7, padding=3, stride=2, bias=True)),
    ((32, 64, 16, 16), dict(kernel_size=1)),
    ((8, 32, 14, 14), dict(kernel_size=3, padding=1, groups=32)),
    ((8, 64, 14, 14), dict(kernel_size=3, padding=2, dilation=2, groups=2)),
    ((8, 24, 50), dict(kernel_size=5, padding=2)),
    ((4, 16, 6, 7, 8), dict(kernel_size=3, padding=1)),
    ((3, 20, 5, 4), dict(kernel_size=(3, 2), stride=(2, 1), padding=(1, 0))),
]


def poison() -> None:
    """Leaves NaN in the memory that the caching allocator hands out next."""
    for size in (1 << 12, 1 << 16, 1 << 20, 1 << 24):
        torch.full((size,), torch.nan, device="cuda")


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want).abs().max() / want.abs().max())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("shape", "geometry"), INPUTS, ids=lambda v: str(v))
def test_input_factor(shape, geometry, channels_last, dtype):
    x = torch.randn(shape, device="cuda").to(dtype)
    if channels_last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    poison()
    got = input_factor(x, **geometry)
    # The reference unfolds: sample by sample, to fit in memory.
    chunk = max(1, x.shape[0] // 16)
    want = sum(len(part) * reference.input_factor(part.double(), **geometry) for part in x.split(chunk)) / x.shape[0]
    assert error(got, want) < EPS[dtype]
    assert torch.equal(got, got.mT)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_output_factor(dtype):
    delta = torch.randn(64, 100, 9, 9, device="cuda").to(dtype)
    assert (
        error(output_factor(delta, convolution=True), reference.output_factor(delta.double(), convolution=True))
        < EPS[dtype]
    )


@pytest.mark.parametrize("K", [1, 20, 33])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "delta_shape", "geometry"),
    [
        ((4096, 1, 64), (4096, 1, 48), {}),
        ((32, 128, 96), (32, 128, 64), dict(bias=True)),
        ((32, 64, 16, 16), (32, 48, 16, 16), dict(kernel_size=3, padding=1, bias=True)),
        ((32, 16, 15, 14), (32, 32, 8, 7), dict(kernel_size=3, padding=1, stride=2)),
    ],
    ids=lambda v: str(v),
)
def test_rayleigh_quotients(shape, delta_shape, geometry, dtype, K):
    x, delta = torch.randn(shape, device="cuda").to(dtype), torch.randn(delta_shape, device="cuda").to(dtype)
    n = reference.patches(x[:1].double(), **geometry).shape[-1]
    U = torch.randn(delta.shape[1 if "kernel_size" in geometry else -1], K, device="cuda")
    V = torch.randn(n, K, device="cuda")
    poison()
    got = rayleigh_quotients(x, delta, U, V, **geometry)
    want = reference.rayleigh_quotients(x.double(), delta.double(), U.double(), V.double(), **geometry)
    for one, two in zip(got, want):
        torch.testing.assert_close(one, two, rtol=1e-11 if dtype == torch.float64 else 2e-5, atol=0)


@pytest.mark.parametrize("alpha", [1.0, 2.0, 3.5])
@pytest.mark.parametrize("shape", [(4, 64, 576), (2, 128, 300), (3, 300, 40), (1, 160, 160), (1, 300, 500)])
def test_spectral_newton(shape, alpha):
    G = torch.randn(shape, device="cuda") / max(shape[1:]) ** 0.5
    got, want = spectral_newton(G, alpha, 0.1), reference.spectral_newton(G.double(), alpha, 0.1)
    assert float((got.double() - want).norm() / want.norm()) < 2e-3


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (5, 9), (64, 576), (128, 1152), (160, 161), (300, 40)])
def test_spectral_newton_of_small_matrices(rows, columns):
    batch, terms = 5, 2
    G = torch.randn(batch, rows, columns, device="cuda") / max(rows, columns) ** 0.5
    constant, weights = torch.rand(batch, device="cuda"), torch.rand(batch, terms, device="cuda")
    poles = torch.rand(batch, terms, device="cuda") + 0.05
    out, status = torch.full_like(G, torch.nan), torch.full((batch,), -1, dtype=torch.int32, device="cuda")
    poison()
    torch.ops.spectral_ext.spectral_newton_poles_(out, status, G, constant, weights, poles, 1.0, 0.0)
    U, sigma, Vh = torch.linalg.svd(G.double(), full_matrices=False)
    f = constant.double()[:, None] + (weights.double()[:, None] / (sigma.square()[..., None] + poles[:, None])).sum(-1)
    want = U * (f * sigma).unsqueeze(-2) @ Vh
    assert not status.any()
    assert error(out, want) < 5e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("rows", "columns"), [(161, 170), (512, 1000), (768, 768), (1500, 300)])
def test_spectral_newton_of_larger_matrices(rows, columns, dtype):
    """Products of operands split into two bfloat16 numbers: 3·2⁻¹⁸ each, and little more in the result at κ ≈ 50."""
    batch, terms = 3, 2
    G = (torch.randn(batch, rows, columns, device="cuda") / max(rows, columns) ** 0.5).to(dtype)
    constant, weights = torch.rand(batch, device="cuda"), torch.rand(batch, terms, device="cuda")
    poles = torch.rand(batch, terms, device="cuda") + 0.1
    out, status = torch.full_like(G, torch.nan), torch.full((batch,), -1, dtype=torch.int32, device="cuda")
    poison()
    torch.ops.spectral_ext.spectral_newton_poles_(out, status, G, constant, weights, poles, 1.0, 0.0)
    U, sigma, Vh = torch.linalg.svd(G.double(), full_matrices=False)
    f = constant.double()[:, None] + (weights.double()[:, None] / (sigma.square()[..., None] + poles[:, None])).sum(-1)
    want = U * (f * sigma).unsqueeze(-2) @ Vh
    assert not status.any()
    assert float((out - want).norm() / want.norm()) < (2e-5 if dtype == torch.float32 else torch.finfo(dtype).eps)


def newton_small(G: torch.Tensor) -> torch.Tensor:
    one = torch.ones(len(G), 1, device=G.device)
    out, status = torch.empty_like(G), torch.empty(len(G), dtype=torch.int32, device=G.device)
    torch.ops.spectral_ext.spectral_newton_poles_(out, status, G, 0 * one[:, 0], one, one, 1.0, 0.0)
    return out


def jobs(device: str = "cuda"):
    """(name, function, input): every kernel once."""
    image = torch.randn(16, 32, 12, 12, device=device)
    U, V = torch.randn(32, 7, device=device), torch.randn(9 * 32, 7, device=device)
    conv = dict(kernel_size=3, padding=1)
    return [
        ("lag", partial(input_factor, **conv, bias=True), image),
        ("direct", partial(input_factor, **conv), image[:, :3]),
        ("rows", input_factor, torch.randn(5000, 1, 70, device=device)),
        ("rayleigh", lambda x: torch.stack(rayleigh_quotients(x, x.flip(0), U, V, **conv)), image),
        ("newton_small", newton_small, torch.randn(3, 64, 100, device=device)),
        ("newton_blocked", newton_small, torch.randn(3, 300, 400, device=device)),
        ("newton", lambda G: spectral_newton(G, 2.0, 0.1), torch.randn(3, 64, 100, device=device)),
    ]


NAMES = ["lag", "direct", "rows", "rayleigh", "newton_small", "newton_blocked", "newton"]


@pytest.mark.parametrize("index", range(len(NAMES)), ids=NAMES)
def test_repeats_are_equal_bit_by_bit(index):
    _, run, x = jobs()[index]
    want = run(x)
    for _ in range(20):
        poison()
        assert torch.equal(run(x), want)


@pytest.mark.parametrize("index", range(len(NAMES)), ids=NAMES)
def test_side_stream(index):
    """The input is still being computed on the side stream when the op is called: only that stream orders the two."""
    _, run, x = jobs()[index]
    want = run(2 * x)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        got = run(x + x)
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(got, want)


@pytest.mark.parametrize("index", range(len(NAMES)), ids=NAMES)
def test_graph_replays_equal_the_eager_result(index):
    _, run, x = jobs()[index]
    other = torch.randn_like(x)
    want, want_other = run(x), run(other)
    static = x.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run(static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(static)
    poison()
    graph.replay()
    first = out.clone()
    graph.replay()
    assert torch.equal(first, out)
    assert torch.equal(out, want)
    static.copy_(other)
    graph.replay()
    assert torch.equal(out, want_other)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
@pytest.mark.parametrize("index", range(len(NAMES)), ids=NAMES)
def test_other_device_than_the_current(index):
    _, run, x = jobs("cuda:1")[index]
    with torch.cuda.device(1):
        want = run(x)
    with torch.cuda.device(0):
        got = run(x)
        assert torch.cuda.current_device() == 0
    assert got.device.index == 1
    assert torch.equal(got, want)


def test_ops_pass_opcheck():
    x = torch.randn(3, 16, 6, 5, device="cuda")
    geometry = ([3, 3], [1, 1], [1, 1], [1, 1], 1, True, False, [0, 0])
    torch.library.opcheck(torch.ops.spectral_ext.input_factor, (x, *geometry, False, 1.0))
    U, V = torch.randn(1, 16, 4, device="cuda"), torch.randn(1, 145, 4, device="cuda")
    torch.library.opcheck(torch.ops.spectral_ext.rayleigh_quotients, (x, x, U, V, *geometry, 1 << 20))


def test_operands_on_another_device_are_errors():
    x = torch.randn(3, 16, 6, 5, device="cuda")
    with pytest.raises((ValueError, RuntimeError), match="device"):
        input_factor(x, kernel_size=3, out=torch.zeros(144, 144))
    with pytest.raises((ValueError, RuntimeError), match=r"on cpu|device"):
        rayleigh_quotients(x[:, :, 0, 0], x[:, :, 0, 0], torch.randn(16, 2), torch.randn(16, 2))
