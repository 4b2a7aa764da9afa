"""rayleigh_quotients against its definition, against per-sample gradients, and its properties. Tolerance: relative."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_ext import reference
from spectral_ext.ops.rayleigh_quotients import rayleigh_quotients

CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONVOLVE_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def assert_same(found, expected, tolerance):
    """Sums of squares have no cancellation, so that the error is relative, entry by entry (but for gauss_newton)."""
    for name, a, b in zip(found._fields, found, expected):
        assert a.shape == b.shape, name
        scale = expected.sum_of_products.abs() if name == "gauss_newton" else b.abs()
        worst = ((a - b.to(a)).abs() / torch.maximum(scale, b.abs()).clamp_min(1e-300)).max() if b.numel() else 0.0
        assert worst <= tolerance, f"{name}: relative error {worst:.2e}"


def make(
    batch, channels, outputs, size, K, *, dtype=torch.float64, kernel_size=1, bias=False, device="cpu", **geometry
):
    """Random operands of a convolution whose output the geometry gives."""
    dims = len(size)
    k = reference.as_tuple(kernel_size, dims)
    x = torch.randn(batch, channels, *size, dtype=torch.float64)
    probe = torch.zeros(outputs, channels, *k, dtype=torch.float64)
    out = CONVOLVE[dims](x[:1] if batch else x.new_zeros(1, channels, *size), probe, **geometry).shape[2:]
    delta = torch.randn(batch, outputs, *out, dtype=torch.float64)
    U = torch.randn(outputs, K, dtype=torch.float64)
    V = torch.randn(probe[0].numel() + bias, K, dtype=torch.float64)
    return [t.to(device, dtype) for t in (x, delta, U, V)]


GEOMETRIES = [
    dict(batch=17, channels=5, outputs=3, size=(9, 11), K=20, kernel_size=3, padding=1),
    dict(batch=3, channels=16, outputs=8, size=(32, 32), K=7, kernel_size=3, padding=1, bias=True),
    dict(batch=1, channels=3, outputs=2, size=(37, 13), K=1, kernel_size=(5, 3), padding=(2, 0)),
    dict(batch=40, channels=3, outputs=6, size=(16, 16), K=33, kernel_size=7, stride=2, padding=3),
    dict(batch=5, channels=8, outputs=4, size=(8, 8), K=130, kernel_size=1, stride=2),
    dict(batch=5, channels=33, outputs=17, size=(6, 7), K=4, kernel_size=1),
    dict(batch=2, channels=4, outputs=4, size=(12, 12), K=5, kernel_size=3, padding=2, dilation=2),
    dict(
        batch=2,
        channels=4,
        outputs=4,
        size=(15, 17),
        K=5,
        kernel_size=(3, 5),
        padding=(3, 2),
        dilation=(2, 1),
        stride=(3, 2),
    ),
    dict(batch=9, channels=2, outputs=3, size=(101,), K=6, kernel_size=9, stride=4, padding=5),
    dict(batch=1, channels=6, outputs=3, size=(1000,), K=3, kernel_size=3, padding=1),
    dict(batch=4, channels=3, outputs=5, size=(5, 6, 7), K=9, kernel_size=3, padding=1, stride=(1, 2, 1)),
    dict(batch=2, channels=1, outputs=1, size=(1, 1), K=1, kernel_size=3, padding=1),
    dict(batch=31, channels=64, outputs=64, size=(4, 4), K=24, kernel_size=3, padding=1),
]


@pytest.mark.parametrize("budget", [1 << 20, 1 << 14, 0])
@pytest.mark.parametrize("case", GEOMETRIES, ids=str)
def test_convolution_float64(case, budget, device):
    case = dict(case)
    x, delta, U, V = make(**case, device=device)
    geometry = {k: v for k, v in case.items() if k not in ("batch", "channels", "outputs", "size", "K")}
    expected = reference.rayleigh_quotients(x, delta, U, V, **geometry)
    assert_same(rayleigh_quotients(x, delta, U, V, **geometry, scratch_bytes=budget), expected, 1e-12)


@pytest.mark.parametrize("dtype,tolerance", [(torch.float32, 2e-6), (torch.bfloat16, 2e-6), (torch.float16, 2e-6)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_convolution_of_lower_precision(dtype, tolerance, channels_last, device):
    """Against float64 on the same rounded operands: half types are widened exactly, so that float32's bound holds."""
    x, delta, U, V = make(32, 24, 16, (16, 16), 20, kernel_size=3, padding=1, dtype=dtype, device=device)
    if channels_last:
        x, delta = (t.to(memory_format=torch.channels_last) for t in (x, delta))
    U, V = U.float(), V.float()
    exact = reference.rayleigh_quotients(*(t.double() for t in (x, delta, U, V)), kernel_size=3, padding=1)
    found = rayleigh_quotients(x, delta, U, V, kernel_size=3, padding=1)
    assert all(field.dtype == torch.float64 for field in found)
    assert_same(found, exact, tolerance if device.type == "cpu" else 5e-3)


