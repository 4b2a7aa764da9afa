"""Exponents on spectra whose law is known: values, intervals at their nominal rate, and bad input."""

import numpy as np
import pytest
import torch

from spectral_ext.spectra import (
    Fit,
    FitError,
    alpha_by_quartile,
    check_transfer,
    fit_alpha,
    fit_gamma,
    fit_rank_models,
    fit_s,
    log_correlation,
    squared_correlation,
)

K = np.arange(1, 21, dtype=float)


def test_exact_laws_are_recovered():
    sigma = 0.3 * K**-0.8
    h = 5.0 * sigma**1.7
    assert fit_alpha(sigma, h).value == pytest.approx(1.7, abs=1e-12)
    assert fit_gamma(sigma).value == pytest.approx(0.8, abs=1e-12)
    assert fit_s(h).value == pytest.approx(1.36, abs=1e-12)
    assert fit_alpha(sigma, h).r2 == pytest.approx(1.0, abs=1e-12)
    assert np.exp(fit_alpha(sigma, h).intercept) == pytest.approx(5.0)


def test_tensors_of_any_dtype_and_scale():
    sigma = torch.tensor(K**-0.8)
    for scale in (1e-30, 1.0, 1e30):
        assert fit_alpha(scale * sigma, sigma**2).value == pytest.approx(2.0, abs=1e-12)
    assert fit_gamma(sigma.float().requires_grad_()).value == pytest.approx(0.8, abs=1e-6)
    assert fit_gamma(sigma.bfloat16()).value == pytest.approx(0.8, abs=1e-2)


def test_s_sorts_the_positive_curvatures():
    h = np.array([3.0, -1.0, 9.0, 0.0, 1.0, 27.0])
    fit = fit_s(h)
    assert fit.n == 4
    assert fit.excluded == 2
    assert fit.value == pytest.approx(-np.polyfit(np.log([1, 2, 3, 4]), np.log([27, 9, 3, 1]), 1)[0])


def test_alpha_leaves_out_what_is_not_positive():
    sigma = K**-1.0
    h = sigma**2
    h[[3, 7]] = [-1.0, 0.0]
    fit = fit_alpha(sigma, h)
    assert (fit.n, fit.excluded) == (18, 2)
    assert fit.value == pytest.approx(2.0)


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_interval_covers_at_its_nominal_rate(level):
    rng = np.random.default_rng(0)
    sigma = K**-0.9
    draws = 2000
    covered = 0
    for _ in range(draws):
        fit = fit_alpha(sigma, sigma**1.8 * np.exp(0.3 * rng.standard_normal(20)), level=level)
        covered += fit.interval[0] <= 1.8 <= fit.interval[1]
    rate, deviation = covered / draws, np.sqrt(level * (1 - level) / draws)
    assert abs(rate - level) < 4 * deviation


def test_gamma_interval_covers_at_its_nominal_rate_where_residuals_are_independent():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(1000):
        fit = fit_gamma(K**-0.7 * np.exp(0.2 * rng.standard_normal(20)))
        hits += fit.interval[0] <= 0.7 <= fit.interval[1]
    assert abs(hits / 1000 - 0.95) < 4 * np.sqrt(0.05 * 0.95 / 1000)


def test_transfer_bootstrap_covers_where_the_identity_holds():
    rng = np.random.default_rng(2)
    sigma = K**-0.8
    hits = 0
    for seed in range(150):
        h = 3 * sigma**2.0 * np.exp(0.02 * rng.standard_normal(20))
        low, high = check_transfer(sigma, h, draws=400, seed=seed).deviation_interval
        hits += low <= 0 <= high
    assert hits / 150 > 0.85


def test_transfer_error_respects_its_bound_on_curved_spectra():
    rng = np.random.default_rng(3)
    for _ in range(50):
        log_k = np.log(K)
        sigma = np.exp(-0.5 * log_k - rng.uniform(0, 0.4) * log_k**2)
        h = sigma**1.5 * np.exp(0.4 * rng.standard_normal(20))
        check = check_transfer(sigma, h, draws=20)
        assert abs(check.s_unsorted - check.alpha_gamma) <= check.bound * abs(check.alpha_gamma) * (1 + 1e-9)


