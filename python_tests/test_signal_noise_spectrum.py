"""The predicted singular values of a gradient of noise, against simulated ones."""

import numpy as np
import pytest

from spectral_ext.signal import noise_level
from spectral_ext.signal.noise_spectrum import sample_correlation, upper_edge
from spectral_ext.spectra import FitError

rng = np.random.default_rng(0)
PROFILES = {
    "white": (np.ones(60), np.ones(150)),
    "power laws": (np.arange(1, 61.0) ** -0.7, np.arange(1, 151.0) ** -1.0),
    "tall": (np.arange(1, 151.0) ** -0.5, np.ones(40)),
}


def test_edge_and_scale_of_a_white_matrix_are_those_of_marchenko_pastur_and_johnstone():
    m, n = 100, 400
    edge, scale = upper_edge(np.full(m, 2.0), np.full(n, 3.0))
    assert edge == pytest.approx(6 * (m**0.5 + n**0.5) ** 2, rel=1e-8)
    johnstone = 6 * (m**0.5 + n**0.5) * (m**-0.5 + n**-0.5) ** (1 / 3)
    assert scale == pytest.approx(johnstone, rel=1e-3)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_gradient_of_noise_lies_below_the_threshold(profile):
    """δ and a independent with mean zero, the factors estimated from the same samples, as a user has them."""
    d, e = PROFILES[profile]
    samples, runs = 1500, 60
    above, ratio = 0, []
    for _ in range(runs):
        delta = rng.standard_normal((samples, len(d))) * np.sqrt(d)
        a = rng.standard_normal((samples, len(e))) * np.sqrt(e)
        G = delta.T @ a / samples
        sigma = np.linalg.svd(G, compute_uv=False)
        rows, columns = (np.linalg.eigvalsh(x.T @ x / samples) for x in (delta, a))
        found = noise_level(rows, columns, sigma[:20], samples=samples)
        above += found.num_beyond > 0
        ratio.append(sigma[:20] / found.sigma)
    assert above <= 0.05 * runs + 2 * (0.05 * 0.95 * runs) ** 0.5
    mean = np.mean(ratio, axis=0)
    assert np.abs(mean - 1).max() < (0.04 if profile == "white" else 0.12), mean


def test_planted_signal_lies_beyond():
    d, e = PROFILES["power laws"]
    samples = 1000
    noise = np.sqrt(d)[:, None] * rng.standard_normal((len(d), len(e))) * np.sqrt(e) / samples**0.5
    edge = noise_level(d, e, np.zeros(1), samples=samples).edge
    U, V = (np.linalg.qr(rng.standard_normal((size, 8)))[0] for size in (len(d), len(e)))
    signal = 3 * edge * np.arange(8, 0, -1) / 4
    G = noise + (U * np.maximum(signal, 3 * edge)) @ V.T
    found = noise_level(d, e, np.linalg.svd(G, compute_uv=False)[:20], samples=samples)
    assert found.num_beyond == 8
    assert found.edge < found.threshold < 1.3 * found.edge


@pytest.mark.parametrize("common", [0.0, 1.0])
def test_effective_positions_of_independent_and_of_equal_positions(common):
    """S = 9 positions: independent ones count 9 times, equal ones once."""
    samples, positions, m, n = 4000, 9, 6, 8
    d = rng.standard_normal((samples, 1 if common else positions, m)) * np.ones((1, positions, 1))
    a = rng.standard_normal((samples, 1 if common else positions, n)) * np.ones((1, positions, 1))
    each = np.einsum("bsm,bsn->bmn", d, a)
    G = each.mean(0)
    C_delta, C_A = np.einsum("bsm,bsk->mk", d, d) / samples, np.einsum("bsm,bsk->mk", a, a) / samples / positions
    U, sigma, Vh = np.linalg.svd(G, full_matrices=False)
    per_sample = np.square(np.einsum("mk,bmn,kn->bk", U, each, Vh)).mean(0)
    h_kron = np.einsum("mk,mj,jk->k", U, C_delta, U) * np.einsum("kn,nj,kj->k", Vh, C_A, Vh)
    kappa = sample_correlation(per_sample, sigma, h_kron)
    found = noise_level(
        np.linalg.eigvalsh(C_delta),
        np.linalg.eigvalsh(C_A),
        sigma,
        samples=samples,
        positions=positions,
        correlation=kappa,
    )
    assert found.effective_positions == pytest.approx(1.0 if common else 9.0, rel=0.1)
    assert 0.7 < found.sigma[0] / sigma[0] < 1.3
    assert found.num_beyond == 0


def test_scaling_of_the_level_with_samples_and_correlation():
    d, e = PROFILES["tall"]
    one = noise_level(d, e, np.ones(3), samples=100)
    other = noise_level(d, e, np.ones(3), samples=400, correlation=16.0)
    np.testing.assert_allclose(other.sigma, 2 * one.sigma)
    assert other.threshold == pytest.approx(2 * one.threshold)


def test_bad_input():
    with pytest.raises(ValueError, match="positive"):
        noise_level(np.ones(3), np.ones(3), np.ones(3), samples=0)
    with pytest.raises(FitError, match="factor is zero"):
        noise_level(np.zeros(3), np.ones(3), np.ones(3), samples=5)
    with pytest.raises(FitError, match="no direction"):
        sample_correlation([0.0], [1.0], [1.0])
