"""What a table shows of a row, one function per column that is more than a number."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from spectral_ext.landscape.cells import Cell, alpha_cell, fit_cell, fit_remark, number
from spectral_ext.landscape.row import LayerLandscape
from spectral_ext.signal.verdict import Signal
from spectral_ext.spectra.rank_models import MODEL_NAMES


def finite_median(values: np.ndarray) -> float:
    """The median of the finite entries; NaN where there is none."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else math.nan


def gauss_newton_share(row: LayerLandscape) -> float:
    """Σ_k |Gauss–Newton part of h_k| over the same sum of all parts, from 0 to 1; NaN where a part was not measured."""
    parts = [row.arrays.h_gauss_newton, *row.arrays.h_residual.values()]
    if not len(parts[0]) or row.arrays.residual_missing:
        return math.nan
    peak = max(float(np.abs(part).max(initial=0.0)) for part in parts)
    if not 0 < peak < math.inf:
        return math.nan
    sums = [float(np.abs(part / peak).sum()) for part in parts]
    return sums[0] / sum(sums)


def relative_standard_error(row: LayerLandscape) -> float:
    """The median over k of the standard error of h_k over |h_k|; NaN where h is exact."""
    error, h = row.arrays.h_standard_error, row.arrays.h
    return finite_median(error[h != 0] / np.abs(h[h != 0])) if len(error) == len(h) else math.nan


def share_cell(row: LayerLandscape) -> Cell:
    share = gauss_newton_share(row)
    return Cell("–") if math.isnan(share) else Cell(f"{100 * share:.0f}", share)


def shape_cell(row: LayerLandscape) -> Cell:
    return Cell(f"{row.shape[0]}×{row.shape[1]}", float(row.shape[0] * row.shape[1]))


def nonpositive_cell(row: LayerLandscape) -> Cell:
    count = row.num_nonpositive
    return Cell(f"{count}/{row.num_directions}", float(count), "directions with h ≤ 0, of those measured")


def law_cell(row: LayerLandscape) -> Cell:
    models = row.rank_models
    if not models.ok:
        return Cell("–", "", models.reason)
    return Cell(MODEL_NAMES[models.best], models.best, f"ΔBIC {models.margin:.1f}", models.margin < 2)


def transfer_cell(row: LayerLandscape) -> Cell:
    check = row.transfer
    if not check.ok:
        return Cell("–", "", check.reason)
    low, high = check.deviation_interval
    remark = f"s − αγ in [{low:.2f}, {high:.2f}], relative error {check.relative_error:.1%}"
    return Cell(check.verdict, check.verdict, remark, check.verdict != "holds")


def signal_cell(row: LayerLandscape) -> Cell:
    signal = row.signal
    if signal is None:
        return Cell("–", "", "not cross-fitted: measure with folds=8")
    counted = f" {signal.resolved}/{len(signal.sigma)}" if len(signal.sigma) else ""
    remark = "; ".join([signal.reason, *signal.notes])
    return Cell(f"{signal.verdict}{counted}", signal.verdict, remark, signal.verdict != "signal")


def held_out_alpha_cell(row: LayerLandscape) -> Cell:
    if row.signal is None:
        return Cell("–", title="not cross-fitted: measure with folds=8")
    fit = row.signal.alpha
    if not fit.ok:
        return Cell("–", title=fit.reason)
    (low, high), data = fit.interval, fit.data_interval
    remark = (
        f"over {fit.n} resolved directions; {100 * fit.level:.0f} % interval [{low:.3f}, {high:.3f}], of the data "
        f"alone [{data[0]:.3f}, {data[1]:.3f}], of the fit alone [{fit.fit_interval[0]:.3f}, {fit.fit_interval[1]:.3f}]"
    )
    text = f"{number(fit.value).text} [{number(low).text}, {number(high).text}]"
    return Cell(text, fit.value, remark)


