"""The path of accelerators, on the CPU: batched partial fractions, their precision, chunks, special matrices."""

import math

import pytest
import torch

from spectral_ext import reference
from spectral_ext.ops.spectral_newton import choose_solver, dispatch, spectral_newton
from spectral_ext.ops.spectral_newton import partial_fractions_torch as path
from spectral_ext.ops.spectral_newton.decompositions import power_of_two_scale
from spectral_ext.ops.spectral_newton.partial_fractions import extent_of

N = 96
K = torch.arange(N, dtype=torch.float64)
SPECTRA = {
    "1/k": 1 / (K + 1),
    "equal": torch.ones(N).double(),
    "half zero": (K < N // 2).double(),
    "rank 1": (K < 1).double(),
    "decay": torch.exp(-K / 12),
    "one and tiny": torch.where(K == 0, 1.0, 3e-4),
}
ALPHAS = (0.5, 0.84, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 4.5, 6.0)


def run(G, alpha, damping=0.1, mode="rms", tolerance=1e-3, dtype=None):
    """T of a list of batches (B, n, N) by the torch path, in the order of N."""
    out = [torch.full(g.shape, torch.nan, dtype=dtype or g.dtype) for g in G]
    extent = extent_of(alpha, damping, mode, G[0].shape[1])
    path.rational_(G, out, alpha, damping, mode, extent, tolerance)
    return out


def error_of(result, G, alpha, damping, mode):
    exact = reference.spectral_newton(G.double(), alpha, damping, damping_mode=mode)
    return float((result.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("tolerance", [1e-5, 1e-3])
def test_the_tolerance_holds_in_the_precision_that_is_chosen(name, tolerance):
    U = torch.linalg.qr(torch.randn(N, N, dtype=torch.float64))[0]
    V = torch.linalg.qr(torch.randn(150, N, dtype=torch.float64))[0]
    G = ((U * SPECTRA[name]) @ V.mT).float()
    for alpha in ALPHAS:
        for mode in ("absolute", "spectral", "rms"):
            for d in (0.1, 0.01):
                result = run([G[None]], alpha, d, mode, tolerance)[0][0]
                assert error_of(result, G, alpha, d, mode) <= tolerance, (alpha, mode, d)


def test_float64_and_scales():
    for scale in (1e-40, 1e-12, 1.0, 1e12):
        G = torch.randn(2, 20, 33, dtype=torch.float64) * scale
        for alpha in (1.0, 2.0, 3.0):
            for mode in ("spectral", "rms"):
                result = run([G], alpha, 0.1, mode, 1e-6)[0]
                assert all(error_of(y, g, alpha, 0.1, mode) <= 1e-6 for y, g in zip(result, G)), (scale, alpha, mode)
        if 1e-30 < scale < 1e30:
            single = G.float()
            assert error_of(run([single], 1.5)[0][0], single[0], 1.5, 0.1, "rms") <= 1e-3


def test_float32_far_from_one_keeps_its_range():
    for scale in (1e-30, 1e-15, 1e15, 1e30):
        G = torch.randn(1, 12, 20) * scale
        assert error_of(run([G], 1.0)[0][0], G[0], 1.0, 0.1, "rms") <= 1e-3
    assert error_of(run([1e-30 * torch.ones(1, 1, 4)], 2.0)[0][0], 1e-30 * torch.ones(1, 4), 2.0, 0.1, "rms") <= 1e-3


@pytest.mark.parametrize("mode", ["absolute", "spectral", "rms"])
def test_chunks_and_blocks_change_nothing_beyond_rounding(mode, monkeypatch):
    G = [torch.randn(3, 10, 16), torch.randn(1, 10, 40), torch.randn(7, 10, 40)]
    whole = {alpha: run(G, alpha, 0.1, mode) for alpha in (1.0, 2.0, 3.0)}
    monkeypatch.setattr(path, "SCRATCH_BYTES", 4 * 10 * 10 * 8 * 2)
    monkeypatch.setattr(path, "MIN_BLOCK_BYTES", 10 * 8 * 17)
    for alpha, results in whole.items():
        for a, b in zip(results, run(G, alpha, 0.1, mode)):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(a.abs().max())), alpha


@pytest.mark.parametrize("mode", ["absolute", "spectral", "rms"])
@pytest.mark.parametrize("alpha", [1.0, 2.0, 3.0, 4.5])
def test_zero_and_non_finite_stay_in_their_matrix(mode, alpha):
    G = torch.randn(5, 6, 9)
    G[0] = 0.0
    G[1, 2, 3], G[2, 0, 0], G[3, 5, 8] = torch.inf, torch.nan, -torch.inf
    result = run([G], alpha, 0.1, mode)[0]
    assert torch.equal(result[0], torch.zeros(6, 9))
    assert result[1:4].isnan().all()
    assert error_of(result[4], G[4], alpha, 0.1, mode) <= 1e-3


def test_sixteen_bit_inputs_and_outputs_of_other_strides():
    for dtype, bound in ((torch.float16, 2e-3), (torch.bfloat16, 1e-2)):
        G = torch.randn(2, 20, 33).to(dtype)
        out = torch.empty(2, 33, 20, dtype=dtype).mT
        path.rational_([G], [out], 1.5, 0.1, "rms", extent_of(1.5, 0.1, "rms", 20), 1e-3)
        assert max(error_of(y, g, 1.5, 0.1, "rms") for y, g in zip(out, G)) <= bound


@pytest.mark.parametrize("alpha", [2.0, 4.0])
@pytest.mark.parametrize("damping", [0.1, 9.0, 94.0])
def test_one_solve_in_every_precision(alpha, damping):
    G = torch.diag(torch.tensor([1.0, 1e-3])) @ torch.randn(2, 2, 30)
    for tolerance in (1e-2, 1e-5, 1e-7, 1e-8):
        result = run([G], alpha, damping, "rms", tolerance)[0]
        assert max(error_of(y, g, alpha, damping, "rms") for y, g in zip(result, G)) <= max(tolerance, 2e-7)


@pytest.mark.parametrize("alpha, damping", [(0.1, 300.0), (0.2, 1e4), (0.3, 1e4), (0.5, 1e3)])
def test_fits_of_tiny_y(alpha, damping):
    for scale in (1e-30, 1.0, 1e30):
        G = scale * torch.randn(2, 6, 9)
        for mode in ("spectral", "rms"):
            for tolerance in (1e-3, 1e-6) if alpha > 0.2 else (1e-3,):
                result = run([G], alpha, damping, mode, tolerance)[0]
                assert max(error_of(y, g, alpha, damping, mode) for y, g in zip(result, G)) <= tolerance


def test_a_damping_beyond_float64_takes_eigh():
    G = torch.randn(4, 6)
    for alpha in (0.01, 0.05):
        assert choose_solver(alpha, 1e4, "rms", device="cuda").solver == "eigh"
        with pytest.raises(ValueError, match="range of float64"):
            run([G[None]], alpha, 1e4)
        assert error_of(spectral_newton(G, alpha, 1e4, damping_mode="rms"), G, alpha, 1e4, "rms") <= 1e-5


def test_dampings_that_only_the_device_knows():
    G = torch.randn(3, 8, 12)
    dampings = torch.tensor([0.01, 0.1, 1.0], dtype=torch.float64)
    for mode in ("absolute", "spectral", "rms"):
        out = torch.empty_like(G)
        path.rational_([G], [out], 1.3, dampings, mode, math.inf, 1e-3)
        for y, g, d in zip(out, G, dampings.tolist()):
            assert error_of(y, g, 1.3, d, mode) <= 1e-3


def test_beyond_the_reach_of_the_poles_it_is_finite_and_along_the_gradient():
    for dtype in (torch.float32, torch.float64):
        G = 1e12 * torch.randn(2, 8, 12, dtype=dtype)
        G[1] *= 1e-16
        result = run([G], 0.5, 1e-4, "absolute")[0]
        assert torch.allclose(result[0], G[0] / (G[0].norm() ** 0.5 + 1e-4), rtol=1e-5)
        assert error_of(result[1], G[1], 0.5, 1e-4, "absolute") <= 1e-3


def test_our_products_do_not_follow_the_tf32_of_the_user(monkeypatch):
    backends = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]
    seen = []
    plain = torch.bmm

    def watched(*arguments, **options):
        seen.append([backend.fp32_precision for backend in backends])
        return plain(*arguments, **options)

    monkeypatch.setattr(torch, "bmm", watched)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        users = [backend.fp32_precision for backend in backends]
        run([torch.randn(2, 6, 9)], 1.0)
        assert seen and all(precision == ["ieee", "ieee"] for precision in seen)
        assert [backend.fp32_precision for backend in backends] == users
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_largest_eigenvalue():
    for sigma in SPECTRA.values():
        Q = torch.linalg.qr(torch.randn(N, N, dtype=torch.float64))[0]
        R = ((Q * sigma.square()) @ Q.mT)[None]
        for accuracy in (1e-3, 1e-8):
            assert 1 - accuracy <= float(path.largest_eigenvalue(R, accuracy)) <= 1 + 1e-12
    close = torch.diag(torch.cat([torch.tensor([1.0, 1 - 1e-5]), torch.linspace(0, 0.9999, 200)]).double())[None]
    assert float(path.largest_eigenvalue(close, 1e-6)) == pytest.approx(1.0, rel=1e-6)
    assert path.largest_eigenvalue(torch.zeros(1, 4, 4), 1e-3) == 0


def test_power_of_two_scale_is_exact():
    G = torch.stack([torch.randn(3, 4) * s for s in (1e-42, 1e-30, 1.0, 1e38)] + [torch.zeros(3, 4)])
    scaled, scale = power_of_two_scale(G)
    assert torch.equal(scaled.double() * scale.double(), G.double())
    assert (scaled[:4].abs().amax((-2, -1)) < 2.0).all() and (scaled[:4].abs().amax((-2, -1)) >= 1.0).all()


@pytest.mark.parametrize("solver", ["auto", "svd"])
def test_a_solver_that_waits_is_refused_in_a_capture(monkeypatch, solver):
    """Before any work: torch would end the capture with an error of the CUDA runtime."""
    monkeypatch.setattr(dispatch, "_is_capturing", lambda device: True)
    G = torch.randn(2, 6, 9)
    alpha = torch.tensor(1.5, device="meta") if solver == "auto" else 1.5
    with pytest.raises(
        RuntimeError, match=r"G.*: solver '(eigh|svd)' waits for the device, and a graph is being captured"
    ):
        spectral_newton(G.to(alpha.device) if solver == "auto" else G, alpha, 0.1, solver=solver)
    assert spectral_newton(G, 2.0, 0.1).isfinite().all()
