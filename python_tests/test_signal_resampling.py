"""The jackknife over groups: coverage under dependence between directions, and paired differences."""

import numpy as np
import pytest

from spectral_ext.signal import jackknife, jackknife_difference, own_batch_intervals
from spectral_ext.signal.own_batch import FactorMoments
from spectral_ext.spectra import FitError, fit_alpha, fit_gamma, fit_s

K = np.arange(1, 21.0)
SIGMA = K**-0.8


def residuals(rng, kind, groups):
    e = rng.standard_normal((groups, len(K)))
    if kind == "AR(1)":
        for k in range(1, len(K)):
            e[:, k] = 0.6 * e[:, k - 1] + 0.8 * e[:, k]
    if kind == "common factor":
        e[:, :3] = rng.standard_normal((groups, 1))
    if kind == "heteroscedastic":
        e *= np.linspace(0.2, 2.0, len(K))
    return 0.3 * e


def alpha(sigma, h):
    return fit_alpha(sigma, h).value


@pytest.mark.parametrize("kind", ["iid", "AR(1)", "common factor", "heteroscedastic"])
@pytest.mark.parametrize("groups", [8, 16])
def test_coverage_of_the_data_interval(kind, groups):
    """Residuals differ between groups; least squares over directions would cover 45 to 75 % under dependence."""
    rng = np.random.default_rng(len(kind) + groups)
    runs = 600
    hits = 0
    for _ in range(runs):
        h = SIGMA**2 * np.exp(residuals(rng, kind, groups))
        found = jackknife(alpha, np.tile(SIGMA, (groups, 1)), h)
        truth = fit_alpha(SIGMA, SIGMA**2 * expected(kind)).value
        hits += found.interval[0] <= truth <= found.interval[1]
    # .92 to .97, and two standard errors of the simulation (.009 each).
    assert 0.92 - 0.018 <= hits / runs <= 0.97 + 0.018


def expected(kind):
    """E exp(e) of the residuals, which the mean over groups estimates."""
    spread = 0.3 * (np.linspace(0.2, 2.0, len(K)) if kind == "heteroscedastic" else np.ones(len(K)))
    return np.exp(spread**2 / 2)


def test_coverage_for_every_exponent_at_once():
    """α, γ, s, σ_k and h_k of one statistic, from groups whose σ and h both vary."""
    rng = np.random.default_rng(5)
    runs, groups = 400, 8
    truth = np.concatenate([[2.0, 0.8, 1.6], SIGMA[[0, 10]], SIGMA[[0, 10]] ** 2])
    hits = np.zeros(len(truth))

    def statistic(sigma, h):
        exponents = [fit_alpha(sigma, h).value, fit_gamma(sigma).value, fit_s(h).value]
        return np.concatenate([exponents, sigma[[0, 10]], h[[0, 10]]])

    for _ in range(runs):
        sigma = SIGMA * (1 + 0.1 * rng.standard_normal((groups, len(K))))
        h = SIGMA**2 * (1 + 0.2 * rng.standard_normal((groups, len(K))))
        found = jackknife(statistic, sigma, h)
        hits += (found.interval[0] <= truth) & (truth <= found.interval[1])
    coverage = hits / runs
    assert (coverage >= 0.92 - 0.022).all() and (coverage <= 0.97 + 0.02).all(), coverage


def test_the_mean_has_its_textbook_interval():
    values = np.array([1.0, 2.0, 4.0, 9.0])
    found = jackknife(lambda m: m, values)
    assert found.value == 4.0
    assert found.se == pytest.approx(values.std(ddof=1) / 2)
    assert found.interval[1] - 4.0 == pytest.approx(3.182446 * found.se, rel=1e-6)


def test_weights_are_samples():
    values = np.array([[1.0], [3.0], [5.0], [5.0]])
    weights = [1, 2, 3, 4]
    found = jackknife(lambda m: m, values, weights=weights)
    assert found.value[0] == pytest.approx(4.2)
    assert found.replicates[0, 0] == pytest.approx((6 + 15 + 20) / 9)


