"""The Couillet–Hachem distribution against closed forms and against simulated matrices."""

import numpy as np
import pytest

from spectral_ext.spectra import predict_singular_values, predicted_rank_law, separable_distribution
from spectral_ext.spectra.couillet_hachem import PredictionError


def test_flat_factors_give_marchenko_pastur():
    m, n = 200, 800
    x, tail = separable_distribution(np.ones(m), np.ones(n))
    c = m / n
    low, high = (1 - np.sqrt(c)) ** 2, (1 + np.sqrt(c)) ** 2
    grid = np.linspace(low, high, 20001)
    density = np.sqrt(np.maximum((high - grid) * (grid - low), 0)) / (2 * np.pi * c * grid)
    cdf = np.cumsum(density) * (grid[1] - grid[0])
    at = np.linspace(low * 1.05, high * 0.95, 30)
    ours = 1 - np.interp(np.log(at), np.log(x), tail)
    np.testing.assert_allclose(ours, np.interp(at, grid, cdf), atol=0.01)


@pytest.mark.parametrize(("m", "n", "decay"), [(64, 576, 1.0), (200, 100, 2.0), (50, 50, 0.5), (12, 300, 1.5)])
def test_prediction_of_simulated_gradients(m, n, decay):
    rng = np.random.default_rng(0)
    d, e = 5.0 * np.arange(1, m + 1) ** -decay, 0.3 * np.arange(1, n + 1) ** (-0.7 * decay)
    draws = [
        np.linalg.svd(np.sqrt(d)[:, None] * rng.standard_normal((m, n)) * np.sqrt(e), compute_uv=False)
        for _ in range(12)
    ]
    found = predict_singular_values(d, e, np.mean(draws, 0), top=5)
    assert found.ks < 0.1
    assert found.log_rms < 0.1
    assert np.square(found.sigma).sum() == pytest.approx(np.square(np.mean(draws, 0)).sum())
    wrong = predict_singular_values(np.ones(m), np.ones(n), np.mean(draws, 0), top=5)
    assert wrong.log_rms > 2 * found.log_rms


def test_scale_is_one_for_independent_samples():
    rng = np.random.default_rng(1)
    B, m, n = 400, 20, 30
    d, a = rng.standard_normal((B, m)), rng.standard_normal((B, n))
    G = d.T @ a / B
    found = predict_singular_values(
        np.linalg.eigvalsh(d.T @ d / B), np.linalg.eigvalsh(a.T @ a / B), np.linalg.svd(G, compute_uv=False), samples=B
    )
    assert found.scale == pytest.approx(1.0, abs=0.15)
    assert found.ks < 0.1


def test_rank_deficient_factor():
    d = np.concatenate([np.ones(9), np.zeros(1)])
    rng = np.random.default_rng(0)
    sigma = np.linalg.svd(np.sqrt(d)[:, None] * rng.standard_normal((10, 64)), compute_uv=False)
    found = predict_singular_values(d, np.ones(64), sigma)
    assert found.top == 9
    assert found.log_rms < 0.15


def test_bad_input():
    with pytest.raises(ValueError, match="all eigenvalues are zero"):
        separable_distribution(np.zeros(4), np.ones(4))
    with pytest.raises(ValueError, match="NaN"):
        separable_distribution([1.0, float("nan")], np.ones(4))
    with pytest.raises(ValueError, match="pass all of them"):
        predict_singular_values(np.ones(4), np.ones(5), np.ones(3))
    with pytest.raises(ValueError, match="gradient is zero"):
        predict_singular_values(np.ones(4), np.ones(5), np.zeros(4))


def test_rank_rule():
    assert predicted_rank_law(4.7, 50.0) == "exponential"
    assert predicted_rank_law(19.4, 50.0) == "lognormal"
    assert predicted_rank_law(float("nan"), 50.0) == ""


@pytest.mark.parametrize("rank", [16, 24, 40])
def test_the_distance_is_taken_over_the_positive_part(rank):
    rng = np.random.default_rng(3)
    B, m, n = 4000, 64, 80
    d = rng.normal(size=(B, rank)) @ rng.normal(size=(rank, m)) / rank**0.5
    a = rng.normal(size=(B, n)) * np.linspace(1, 0.2, n)
    spectra = [np.linalg.eigvalsh(one.T @ one / B)[::-1].clip(0) for one in (d, a)]
    found = predict_singular_values(*spectra, np.linalg.svd(d.T @ a / B, compute_uv=False), samples=B, top=10)
    assert found.compared == rank
    assert found.ks < 0.1
    other = predict_singular_values(np.ones(m), *spectra[1:], np.linalg.svd(d.T @ a / B, compute_uv=False), top=10)
    assert other.ks > found.ks


@pytest.mark.parametrize("scale", [1e-290, 1e-40, 1e150])
def test_the_prediction_knows_no_scale(scale):
    d, e = np.arange(1, 13) ** -1.0, np.arange(1, 31) ** -0.7
    sigma = np.sort(np.linalg.svd(np.random.default_rng(0).normal(size=(12, 30)), compute_uv=False))[::-1]
    want, found = predict_singular_values(d, e, sigma), predict_singular_values(d * scale, e, sigma * scale)
    assert found.ks == pytest.approx(want.ks)
    assert found.log_rms == pytest.approx(want.log_rms)
    np.testing.assert_allclose(found.sigma / scale, want.sigma, rtol=1e-12)


def test_spectra_that_are_not_finite_are_refused():
    with pytest.raises(PredictionError, match="rows holds a value that is not finite"):
        predict_singular_values([np.inf, 1.0], np.ones(4), np.ones(2))
