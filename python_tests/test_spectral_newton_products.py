"""The GPU's arithmetic on the CPU: 16-bit operands, float32 accumulation, and the batched partial fractions."""

import pytest
import torch

from spectral_ext import reference
from spectral_ext.ops.spectral_newton import product_sum_torch as products
from spectral_ext.ops.spectral_newton import spectral_newton
from spectral_ext.ops.spectral_newton.choose_solver import FLOAT16_ERROR, pole_fits, product_fits
from spectral_ext.ops.spectral_newton.decompositions import largest_eigenvalue, power_of_two_scale
from spectral_ext.ops.spectral_newton.partial_fractions_torch import needs_float64, rational
from spectral_ext.ops.spectral_newton.product_sum import basis_matrix, product_count

ROUNDING = {torch.float32: 3e-6, torch.float16: FLOAT16_ERROR, torch.bfloat16: 8 * FLOAT16_ERROR}


def column(value, count=1):
    return torch.full((count, 1), value, dtype=torch.float64)


def error_of(result, G, alpha, damping, mode):
    exact = reference.spectral_newton(G.double(), alpha, damping, damping_mode=mode)
    return float((result - exact).norm() / exact.norm())


def matrices():
    gauss = torch.randn(64, 576)
    n = 96
    U = torch.linalg.qr(torch.randn(n, n))[0]
    V = torch.linalg.qr(torch.randn(200, n))[0]
    return {"gauss": gauss, "power law": (U / torch.arange(1.0, n + 1)) @ V.T}


@pytest.mark.parametrize(("basis", "evaluate"), [("polynomial", products._chebyshev), ("iterates", products._iterates)])
def test_evaluation_is_the_sum_it_claims_to_be(basis, evaluate, monkeypatch):
    R = torch.randn(6, 6, dtype=torch.float64)
    R = R @ R.T
    R = R / torch.linalg.eigvalsh(R)[-1]
    values, Q = torch.linalg.eigh(R)
    count = [0]
    plain = products.product

    def counted(*arguments):
        count[0] += 1
        return plain(*arguments)

    monkeypatch.setattr(products, "product", counted)
    for terms in range(2, 25 if basis == "polynomial" else 9):
        c = torch.randn(terms, dtype=torch.float64)
        count[0] = 0
        identity, rest = evaluate(R[None], c[None, :, None, None], torch.float16)
        exact = (Q * torch.from_numpy(basis_matrix(basis, values.clamp(0).numpy(), terms) @ c.numpy())) @ Q.T
        found = identity[0, 0, 0] * torch.eye(6, dtype=torch.float64) + rest[0]
        assert float((found - exact).norm() / exact.norm()) < 1e-11
        assert count[0] == product_count(basis, terms)


@pytest.mark.parametrize("operand", list(ROUNDING), ids=str)
@pytest.mark.parametrize(
    ("basis", "alpha", "damping"),
    [
        ("iterates", 1.0, 0.1),
        ("iterates", 1.5, 0.1),
        ("iterates", 1.5, 0.01),
        ("iterates", 2.0, 0.1),
        ("iterates", 2.0, 0.01),
        ("polynomial", 2.0, 0.1),
        ("polynomial", 3.0, 0.1),
        ("polynomial", 3.0, 0.01),
        ("polynomial", 4.5, 0.1),
        ("polynomial", 4.5, 0.01),
    ],
)
def test_sixteen_bit_products(basis, alpha, damping, operand):
    table = product_fits(basis, alpha, damping, 1.1e-2)
    bound = table[0].error + 3 * ROUNDING[operand] / damping
    for name, G in matrices().items():
        result = products.product_sum(G[None], alpha, column(damping), "spectral", table, operand)[0]
        assert error_of(result, G, alpha, damping, "spectral") <= bound, name


@pytest.mark.parametrize("mode", ["absolute", "spectral"])
@pytest.mark.parametrize("scale", [1e-6, 0.1, 1.0])
def test_public_path(mode, scale):
    G = torch.randn(3, 40, 60) / 60**0.5 * scale
    for solver, alpha in (("polynomial", 2.0), ("polynomial", 3.0), ("iterates", 1.5), ("iterates", 2.0)):
        result = spectral_newton(G, alpha, 0.3, damping_mode=mode, solver=solver, tolerance=1e-2)
        assert error_of(result, G, alpha, 0.3, mode) <= 1e-2


