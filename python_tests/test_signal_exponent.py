"""α from group-wise σ̃ and h̃: coverage of its interval for a planted law, and the cases of bad input."""

import numpy as np
import pytest
from scipy import stats

from spectral_ext.signal import cross_fit, fit_alpha_from_groups, fit_noise_exponent
from spectral_ext.signal.cross_fitting import top_singular_vectors
from spectral_ext.spectra import FitError, fit_alpha

K = np.arange(1, 21.0)


def measured(rng, kind, alpha=2.0, groups=8):
    """(σ̃_jk, h̃_jk) around h = σ^α: relative errors per group, their dependence, and scatter of the law by kind."""
    sigma_error, h_error, scatter = {"scatter": (0.05, 0.1, 0.3), "noisy": (0.4, 0.8, 0.1)}.get(kind, (0.2, 0.4, 0.1))
    x, y = rng.standard_normal((2, groups, len(K)))
    if kind == "common factor":
        x, y = (np.sqrt(0.5) * (e + rng.standard_normal((groups, 1)) * np.linspace(1, -1, len(K))) for e in (x, y))
    if kind == "AR(1)":
        for e in (x, y):
            for k in range(1, len(K)):
                e[:, k] = 0.6 * e[:, k - 1] + 0.8 * e[:, k]
    spread = K**0.3 if kind == "heteroscedastic" else 1.0
    y = 0.5 * x + np.sqrt(0.75) * y
    sigma = K**-0.8
    h = sigma**alpha * np.exp(scatter * rng.standard_normal(len(K)))
    return sigma * (1 + sigma_error * spread * x), h * (1 + h_error * spread * y)


@pytest.mark.parametrize("kind", ["iid", "AR(1)", "common factor", "heteroscedastic", "noisy", "scatter"])
def test_the_interval_covers_a_planted_law_at_its_level(kind):
    rng = np.random.default_rng(len(kind))
    runs, hit, error, inner = 300, 0, [], 0
    for _ in range(runs):
        sigma, h = measured(rng, kind)
        keep = stats.ttest_1samp(sigma, 0, alternative="greater").pvalue < 0.05 / len(K)
        if keep.sum() < 4:
            continue
        fit = fit_alpha_from_groups(sigma[:, keep], h[:, keep])
        hit += fit.interval[0] <= 2 <= fit.interval[1]
        mean_h = h[:, keep].mean(0)
        ols = fit_alpha(sigma[:, keep].mean(0), mean_h)
        inner += ols.interval[0] <= 2 <= ols.interval[1]
        error.append(fit.value - 2)
    runs = len(error)
    assert runs > 250
    # Nominal .95 ± .03, and three standard errors of the simulation (.0126 each).
    assert 0.92 - 0.02 <= hit / runs <= 0.98 + 0.02
    assert abs(np.mean(error)) < 0.1
    if kind in ("AR(1)", "common factor"):
        assert inner / runs < 0.85  # the least-squares interval knows nothing of dependence


def test_attenuation_is_corrected():
    """Errors of σ̃ flatten a least-squares slope; the correction takes the bias out."""
    rng = np.random.default_rng(3)
    plain, corrected = [], []
    sigma = np.linspace(1.0, 1.6, 20)
    for _ in range(200):
        S = sigma * (1 + 0.2 * rng.standard_normal((8, 20)))
        H = sigma**2 * (1 + 0.1 * rng.standard_normal((8, 20)))
        plain.append(fit_alpha(S.mean(0), H.mean(0)).value)
        corrected.append(fit_alpha_from_groups(S, H).value)
    assert np.mean(plain) < 1.75
    assert abs(np.mean(corrected) - 2) < 0.06


def test_nonpositive_h_takes_part_and_does_not_bias():
    """h̃ ≤ 0 that noise explains: dropping them flattens α to about 1.6, using them does not."""
    rng = np.random.default_rng(4)
    sigma = K**-0.8
    dropped, used, count = [], [], 0
    for _ in range(200):
        S = sigma * (1 + 0.02 * rng.standard_normal((8, 20)))
        H = sigma**2 + 4 * sigma[-1] ** 2 * np.sqrt(8) * rng.standard_normal((8, 20))
        dropped.append(fit_alpha(S.mean(0), H.mean(0)).value)
        try:
            fit = fit_alpha_from_groups(S, H)
        except FitError:
            continue
        used.append(fit.value)
        count += fit.num_nonpositive
    assert len(used) >= 197 and count > 200
    assert np.mean(dropped) < 1.75
    assert abs(np.mean(used) - 2) < 0.05