def test_transfer_says_when_the_identity_fails():
    sigma = np.exp(-0.5 * np.log(K) - 0.4 * np.log(K) ** 2)
    tilt = 1 + 0.3 * np.sin(np.log(K) * 2)
    check = check_transfer(sigma, sigma**2 * tilt)
    assert check.relative_error > 0
    assert check.verdict in ("holds", "not refuted", "deviates")
    exact = check_transfer(K**-1.0, K**-2.0)
    assert exact.error < 1e-12
    assert exact.bound < 1e-6


def test_quartiles():
    sigma = np.arange(1, 41, dtype=float) ** -0.5
    h = np.where(np.arange(40) < 20, sigma**2, sigma**3)
    fits = alpha_by_quartile(sigma, h)
    assert [round(fit.value, 6) for fit in fits] == [2.0, 2.0, 3.0, 3.0]
    short = alpha_by_quartile(sigma[:10], h[:10])
    assert [fit.ok for fit in short] == [False] * 4
    assert "at least 4" in short[0].reason


@pytest.mark.parametrize(
    ("best", "spectrum"),
    [
        ("power_law", lambda k: 2.0 * k**-1.3),
        ("exponential", lambda k: 2.0 * np.exp(-0.2 * k)),
        ("lognormal", lambda k: np.exp(-0.1 * np.log(k) - 0.4 * np.log(k) ** 2)),
    ],
)
def test_rank_models_find_the_law(best, spectrum):
    k = np.arange(1, 101, dtype=float)
    sigma = spectrum(k) * np.exp(0.02 * np.random.default_rng(0).standard_normal(100))
    models = fit_rank_models(sigma)
    assert models.best == best
    assert set(models.bic) == {"power_law", "exponential", "lognormal"}
    assert models.margin > 10 or best == "power_law"
    np.testing.assert_allclose(models.predict(), spectrum(k), rtol=0.05)


def test_rank_models_of_an_exact_law_stay_finite():
    models = fit_rank_models(K**-1.0)
    assert models.best == "power_law"
    assert all(np.isfinite(value) for value in models.bic.values())


def test_r2_is_the_squared_correlation():
    x, y = np.random.default_rng(0).standard_normal((2, 30))
    assert squared_correlation(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2)
    assert np.isnan(squared_correlation(x, np.ones(30)))


def test_log_correlation():
    assert log_correlation(K**-1.0, 3 * K**-2.0) == pytest.approx(1)
    assert log_correlation([1, 2, -3, 4], [1, 0.5, 7, 0.25]) == pytest.approx(-1)
    assert np.isnan(log_correlation([], []))
    assert np.isnan(log_correlation([1, 1, 1], [1, 2, 3]))


@pytest.mark.parametrize(
    "call",
    [
        lambda: fit_alpha([1, 2, 3], [1, 2, 3]),
        lambda: fit_alpha([1, 2, 3, 4, 5], [1, -2, -3, 4, 0]),
        lambda: fit_alpha([1, 1, 1, 1, 1], [1, 2, 3, 4, 5]),
        lambda: fit_alpha([1, 2, 3, float("nan")], [1, 2, 3, 4]),
        lambda: fit_gamma([3, 2, 1]),
        lambda: fit_gamma([0, 0, 0, 0, 0]),
        lambda: fit_s([-1, -2, -3, -4]),
        lambda: fit_s([]),
        lambda: fit_rank_models([3, 2, 1]),
        lambda: fit_rank_models([4, 3, 2, float("nan")]),
        lambda: check_transfer([4, 3, 2], [4, 3, 2]),
    ],
)
def test_spectra_that_carry_no_fit_are_refused(call):
    with pytest.raises(FitError, match=r"at least 4|NaN|same abscissa"):
        call()


def test_ties_are_no_error():
    assert fit_gamma([2, 2, 1, 1, 1]).ok
    assert fit_rank_models([1.0] * 6).best == "power_law"
    assert fit_alpha([3, 2, 2, 1], [9, 4, 4, 1]).value == pytest.approx(2.0)


def test_lengths_and_shapes_must_agree():
    with pytest.raises(ValueError, match="5 abscissas and 4"):
        fit_alpha([1, 2, 3, 4, 5], [1, 2, 3, 4])
    with pytest.raises(ValueError, match="one dimension"):
        fit_gamma(np.ones((3, 3)))


def test_an_empty_fit_says_why():
    fit = Fit.empty("no data")
    assert not fit.ok
    assert "no data" in str(fit)