@pytest.mark.parametrize(
    "leading", [(1,), (37,), (1000,), (3, 40), (17, 3), (2, 5, 9), (1, 1, 1), (6, 197), (70, 2)], ids=str
)
@pytest.mark.parametrize("n,m,K", [(1, 1, 1), (64, 10, 20), (33, 70, 49)])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_float64(leading, n, m, K, bias, device):
    x, delta = (torch.randn(*leading, size, dtype=torch.float64, device=device) for size in (n, m))
    U, V = (torch.randn(size, K, dtype=torch.float64, device=device) for size in (m, n + bias))
    expected = reference.rayleigh_quotients(x, delta, U, V, bias=bias)
    assert_same(rayleigh_quotients(x, delta, U, V, bias=bias), expected, 1e-12)


def test_linear_float32_matches_float64_to_1e6():
    x, delta = torch.randn(4096, 768), torch.randn(4096, 512)
    U, V = torch.randn(512, 20), torch.randn(768, 20)
    exact = reference.rayleigh_quotients(*(t.double() for t in (x, delta, U, V)))
    assert_same(rayleigh_quotients(x, delta, U, V), exact, 1e-6)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_gauss_newton_is_the_squared_form_of_per_sample_gradients(dims, transposed):
    """uᵀ G_b v with G_b from autograd, an oracle that shares no code with patches; also for transposed convolutions."""
    B, C, m, K, stride, padding = 5, 4, 3, 6, 2, 1
    x = torch.randn(B, C, *(7, 6, 5)[:dims], dtype=torch.float64)
    weight = torch.randn(*((C, m) if transposed else (m, C)), *(3,) * dims, dtype=torch.float64, requires_grad=True)
    convolve = (CONVOLVE_TRANSPOSED if transposed else CONVOLVE)[dims]
    extra = dict(output_padding=1) if transposed else {}
    out = convolve(x, weight, stride=stride, padding=padding, **extra)
    delta = torch.randn_like(out)
    U, V = torch.randn(m, K, dtype=torch.float64), torch.randn(C * 3**dims, K, dtype=torch.float64)
    expected = torch.zeros(K, dtype=torch.float64)
    for b in range(B):
        (grad,) = torch.autograd.grad((out[b] * delta[b]).sum(), weight, retain_graph=True)
        G = (grad.transpose(0, 1) if transposed else grad).flatten(1)
        expected += torch.einsum("mk,mn,nk->k", U, G, V).square() / B
    found = rayleigh_quotients(
        x, delta, U, V, kernel_size=3, stride=stride, padding=padding, transposed=transposed, **extra
    )
    torch.testing.assert_close(found.gauss_newton, expected, rtol=1e-10, atol=0)
    if transposed:  # conv_transpose with a filter of one output channel is the projection of every patch
        filters = V.T.unflatten(1, (C, *(3,) * dims)).transpose(0, 1)
        P = convolve(x, filters, stride=stride, padding=padding, **extra).flatten(2)
        torch.testing.assert_close(found.input, P.square().mean((0, 2)), rtol=1e-12, atol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_groups_have_directions_of_their_own(channels):
    groups, m, K = 5, 2, 4
    x = torch.randn(20, groups * channels, 8, 9, dtype=torch.float64)
    delta = torch.randn(20, groups * m, 8, 9, dtype=torch.float64)
    U = torch.randn(groups, m, K, dtype=torch.float64)
    V = torch.randn(groups, channels * 9, K, dtype=torch.float64)
    found = rayleigh_quotients(x, delta, U, V, kernel_size=3, padding=1, groups=groups)
    for g in range(groups):
        own = x[:, g * channels : (g + 1) * channels], delta[:, g * m : (g + 1) * m], U[g], V[g]
        one = type(found)(*(field[g] for field in found))
        assert_same(one, reference.rayleigh_quotients(*own, kernel_size=3, padding=1), 1e-12)


@pytest.mark.parametrize("padding_mode", ["reflect", "replicate", "circular"])
def test_padding_modes_pad_first(padding_mode):
    x, delta, U, V = make(3, 4, 5, (7, 8), 2, kernel_size=3, padding=1)
    padded = F.pad(x, (1, 1, 1, 1), mode=padding_mode)
    expected = reference.rayleigh_quotients(padded, delta, U, V, kernel_size=3)
    assert_same(
        rayleigh_quotients(x, delta, U, V, kernel_size=3, padding="same", padding_mode=padding_mode), expected, 1e-12
    )


@pytest.mark.parametrize(
    "strided",
    [
        lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
        lambda t: torch.stack([t, t], -1)[..., 1],
        lambda t: torch.cat([t, t])[::2] if len(t) % 2 == 0 else t.flip(0).flip(0),
        lambda t: t[:, :1].expand_as(t),
    ],
)
@pytest.mark.parametrize("kernel_size", [None, 3])
def test_strided_operands(strided, kernel_size):
    shape = (6, 20, 8) if kernel_size is None else (6, 4, 9, 10)
    x = strided(torch.randn(shape, dtype=torch.float64))
    delta = strided(torch.randn(shape, dtype=torch.float64))
    sizes = (8, 8) if kernel_size is None else (4, 36)
    U, V = (strided(torch.randn(size, 4, dtype=torch.float64)) for size in sizes)
    geometry = {} if kernel_size is None else dict(kernel_size=3, padding=1)
    copies = [t.clone() for t in (x, delta, U, V)]
    expected = reference.rayleigh_quotients(*copies, **geometry)
    assert_same(rayleigh_quotients(x, delta, U, V, **geometry), expected, 1e-12)
    assert all(torch.equal(a, b) for a, b in zip((x, delta, U, V), copies)), "an input was modified"


def test_mixed_types_compute_in_the_wider_one():
    x, delta, U, V = make(4, 3, 2, (6, 6), 3, kernel_size=3, dtype=torch.float64)
    delta = delta.half()
    exact = reference.rayleigh_quotients(x, delta.double(), U, V, kernel_size=3)
    assert_same(rayleigh_quotients(x, delta, U.float().double(), V, kernel_size=3), exact, 1e-6)


@pytest.mark.parametrize(
    "shape_x,shape_delta,K,geometry",
    [
        ((0, 5), (0, 3), 2, {}),
        ((4, 0, 5), (4, 0, 3), 2, {}),
        ((4, 5), (4, 3), 0, {}),
        ((0, 2, 5, 5), (0, 3, 3, 3), 2, dict(kernel_size=3)),
    ],
)
def test_nothing_to_sum_gives_zeros(shape_x, shape_delta, K, geometry):
    n = shape_x[-1] if not geometry else 18
    found = rayleigh_quotients(
        torch.ones(shape_x), torch.ones(shape_delta), torch.ones(3, K), torch.ones(n, K), **geometry
    )
    for field in found:
        assert field.shape == (K,)
        assert torch.equal(field, torch.zeros(K, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(64, 8, 16, 16), (3, 8, 33, 16)])
def test_result_does_not_depend_on_threads(shape):
    x, delta = torch.randn(shape), torch.randn(shape)
    U, V = torch.randn(8, 20), torch.randn(72, 20)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(rayleigh_quotients(x, delta, U, V, kernel_size=3, padding=1))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@pytest.mark.parametrize("level", ["baseline", "avx2"])
def test_narrower_vector_instructions(level):
    from spectral_ext._extension import compiled

    try:
        compiled.set_cpu_capability(level)
        for kernel_size, sizes in ((3, ((33, 5, 9, 8), (33, 7, 9, 8))), (None, ((6, 33, 40), (6, 33, 7)))):
            x, delta = (torch.randn(size, dtype=torch.float64) for size in sizes)
            geometry = dict(kernel_size=3, padding=1) if kernel_size else {}
            U, V = (
                torch.randn(7, 29, dtype=torch.float64),
                torch.randn(45 if kernel_size else 40, 29, dtype=torch.float64),
            )
            exact = reference.rayleigh_quotients(x, delta, U, V, **geometry)
            assert_same(rayleigh_quotients(x, delta, U, V, **geometry), exact, 1e-12)
            single = [t.half() for t in (x, delta)] + [U.float(), V.float()]
            exact = reference.rayleigh_quotients(*(t.double() for t in single), **geometry)
            assert_same(rayleigh_quotients(*single, **geometry), exact, 5e-6)
    finally:
        compiled.set_cpu_capability("avx512")


shapes = st.fixed_dictionaries(
    dict(
        batch=st.integers(1, 20),
        channels=st.integers(1, 6),
        outputs=st.integers(1, 5),
        size=st.tuples(st.integers(3, 9), st.integers(3, 9)),
        K=st.integers(1, 6),
        kernel_size=st.integers(1, 3),
        stride=st.integers(1, 3),
        padding=st.integers(0, 2),
    )
)


@settings(max_examples=25, deadline=None)
@given(shapes)
def test_between_the_extreme_eigenvalues(case):
    geometry = {k: case[k] for k in ("kernel_size", "stride", "padding")}
    x, delta, U, V = make(**case)
    U, V = (t / t.norm(dim=0) for t in (U, V))
    found = rayleigh_quotients(x, delta, U, V, **geometry)
    for quotient, factor in (
        (found.input, reference.input_factor(x, **geometry)),
        (found.output, reference.output_factor(delta, convolution=True)),
    ):
        values = torch.linalg.eigvalsh(factor)
        slack = 1e-12 * values[-1]
        assert (quotient >= values[0] - slack).all()
        assert (quotient <= values[-1] + slack).all()


@settings(max_examples=25, deadline=None)
@given(shapes, st.floats(0.01, 100), st.floats(0.01, 100), st.integers(0, 2**31))
def test_equivariance_and_splitting(case, scale_x, scale_delta, seed):
    """Samples permute freely, scales come out squared, and a batch is the weighted mean of its parts."""
    torch.manual_seed(seed)
    geometry = {k: case[k] for k in ("kernel_size", "stride", "padding")}
    x, delta, U, V = make(**case)
    whole = rayleigh_quotients(x, delta, U, V, **geometry)
    order = torch.randperm(len(x))
    assert_same(rayleigh_quotients(x[order], delta[order], U, V, **geometry), whole, 1e-12)

    scaled = rayleigh_quotients(x * scale_x, delta * scale_delta, U, V, **geometry)
    a, d = scale_x**2, scale_delta**2
    expected = type(whole)(whole.output * d, whole.input * a, whole.sum_of_products * a * d, whole.gauss_newton * a * d)
    assert_same(scaled, expected, 1e-11)

    columns = torch.randperm(U.shape[1])
    permuted = rayleigh_quotients(x, delta, U[:, columns], V[:, columns], **geometry)
    assert_same(permuted, type(whole)(*(field[columns] for field in whole)), 1e-12)

    cut = len(x) // 2
    parts = [rayleigh_quotients(x[p], delta[p], U, V, **geometry) for p in (slice(cut), slice(cut, None))]
    merged = (a * cut / len(x) + b * (1 - cut / len(x)) for a, b in zip(*parts))
    assert_same(type(whole)(*merged), whole, 1e-11)