def test_products_beyond_the_table_stay_finite_and_along_the_gradient():
    G = 1e6 * torch.randn(8, 12)
    result = spectral_newton(G, 2.0, 0.1, solver="polynomial", tolerance=1e-2)
    assert result.isfinite().all()
    assert torch.cosine_similarity(result.flatten(), G.flatten(), dim=0) > 0.999


@pytest.mark.parametrize("alpha", [0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0])
@pytest.mark.parametrize("mode", ["absolute", "spectral"])
def test_batched_partial_fractions(alpha, mode):
    for scale in (1e-5, 0.05, 1.0):
        G = torch.randn(3, 20, 33) / 10 * scale
        levels = pole_fits(alpha, frozenset([0.1]) if mode == "spectral" else None, 1e-4)
        result = rational(G, alpha, column(0.1, 3), mode, levels)
        for g, y in zip(G, result):
            assert error_of(y, g, alpha, 0.1, mode) <= 2e-4


N = 96
K = torch.arange(N, dtype=torch.float64)
SPECTRA = {
    "1/k": 1 / (K + 1),
    "equal": torch.ones(N).double(),
    "half zero": (K < N // 2).double(),
    "rank 3": (K < 3).double(),
    "decay": torch.exp(-K / 12),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("tolerance", [1e-5, 1e-3])
def test_batched_partial_fractions_hold_the_tolerance_in_the_precision_they_choose(name, tolerance):
    U = torch.linalg.qr(torch.randn(N, N, dtype=torch.float64))[0]
    V = torch.linalg.qr(torch.randn(150, N, dtype=torch.float64))[0]
    G = ((U * SPECTRA[name]) @ V.mT).float()
    for alpha in (0.5, 0.84, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 4.5, 6.0):
        for mode in ("absolute", "spectral", "mean") if alpha in (2.0, 4.0) else ("absolute", "spectral"):
            for d in (0.1, 0.01):
                levels = pole_fits(alpha, frozenset([d]) if mode == "spectral" else None, tolerance)
                float64 = needs_float64(alpha, d, mode, (N, 150), G.dtype, tolerance)
                result = rational(G[None], alpha, column(d, 1), mode, levels, float64)
                # The last product alone rounds by up to ε/d where many directions are null.
                bound = tolerance + (0 if float64 else 3e-7 / d)
                assert error_of(result[0], G, alpha, d, mode) <= bound, (alpha, mode, d)


def test_largest_eigenvalue_where_lanczos_breaks_down():
    for sigma in SPECTRA.values():
        Q = torch.linalg.qr(torch.randn(N, N, dtype=torch.float64))[0]
        R = ((Q * sigma.square()) @ Q.mT).float()[None]
        for steps in (products.STEPS, 40):
            assert float(largest_eigenvalue(R, steps)) == pytest.approx(1.0, rel=1e-5)


def test_batched_partial_fractions_keep_zero_and_non_finite_apart():
    G = torch.randn(3, 6, 9)
    G[0] = 0.0
    G[1, 2, 3] = torch.inf
    result = rational(G, 2.0, column(0.1, 3), "absolute", pole_fits(2.0, None, 1e-4))
    assert torch.equal(result[0], torch.zeros(6, 9))
    assert result[1].isnan().all()
    assert error_of(result[2], G[2], 2.0, 0.1, "absolute") <= 1e-5


def test_largest_eigenvalue():
    for n, N in ((1, 3), (5, 5), (64, 576), (200, 200)):
        G = torch.randn(2, n, N, dtype=torch.float64)
        R = G @ G.mT
        exact = torch.linalg.eigvalsh(R)[:, -1]
        assert torch.allclose(largest_eigenvalue(R, 40), exact, rtol=1e-5)
        assert (largest_eigenvalue(R, products.STEPS) * products.MARGIN**2 >= exact).all()
    assert largest_eigenvalue(torch.zeros(1, 4, 4), 20) == 0


def test_power_of_two_scale_is_exact():
    G = torch.stack([torch.randn(3, 4) * s for s in (1e-42, 1e-30, 1.0, 1e38)] + [torch.zeros(3, 4)])
    scaled, scale = power_of_two_scale(G)
    assert torch.equal(scaled.double() * scale.double(), G.double())
    assert (scaled[:4].abs().amax((-2, -1)) < 2.0).all() and (scaled[:4].abs().amax((-2, -1)) >= 1.0).all()
