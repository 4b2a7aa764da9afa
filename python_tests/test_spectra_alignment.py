"""ρ, Φ, Λ, χ: the paper's cases of known alignment, and the scale conventions."""

import numpy as np
import pytest
import torch

from spectral_ext.ops.scales import input_scale, output_scale
from spectral_ext.spectra import fit_alpha, fit_power_law
from spectral_ext.spectra.alignment import curvature_ratio, kronecker_products, rayleigh_ratio


def test_perfect_alignment_gives_ratio_one():
    eigenvalues = torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)
    Q = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    C = Q @ torch.diag(eigenvalues) @ Q.mT
    quotients = torch.einsum("mk,mn,nk->k", Q, C, Q)
    np.testing.assert_allclose(rayleigh_ratio(quotients, eigenvalues), 1.0)


def test_ratio_is_undefined_beyond_the_rank():
    ratio = rayleigh_ratio([1.0, 0.5, 1e-9], [2.0, 1.0, 1e-14, 0.0])
    assert ratio[:2].tolist() == [0.5, 0.5]
    assert np.isnan(ratio[2])
    with pytest.raises(ValueError, match="3 quotients need as many eigenvalues, there are 2"):
        rayleigh_ratio([1, 1, 1], [2, 1])


def test_decomposition_of_alpha_closes():
    """Theorem 1: with h = h_kron the slopes of Λ and Φ add up to α, for any eigenbases."""
    rng = np.random.default_rng(0)
    d, a = np.sort(rng.exponential(size=12))[::-1], np.sort(rng.exponential(size=12))[::-1]
    U, V = (np.linalg.qr(rng.standard_normal((12, 12)))[0] for _ in range(2))
    output, input = (U**2 * d[:, None]).sum(0), (V**2 * a[:, None]).sum(0)
    sigma = np.arange(1, 13) ** -0.5
    h = kronecker_products(output, input)
    Phi, Lambda = rayleigh_ratio(output, d) * rayleigh_ratio(input, a), d * a
    np.testing.assert_allclose(Phi * Lambda, h)
    slopes = fit_power_law(sigma, Phi).value + fit_power_law(sigma, Lambda).value
    assert slopes == pytest.approx(fit_alpha(sigma, h).value, abs=1e-10)


def test_curvature_ratio():
    ratio = curvature_ratio([2.0, -1.0, 1.0], [4.0, 2.0, 0.0])
    assert ratio[:2].tolist() == [0.5, -0.5]
    assert np.isnan(ratio[2])


def test_the_scale_of_the_factors_shifts_chi_and_no_exponent():
    sigma, h = np.arange(1, 11) ** -1.0, np.arange(1, 11) ** -2.2
    h_kron = 0.3 * sigma**1.9
    per_sample = input_scale("paper", 128, 16) * output_scale("paper", 128, 16)
    raw = h_kron * input_scale("sum", 128, 16) * output_scale("sum", 128, 16) / per_sample
    np.testing.assert_allclose(curvature_ratio(h, raw), curvature_ratio(h, h_kron) / (128**2 * 16))
    before, after = (fit_power_law(sigma, curvature_ratio(h, x)).value for x in (h_kron, raw))
    assert after == pytest.approx(before, abs=1e-10)