def test_exact_values_give_the_exponent_and_intervals_nest():
    sigma, h = np.tile(K**-1.0, (5, 1)), np.tile(3 * K**-1.5, (5, 1))
    fit = fit_alpha_from_groups(sigma, h)
    assert fit.value == pytest.approx(1.5, abs=1e-9) and fit.n == 20 and fit.ok
    rng = np.random.default_rng(0)
    fit = fit_alpha_from_groups(*measured(rng, "iid"))
    for part in (fit.fit_interval, fit.data_interval):
        assert fit.interval[0] <= part[0] <= fit.value <= part[1] <= fit.interval[1]
    assert len(fit.influence) == 8 and str(fit).startswith(f"{fit.value:.2f} [")


def test_the_influence_is_that_of_a_jackknife():
    rng = np.random.default_rng(2)
    S, H = measured(rng, "scatter")
    fit = fit_alpha_from_groups(S, H)
    out = np.array([fit_alpha_from_groups(np.delete(S, j, 0), np.delete(H, j, 0)).value for j in range(8)])
    jackknife = np.sqrt(7 / 8 * np.square(out - out.mean()).sum())
    first_order = np.sqrt(8 / 7 * fit.influence @ fit.influence)
    assert first_order == pytest.approx(jackknife, rel=0.25)


def test_planted_gradients_and_curvature_from_end_to_end():
    """Rank-8 gradient in noise, Hessian Σ_i c σ_i^1.5 D_i⊗D_i that each group sees with an error of its own."""
    torch = pytest.importorskip("torch")
    rng, generator = np.random.default_rng(1), torch.Generator().manual_seed(1)
    hit, resolved, runs = 0, [], 60
    for _ in range(runs):
        groups, m, n, rank = 8, 24, 32, 8
        U = torch.linalg.qr(torch.randn(m, rank, dtype=torch.float64, generator=generator))[0]
        V = torch.linalg.qr(torch.randn(n, rank, dtype=torch.float64, generator=generator))[0]
        sigma = 3 * (24**0.5 + 32**0.5) / 8**0.5 * (torch.arange(1, 9) / 8.0) ** -0.9
        errors = torch.randn(groups, m, n, dtype=torch.float64, generator=generator)
        gradients = list((U * sigma) @ V.T + errors)
        fit = cross_fit(gradients, top_k=12)
        total = sum(gradients)
        h = np.zeros((groups, 12))
        for j, g in enumerate(gradients):
            u, v = top_singular_vectors(total - g, 12)
            seen = sigma.numpy() ** 1.5 * (1 + 0.3 * rng.standard_normal(8))
            h[j] = (seen[:, None] * ((U.T @ u) * (V.T @ v)).numpy() ** 2).sum(0) + 0.05 * rng.standard_normal(12)
        alpha = fit_alpha_from_groups(fit.folds[:, fit.resolved], h[:, fit.resolved])
        hit += alpha.interval[0] <= 1.5 <= alpha.interval[1]
        resolved.append(fit.resolved[:8].sum())
    assert np.mean(resolved) >= 7.5
    assert hit / runs >= 0.88


@pytest.mark.parametrize(
    "sigma, h, match",
    [
        (np.ones((2, 5)), np.ones((2, 5)), "2 groups"),
        (np.ones((4, 3)), np.ones((4, 3)), "3 resolved directions"),
        (-np.ones((4, 5)), np.ones((4, 5)), "not positive"),
        (np.tile(K[:5], (4, 1)), -np.ones((4, 5)), "no held-out curvature is positive"),
        (np.full((4, 5), np.nan), np.ones((4, 5)), "NaN"),
    ],
)
def test_data_that_cannot_carry_the_fit(sigma, h, match):
    with pytest.raises(FitError, match=match):
        fit_alpha_from_groups(sigma, h)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="one shape"):
        fit_alpha_from_groups(np.ones((4, 5)), np.ones((4, 6)))


@pytest.mark.parametrize("gamma", [1.0, 1.5, 2.0])
def test_noise_exponent_of_a_planted_noise_law(gamma):
    rng = np.random.default_rng(5)
    h = K**-1.2
    samples = rng.standard_normal((60, 200, 20)) * np.sqrt(h**gamma)
    values = [fit_noise_exponent(one.var(0), h).value for one in samples]
    assert np.mean(values) == pytest.approx(gamma, abs=0.06)
    with pytest.raises(FitError):
        fit_noise_exponent(samples[0].var(0), -h)