def test_a_difference_on_the_same_groups_uses_their_covariance():
    rng = np.random.default_rng(1)
    common = rng.standard_normal((8, 20)) * 0.3
    one = jackknife(alpha, np.tile(SIGMA, (8, 1)), SIGMA**2 * np.exp(common))
    other = jackknife(alpha, np.tile(SIGMA, (8, 1)), SIGMA**2.2 * np.exp(common + 0.02 * rng.standard_normal((8, 20))))
    paired = jackknife_difference(one, other)
    assert paired.value == pytest.approx(other.value - one.value)
    assert paired.se < 0.2 * np.hypot(one.se, other.se)
    assert paired.interval[0] <= 0.2 <= paired.interval[1]
    with pytest.raises(ValueError, match="same groups"):
        jackknife_difference(one, jackknife(alpha, np.tile(SIGMA, (7, 1)), np.tile(SIGMA, (7, 1))))


def test_a_replicate_that_cannot_be_fitted_gives_no_interval():
    sigma = np.tile(SIGMA[:5], (4, 1))
    h = sigma**2 - 0.2
    h[0] += 1.0
    assert fit_alpha(sigma.mean(0), h.mean(0)).ok
    found = jackknife(alpha, sigma, h)
    assert np.isfinite(found.value) and np.isnan(found.se)
    with pytest.raises(FitError):
        jackknife(alpha, sigma, -np.ones((4, 5)))


def test_bad_groups():
    with pytest.raises(ValueError, match="at least 3 groups"):
        jackknife(np.sum, np.ones((2, 4)))
    with pytest.raises(ValueError, match="different numbers"):
        jackknife(np.add, np.ones((3, 4)), np.ones((4, 4)))


def test_own_batch_intervals_of_every_exponent():
    rng = np.random.default_rng(2)
    sigma = SIGMA * (1 + 0.05 * rng.standard_normal((8, 20)))
    h = SIGMA**2 * (1 + 0.1 * rng.standard_normal((8, 20)))
    found = own_batch_intervals(sigma, h)
    assert found.alpha == pytest.approx(jackknife(alpha, sigma, h).interval)
    for name, truth in (("alpha", 2.0), ("gamma", 0.8), ("s", 1.6)):
        low, high = getattr(found, name)
        assert low < truth < high and high - low < 0.3
    np.testing.assert_allclose(found.h_se, h.std(0, ddof=1) / 8**0.5)
    assert len(found.replicates["alpha"]) == 8
    assert np.isnan(own_batch_intervals(sigma, -h).alpha[0])
    with pytest.raises(ValueError, match="at least 3 groups"):
        own_batch_intervals(sigma[:2], h[:2])


def test_intervals_of_beta_and_phi_from_moments_of_groups():
    """Λ ∝ σ^1.5 and Φ ∝ σ^0.5 in every group up to its own error; rows of the input differ from samples."""
    rng = np.random.default_rng(4)
    groups = 8
    rows = np.array([10.0, 20, 10, 20, 10, 20, 10, 20])

    def moments(power):
        return SIGMA**power * (1 + 0.05 * rng.standard_normal((groups, len(K))))

    factors = FactorMoments(moments(1.2), moments(0.8), moments(1.0), moments(0.5), rows)
    sigma, h = moments(1.0), moments(2.0)
    found = own_batch_intervals(sigma, h, factors=factors)
    for name, truth in (("beta", 1.5), ("phi", 0.5)):
        low, high = getattr(found, name)
        assert low < truth < high and high - low < 0.3
    j = 3
    keep = np.arange(groups) != j
    weights = rows[keep] / rows[keep].sum()
    eigenvalues = factors.eigen_output[keep].mean(0) * (weights @ factors.eigen_input[keep])
    slope = np.polyfit(np.log(sigma[keep].mean(0)), np.log(eigenvalues), 1)[0]
    assert found.replicates["beta"][j] == pytest.approx(slope, rel=1e-9)


def test_the_interval_of_s_knows_that_other_samples_bring_other_directions():
    """Directions scatter around the law, and the groups agree: the jackknife alone would say that s is exact."""
    rng = np.random.default_rng(6)
    hits, alone, runs = 0, 0, 200
    drawn = SIGMA**2 * np.exp(0.3 * rng.standard_normal((runs, len(K))))
    mean = np.mean([fit_s(h).value for h in drawn])
    for h in drawn:
        groups = h * (1 + 0.02 * rng.standard_normal((8, len(K))))
        low, high = own_batch_intervals(np.tile(SIGMA, (8, 1)), groups).s
        hits += low <= mean <= high
        one = jackknife(lambda h: fit_s(h).value, groups)
        alone += one.interval[0] <= mean <= one.interval[1]
    assert hits / runs > 0.8 and alone / runs < 0.4
