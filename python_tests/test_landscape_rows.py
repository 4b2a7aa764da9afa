"""Rows: what derives from the arrays, the diagnostics, the advice, the table."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from spectral_ext.landscape import (
    Column,
    Landscape,
    columns,
    layer_norm_diagnostic,
    measure,
    recommend,
    residual_diagnostic,
    softmax_diagnostic,
    summary,
    table,
)
from spectral_ext.landscape.cells import Cell
from spectral_ext.landscape.columns import BY_KEY
from spectral_ext.landscape.derive import derive, factor_match, rank_model_bound
from spectral_ext.landscape.mechanisms import normalized_spectrum
from spectral_ext.landscape.synthetic import synthetic_landscape, synthetic_row
from spectral_ext.signal import GroupFit, Signal
from spectral_ext.spectra import Fit, RankModels, fit_alpha
from spectral_ext.spectra.couillet_hachem import PredictionError


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
        (fit(2.1, 0.2), 2.096, "yes", True),
        (fit(1.1, 0.2), 1.136, "no", True),
        (fit(1.5, 0.1), 1.505, "no", True),
        (fit(1.6, 0.3), 1.634, "undecided", True),
        (fit(4.5, 0.2), 3.0, "no", True),
        (fit(0.2, 0.1), 0.5, "no", True),
        (fit(1.0, 0.98), 1.5, "undecided", True),  # a standard error of .5 halves the distance to 2
        (fit(1.1, 0.2, r2=0.5), 1.136, "undecided", False),
        (Fit.empty("3 points"), 2.0, "undecided", False),
    ],
)
def test_recommendation_draws_alpha_towards_two_by_its_error(alpha, expected, kronecker, trust):
    advice = recommend(alpha, np.ones(20), 0.5 ** np.arange(20))
    assert advice.alpha == pytest.approx(expected, abs=1e-3)
    assert (advice.kronecker_justified, advice.trust) == (kronecker, trust)
    assert advice.rank == 5  # 1 − 2⁻⁵ ≥ 0.95
    assert advice.reasons and advice.source == ("own batch" if alpha.ok else "fallback")


def test_the_recommended_alpha_does_not_jump():
    """No edge of an interval and no threshold of R² moves it: ends, level of R² and value change by little steps."""
    steps = [
        recommend(fit(value, half, r2), np.ones(20), np.ones(20)).alpha
        for value in np.linspace(0.6, 2.9, 40)
        for half in np.linspace(0.05, 1.5, 30)
        for r2 in (0.79, 0.81)
    ]
    grid = np.reshape(steps, (40, 30, 2))
    assert np.abs(np.diff(grid, axis=0)).max() < 0.07
    assert np.abs(np.diff(grid, axis=1)).max() < 0.07
    assert np.abs(np.diff(grid, axis=2)).max() == 0


def held_out(verdict, alpha):
    return Signal(8, np.ones(6), resolved_directions=[0, 1, 2, 3, 4], alpha=alpha, verdict=verdict)


def test_the_recommendation_follows_the_held_out_alpha():
    own = fit(2.4, 0.1)
    found = GroupFit(1.2, (1.0, 1.4), (1.1, 1.3), (1.0, 1.4), 5)
    advice = recommend(own, np.ones(20), np.ones(20), signal=held_out("signal", found))
    assert advice.alpha == pytest.approx(1.232, abs=1e-3) and advice.source == "held out" and advice.trust
    none = GroupFit.empty("0 of 20 directions are resolved")
    advice = recommend(own, np.ones(20), np.ones(20), signal=held_out("noise", none))
    assert (advice.alpha, advice.source, advice.trust) == (2.0, "fallback", False)
    assert "0 of 20 directions are resolved" in advice.reasons[0] and "noise" in advice.reasons[0]
    advice = recommend(own, np.ones(20), np.ones(20), signal=held_out("too few groups", none))
    assert advice.source == "own batch" and advice.alpha == pytest.approx(2.396, abs=1e-3)
    wide = recommend(own, np.ones(20), np.ones(20), data_interval=(1.4, 3.4))
    assert wide.alpha == pytest.approx(2 + 0.4 * 0.25 / (0.25 + 0.51**2), abs=1e-3)


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


def test_the_weight_tail_is_compared_with_s_by_both_intervals():
    row = synthetic_row("x")
    for tail, expected in ((fit(0.5, 0.1), True), (fit(9.0, 0.1), False), (fit(row.s.value - 0.01, 0.5), None)):
        row.weight = dataclasses.replace(row.weight, alpha_weight=tail)
        assert row.weight_tail_below_s is expected
    row.weight = None
    assert row.weight_tail_below_s is None


def test_the_gauss_newton_share_is_a_fraction_everywhere_and_per_cent_in_cells_only():
    row = synthetic_row("x")
    parts = [row.arrays.h_gauss_newton, *row.arrays.h_residual.values()]
    share = np.abs(parts[0]).sum() / sum(np.abs(part).sum() for part in parts)
    assert summary(row)["gauss_newton_share"] == pytest.approx(share)
    assert BY_KEY["gauss_newton_share"].cell(row).text == f"{100 * share:.0f}"
    row.arrays.h_residual = {}
    assert summary(row)["gauss_newton_share"] == 1.0


def test_one_entry_is_a_column_of_every_output(monkeypatch, tmp_path):
    extra = Column("novelty", "ν", "Twice the number of directions.", lambda r: 2 * r.num_directions,
                   lambda r: Cell(f"nov {2 * r.num_directions}"), page="first", terminal=1, tracked=True)  # fmt: skip
    monkeypatch.setattr(columns, "COLUMNS", (*columns.COLUMNS, extra))
    monkeypatch.setattr(table, "COLUMNS", columns.COLUMNS)
    monkeypatch.setattr(columns, "TERMINAL", (*columns.TERMINAL, extra))
    landscape = synthetic_landscape(1)
    assert "nov 40" in str(landscape)
    assert ",novelty" in landscape.to_csv().splitlines()[0]
    assert summary(landscape["blocks.0.conv"])["novelty"] == 40


def test_numbers_out_of_range_are_said_and_cost_nothing_else():
    row = synthetic_row("x")
    row.notes.clear()
    row.arrays.h_sop[:] = np.inf
    row.arrays.input_quotient[3:] = 0.0
    row.arrays.gn_sample[0] = np.nan
    derive(row, eigenvalues_delta=row.arrays.spectrum_delta, eigenvalues_A=row.arrays.spectrum_A)
    said = "; ".join(row.notes)
    assert "20 of 20 values of h_sop overflow" in said
    assert "1 of 20 values of gn_sample overflow or are NaN" in said
    assert "17 of 20 values of v'C_Av are zero although σ is not" in said
    assert row.alpha.ok
    assert row.recommendation is not None


@pytest.mark.parametrize("factor", [1e-150, 1e-30, 1e150])
def test_no_exponent_depends_on_the_scale_of_the_loss(factor):
    row, scaled = synthetic_row("x"), synthetic_row("x")
    arrays = scaled.arrays
    for name in ("sigma", "sigma_all", "h", "h_gauss_newton"):
        setattr(arrays, name, getattr(arrays, name) * factor)
    d, a = row.arrays.spectrum_delta, row.arrays.spectrum_A
    derive(row, eigenvalues_delta=d, eigenvalues_A=a)
    derive(scaled, eigenvalues_delta=d, eigenvalues_A=a)
    for name in ("alpha", "beta", "gamma", "s"):
        assert getattr(scaled, name).value == pytest.approx(getattr(row, name).value, rel=1e-9)
    assert scaled.r2_h_sigma2 == pytest.approx(row.r2_h_sigma2, rel=1e-9)
    assert scaled.pr_curvature == pytest.approx(row.pr_curvature)
    assert scaled.log_correlation == pytest.approx(row.log_correlation)


def test_a_solver_that_fails_costs_one_number_and_leaves_a_note(monkeypatch):
    def fail(*arguments, **options):
        raise PredictionError("Couillet–Hachem fixed point: 3 of 600 grid points did not converge")

    monkeypatch.setattr("spectral_ext.landscape.derive.predict_singular_values", fail)
    row = synthetic_row("x")
    assert row.prediction is None
    assert any("did not converge" in note for note in row.notes)
    assert row.alpha.ok


@pytest.mark.parametrize("n", [5, 64, 130])
def test_normalized_spectrum_is_that_on_the_complement_of_the_constant_vector(n):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40 * n, n, dtype=torch.float64, generator=generator)
    x = torch.nn.functional.layer_norm(x, (n,))
    C = x.mT @ x / len(x)
    found = normalized_spectrum(C, centred=True)
    whole = torch.linalg.eigvalsh(C).flip(0).numpy()
    np.testing.assert_allclose(found, whole[: n - 1], rtol=1e-10)
    assert len(normalized_spectrum(C, centred=False)) == n


@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm_diagnostic_takes_out_weight_and_bias(affine):
    torch.manual_seed(0)
    net = nn.Sequential(nn.LayerNorm(24, elementwise_affine=affine), nn.Linear(24, 6))
    if affine:
        nn.init.uniform_(net[0].weight, 0.2, 3.0)
        nn.init.normal_(net[0].bias, std=2.0)
    x, y = torch.randn(600, 24), torch.randint(6, (600,))
    found = measure(net, nn.CrossEntropyLoss(), [(x, y)], top_k=4, progress=False)["1"].layer_norm
    normalized = torch.nn.functional.layer_norm(x.double(), (24,))
    eigenvalues = torch.linalg.eigvalsh(normalized.mT @ normalized / 600)[1:]
    assert found.behind_norm
    assert found.rank == 23
    assert found.condition == pytest.approx(float(eigenvalues[-1] / eigenvalues[0]), rel=1e-3)
    assert found.reason == ""


def test_layer_norm_diagnostic_says_where_weight_and_bias_hide_the_normalized_input():
    torch.manual_seed(0)
    net = nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 6))
    with torch.no_grad():
        net[0].weight.copy_(torch.logspace(-3, 1, 24))
        net[0].bias.fill_(30.0)
    batch = torch.randn(200, 24), torch.randint(6, (200,))
    found = measure(net, nn.CrossEntropyLoss(), [batch], top_k=4, progress=False)["1"].layer_norm
    assert np.isnan(found.condition)
    assert "too few digits" in found.reason
    exact = measure(net.double(), nn.CrossEntropyLoss(), [(batch[0].double(), batch[1])], top_k=4, progress=False)["1"]
    assert exact.layer_norm.condition < 10
