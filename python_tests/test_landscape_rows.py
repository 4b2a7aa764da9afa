"""Rows: what derives from the arrays, the diagnostics, the advice, the table."""

import math

import numpy as np
import pytest
import torch

from spectral_ext.landscape import (
    Landscape,
    layer_norm_diagnostic,
    recommend,
    residual_diagnostic,
    softmax_diagnostic,
    summary,
)
from spectral_ext.landscape.derive import factor_match, rank_model_bound
from spectral_ext.landscape.synthetic import synthetic_landscape, synthetic_row
from spectral_ext.spectra import Fit, RankModels, fit_alpha


@pytest.mark.parametrize("alpha", [0.8, 1.0, 2.0, 3.1])
@pytest.mark.parametrize("gamma", [0.6, 1.4])
def test_known_exponents_come_back(alpha, gamma):
    row = synthetic_row("x", alpha=alpha, gamma=gamma, noise=0.02)
    assert row.alpha.value == pytest.approx(alpha, abs=0.05)
    assert row.gamma.value == pytest.approx(gamma, abs=0.05)
    assert row.s.value == pytest.approx(alpha * gamma, rel=0.05)
    assert row.alpha_gamma == pytest.approx(row.alpha.value * row.gamma.value)
    assert row.closure.full == pytest.approx(0, abs=1e-10)
    if alpha * gamma > 1:
        assert row.pr_curvature <= row.zeta_bound * 1.1
    assert row.rank_models.ok
    assert row.prediction is not None


def test_negative_curvature_is_kept_counted_and_left_out():
    row = synthetic_row("x", negative=3)
    assert row.num_nonpositive == 3
    assert (row.arrays.h < 0).sum() == 3
    assert row.alpha.n == 17
    assert row.alpha.excluded == 3
    assert any("3 of 20 h_k are ≤ 0" in note for note in row.notes)


def test_a_row_with_too_few_directions_says_why():
    row = synthetic_row("x", top_k=3)
    assert not row.alpha.ok
    assert "at least 4 are needed" in row.alpha.reason
    assert not row.rank_models.ok
    assert row.recommendation.alpha == 2.0
    assert row.recommendation.trust is False
    assert math.isfinite(row.pr_curvature)


def test_bound_of_the_winning_rank_model_bounds_the_participation_ratio():
    k = np.arange(1, 21, dtype=float)
    for spectrum in (k**-2.0, np.exp(-0.3 * k), np.exp(-0.4 * np.log(k) - 0.5 * np.log(k) ** 2)):
        from spectral_ext.spectra import fit_rank_models, participation_ratio

        assert participation_ratio(spectrum) <= rank_model_bound(fit_rank_models(spectrum)) * (1 + 1e-6)


def test_factor_match():
    def law(best):
        return RankModels(best, {best: 0.0}, {}, {}, 20)

    assert factor_match(law("exponential"), law("exponential"), law("lognormal")) == "delta"
    assert factor_match(law("lognormal"), law("exponential"), law("lognormal")) == "A"
    assert factor_match(law("lognormal"), law("lognormal"), law("lognormal")) == "both"
    assert factor_match(law("power_law"), law("exponential"), law("lognormal")) == "neither"
    assert factor_match(law("power_law"), RankModels.empty("x"), law("lognormal")) == ""


def fit(value, half, r2=0.99):
    return Fit(value, (value - half, value + half), r2, 20)


@pytest.mark.parametrize(
    ("alpha", "expected", "kronecker", "trust"),
    [
        (fit(2.1, 0.2), 2.0, "yes", True),
        (fit(1.1, 0.2), 1.0, "no", True),
        (fit(1.5, 0.1), 1.5, "no", True),
        (fit(1.6, 0.3), 1.6, "undecided", True),
        (fit(4.5, 0.2), 3.0, "no", True),
        (fit(0.2, 0.1), 0.5, "no", True),
        (fit(1.1, 0.2, r2=0.5), 2.0, "undecided", False),
        (Fit.empty("3 points"), 2.0, "undecided", False),
    ],
)
def test_recommendation_follows_the_interval(alpha, expected, kronecker, trust):
    advice = recommend(alpha, np.ones(20), 0.5 ** np.arange(20))
    assert (advice.alpha, advice.kronecker_justified, advice.trust) == (expected, kronecker, trust)
    assert advice.rank == 5  # 1 − 2⁻⁵ ≥ 0.95
    assert advice.reasons