def beyond_noise_cell(row: LayerLandscape) -> Cell:
    level = row.noise
    if level is None:
        return Cell("–", title="it needs all eigenvalues of both factors, and rows that belong to samples")
    remark = (
        f"σ_k above {level.threshold:.2g}, which the largest σ of noise alone exceeds in 5 % of the samples; "
        f"{level.effective_positions:.1f} effective positions per sample. Cruder than folds"
    )
    return Cell(f"{level.num_beyond}/{row.num_directions}", float(level.num_beyond), remark)


def noise_alpha_cell(row: LayerLandscape) -> Cell:
    fit = row.noise_exponent
    if not fit.ok:
        return Cell("–", title=fit.reason)
    remark = f"2/γ, γ = {fit.value:.3f}, {fit_remark(fit)}: compare the own-batch α with it"
    return number(row.noise_alpha, 2, remark)


def mechanism_shifts(row: LayerLandscape) -> str:
    """Each part of h with what it adds to α, the largest first."""
    shifts = {name: one.shift for name, one in row.mechanism_slopes.items() if math.isfinite(one.shift)}
    ordered = sorted(shifts.items(), key=lambda pair: -abs(pair[1]))
    return ", ".join(f"{name} {shift:+.2f}".replace("-", "−") for name, shift in ordered)


def mechanism_cell(row: LayerLandscape) -> Cell:
    without = [f"α without {name} {one.without}" for name, one in row.mechanism_slopes.items()]
    return Cell(mechanism_shifts(row) or "–", mechanism_shifts(row), "; ".join(without))


def own_fit_cell(key: str) -> Callable[[LayerLandscape], Cell]:
    """A fit with both of its intervals in the remark."""

    def cell(row: LayerLandscape) -> Cell:
        shown = fit_cell(getattr(row, key))
        ends = getattr(row.data_intervals, key) if row.data_intervals else (math.nan, math.nan)
        if not math.isfinite(ends[0]):
            return shown
        return Cell(shown.text, shown.key, f"fit: {shown.title}; data: [{ends[0]:.3f}, {ends[1]:.3f}]", shown.doubt)

    return cell


def held_out_value(row: LayerLandscape, what: Callable[[Signal], float]) -> float:
    return math.nan if row.signal is None else what(row.signal)


def own_alpha_cell(row: LayerLandscape) -> Cell:
    """α of this batch's own directions, with the interval of the data where folds have measured it, else of the fit;
    doubtful where other samples contradict it."""
    cell = alpha_cell(row.alpha)
    text, remark = cell.text, f"own batch: directions, σ and h are of the same samples. Fit: {cell.title}"
    if row.alpha.ok and row.data_intervals is not None and math.isfinite(row.data_intervals.alpha[0]):
        low, high = row.data_intervals.alpha
        text = f"{number(row.alpha.value).text} [{number(low).text}, {number(high).text}]"
        remark += f". Shown: the interval of the data [{low:.3f}, {high:.3f}], along the same directions"
    noise = row.signal is not None and row.signal.verdict == "noise"
    if row.signal is not None and noise:
        remark = f"{row.signal.reason}. {remark}"
    return Cell(text, cell.key, remark, cell.doubt or noise)


def advised_alpha_cell(row: LayerLandscape) -> Cell:
    advice = row.recommendation
    return number(advice.alpha, 2, "; ".join(advice.reasons), not advice.trust) if advice else Cell("–")


def advised_kronecker_cell(row: LayerLandscape) -> Cell:
    advice = row.recommendation
    if advice is None:
        return Cell("–")
    return Cell(advice.kronecker_justified, advice.kronecker_justified, "; ".join(advice.reasons))


def advised_rank_cell(row: LayerLandscape) -> Cell:
    advice = row.recommendation
    if advice is None:
        return Cell("–")
    remark = f"directions that carry {advice.share:.0%} of Σ h over h > 0"
    return Cell(str(advice.rank), float(advice.rank), remark)