def test_recommendation_heeds_the_concentration_ratio():
    assert recommend(fit(2.0, 0.1), np.full(20, 5.0), np.ones(20)).kronecker_justified == "no"
    assert recommend(fit(2.0, 0.1), [], np.ones(20)).kronecker_justified == "undecided"
    assert recommend(fit(2.0, 0.1), np.ones(20), -np.ones(20)).rank == 0


def test_layer_norm_diagnostic():
    sigma = np.arange(1, 11) ** -1.0
    found = layer_norm_diagnostic(sigma, np.full(10, 0.3) * sigma**0.0, [4.0, 2.0, 1.0, 1e-9])
    assert found.condition == 4
    assert found.rank == 3
    assert found.slope.value == pytest.approx(0, abs=1e-12)


def test_residual_diagnostic():
    torch.manual_seed(0)
    A, B = (torch.randn(40, 200) for _ in range(2))
    C = A @ A.mT
    sigma = np.arange(1, 11) ** -1.0
    same = residual_diagnostic(C, 3 * C, sigma, sigma, k=5)
    assert same.alignment == pytest.approx(1)
    assert same.overlap == pytest.approx(1)
    assert same.slope.value == pytest.approx(1)
    other = residual_diagnostic(C, B @ B.mT, sigma, sigma, k=5)
    assert other.overlap < 0.4
    with pytest.raises(ValueError, match="differ in shape"):
        residual_diagnostic(C, torch.eye(3), sigma, sigma)


def test_softmax_diagnostic():
    torch.manual_seed(0)
    errors = torch.randn(500, 10, dtype=torch.float64)
    errors = errors - errors.mean(1, keepdim=True)
    C = errors.mT @ errors / 500
    U = torch.linalg.eigh(C)[1].flip(1)
    quotients = torch.einsum("mk,mn,nk->k", U, C, U).clamp(min=0)
    found = softmax_diagnostic(C, quotients)
    assert found.is_softmax
    assert (found.classes, found.rank) == (10, 9)
    assert found.drop < 1e-6
    assert not softmax_diagnostic(C + torch.eye(10), quotients).is_softmax


def test_table_and_frame():
    landscape = synthetic_landscape()
    text = str(landscape)
    for name, row in landscape.items():
        assert name in text
        assert row.empty_reason in text
    frame = pytest.importorskip("pandas") and landscape.to_frame()
    assert list(frame.index) == list(landscape)
    assert frame.loc["blocks.0.conv", "alpha"] == landscape["blocks.0.conv"].alpha.value
    assert set(frame.columns) == set(summary(landscape["head"])) - {"name"}
    assert list(Landscape({}).to_frame().columns) == list(frame.columns)


def test_alpha_of_a_row_is_fit_alpha():
    row = synthetic_row("x", seed=3)
    assert row.alpha == fit_alpha(row.arrays.sigma, row.arrays.h)


def test_large_factors_give_their_top_eigenvalues(monkeypatch):
    from spectral_ext.landscape import build

    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(400, 300, dtype=torch.float64, generator=generator) * torch.arange(1, 301) ** -0.7
    C = rows.mT @ rows / 400
    whole = build.eigenvalues(C, 20)
    monkeypatch.setattr(build, "FULL_SPECTRUM", 100)
    top = build.eigenvalues(C, 20)
    assert (len(whole), len(top)) == (300, 100)
    np.testing.assert_allclose(top, whole[:100], rtol=1e-8)
