"""Every column of a landscape, once: the frame, the CSV file, the page, the terminal and the tracker read this list.

A new column is a field of the row, its derivation in ``derive.py``, and one entry in ``COLUMNS``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from spectral_ext.landscape.cells import WEAK_R2, Cell, alpha_cell, fit_cell, number
from spectral_ext.landscape.row import LayerLandscape
from spectral_ext.signal.verdict import Signal
from spectral_ext.spectra.rank_models import MODEL_NAMES
from spectral_ext.spectra.regression import Fit

Value = float | int | str


@dataclass(frozen=True)
class Column:
    """One quantity of a row, with everything that a table, a file or a plot over time needs to show it."""

    key: str
    """Its name in ``to_frame``, ``to_csv``, ``Track.series`` and TensorBoard."""
    symbol: str
    """Its heading in tables."""
    meaning: str
    """One sentence for the glossary and for the reader who points at the heading."""
    value: Callable[[LayerLandscape], Value]
    """The plain value: NaN or "" where it could not be measured."""
    cell: Callable[[LayerLandscape], Cell]
    """How a table shows it."""
    page: str = ""
    """``"first"``: shown at once on the page; ``"more"``: shown with all columns; "": in the frame and the CSV only."""
    terminal: int = 0
    """1 is kept longest in a narrow terminal; 0 is never shown there."""
    tracked: bool = False
    """Whether the tracker writes it to TensorBoard."""
    numeric: bool = True
    """Whether a table aligns it to the right."""
    folds: bool = False
    """Whether it needs ``measure(folds=)``: the terminal leaves it out where no layer was cross-fitted."""


def _number(key: str, symbol: str, meaning: str, value: Callable[[LayerLandscape], float], digits: int = 2,
            cell: Callable[[LayerLandscape], Cell] | None = None, **where: Any) -> Column:  # fmt: skip
    return Column(key, symbol, meaning, value, cell or (lambda row: number(float(value(row)), digits)), **where)


def _text(key: str, symbol: str, meaning: str, value: Callable[[LayerLandscape], str],
          cell: Callable[[LayerLandscape], Cell] | None = None, **where: Any) -> Column:  # fmt: skip
    shown = cell or (lambda row: Cell(value(row) or "–", value(row)))
    return Column(key, symbol, meaning, value, shown, numeric=False, **where)


def _exponent(key: str, symbol: str, meaning: str, fit: Callable[[LayerLandscape], Fit],
              cell: Callable[[LayerLandscape], Cell] | None = None, r2: dict[str, Any] | None = None,
              **where: Any) -> tuple[Column, ...]:  # fmt: skip
    """A fit as four columns: the value, the ends of its interval, and its R²."""

    def r2_cell(row: LayerLandscape) -> Cell:
        return number(fit(row).r2, doubt=fit(row).ok and not fit(row).r2 >= WEAK_R2)

    return (
        _number(key, symbol, meaning, lambda row: fit(row).value, cell=cell or (lambda row: fit_cell(fit(row))),
                **where),
        _number(f"{key}_low", f"{symbol} low", f"Lower end of the interval of {symbol}.", lambda r: fit(r).interval[0]),
        _number(f"{key}_high", f"{symbol} high", f"Upper end of the interval of {symbol}.",
                lambda row: fit(row).interval[1]),
        _number(f"{key}_r2", "R²" if r2 else f"R² of {symbol}",
                f"Share of the variance that the fit of {symbol} explains.", lambda row: fit(row).r2, cell=r2_cell,
                **(r2 or {})),
    )  # fmt: skip


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


def _share_cell(row: LayerLandscape) -> Cell:
    share = gauss_newton_share(row)
    return Cell("–") if math.isnan(share) else Cell(f"{100 * share:.0f}", share)


def _shape(row: LayerLandscape) -> Cell:
    return Cell(f"{row.shape[0]}×{row.shape[1]}", float(row.shape[0] * row.shape[1]))


def _nonpositive(row: LayerLandscape) -> Cell:
    count = row.num_nonpositive
    return Cell(f"{count}/{row.num_directions}", float(count), "directions with h ≤ 0, of those measured")


def _law(row: LayerLandscape) -> Cell:
    models = row.rank_models
    if not models.ok:
        return Cell("–", "", models.reason)
    return Cell(MODEL_NAMES[models.best], models.best, f"ΔBIC {models.margin:.1f}", models.margin < 2)


def _transfer(row: LayerLandscape) -> Cell:
    check = row.transfer
    if not check.ok:
        return Cell("–", "", check.reason)
    low, high = check.deviation_interval
    remark = f"s − αγ in [{low:.2f}, {high:.2f}], relative error {check.relative_error:.1%}"
    return Cell(check.verdict, check.verdict, remark, check.verdict != "holds")


def _signal(row: LayerLandscape) -> Cell:
    signal = row.signal
    if signal is None:
        return Cell("–", "", "not cross-fitted: measure with folds=8")
    counted = f" {signal.resolved}/{len(signal.sigma)}" if len(signal.sigma) else ""
    remark = "; ".join([signal.reason, *signal.notes])
    return Cell(f"{signal.verdict}{counted}", signal.verdict, remark, signal.verdict != "signal")


def _held_out_alpha(row: LayerLandscape) -> Cell:
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


def _held_out(row: LayerLandscape, what: Callable[[Signal], float]) -> float:
    return math.nan if row.signal is None else what(row.signal)


def _own_alpha(row: LayerLandscape) -> Cell:
    """α of this batch's own directions; doubtful where other samples contradict it."""
    cell = alpha_cell(row.alpha)
    remark = f"own batch: directions, σ and h are of the same samples. {cell.title}"
    if row.data_intervals is not None and math.isfinite(row.data_intervals.alpha[0]):
        low, high = row.data_intervals.alpha
        remark += f"; interval of the data [{low:.3f}, {high:.3f}], the directions held fixed"
    noise = row.signal is not None and row.signal.verdict == "noise"
    return Cell(cell.text, cell.key, f"{row.signal.reason}. {remark}" if row.signal and noise else remark,
                cell.doubt or noise)  # fmt: skip


def _advised_alpha(row: LayerLandscape) -> Cell:
    advice = row.recommendation
    return number(advice.alpha, 2, "; ".join(advice.reasons), not advice.trust) if advice else Cell("–")


def _advised_kronecker(row: LayerLandscape) -> Cell:
    advice = row.recommendation
    if advice is None:
        return Cell("–")
    return Cell(advice.kronecker_justified, advice.kronecker_justified, "; ".join(advice.reasons))


def _advised_rank(row: LayerLandscape) -> Cell:
    advice = row.recommendation
    if advice is None:
        return Cell("–")
    remark = f"directions that carry {advice.share:.0%} of Σ h over h > 0"
    return Cell(str(advice.rank), float(advice.rank), remark)


COLUMNS: tuple[Column, ...] = (
    _text("kind", "kind", "Type of the module.", lambda r: r.kind, page="first", terminal=11),
    _number("m", "m", "Rows of the flattened weight: its outputs.", lambda r: r.shape[0], 0),
    _number("n", "n", "Columns of the flattened weight: its inputs times the kernel.", lambda r: r.shape[1], 0),
    Column("shape", "shape", "Rows × columns of the flattened weight.", lambda r: f"{r.shape[0]}×{r.shape[1]}", _shape,
           page="first", terminal=16),
    _number("depth", "depth", "Index among the model's measured layers, in order of definition.", lambda r: r.depth, 0),
    _text("signal", "signal", "Do the directions hold on other samples? How many are resolved, of those tested.",
          lambda r: r.signal.verdict if r.signal else "", _signal, page="first", terminal=2, folds=True),
    _number("alpha_held_out", "α held out", "α over the resolved directions, on samples that did not choose them, with "
            "its interval.", lambda r: _held_out(r, lambda s: s.alpha.value), cell=_held_out_alpha, page="first",
            terminal=2, tracked=True, folds=True),
    _number("alpha_held_out_low", "α held out low", "Lower end of the interval of the held-out α.",
            lambda r: _held_out(r, lambda s: s.alpha.interval[0])),
    _number("alpha_held_out_high", "α held out high", "Upper end of the interval of the held-out α.",
            lambda r: _held_out(r, lambda s: s.alpha.interval[1])),
    _number("resolved", "resolved", "How many directions hold on other samples.",
            lambda r: _held_out(r, lambda s: s.resolved), 0, tracked=True),
    _number("sigma_share", "σ̃/σ", "Median over k of the held-out singular value over the own-batch one.",
            lambda r: _held_out(r, lambda s: s.median_share), page="more", tracked=True),
    _number("beyond_noise", "beyond noise", "How many σ exceed what noise alone gives, by the factors' spectra "
            "(Couillet–Hachem): cruder than folds.", lambda r: r.noise.num_beyond if r.noise else math.nan, 0,
            page="more"),
    _number("effective_positions", "S/κ", "Effective number of independent positions per sample.",
            lambda r: r.noise.effective_positions if r.noise else math.nan, 1, page="more"),
    _number("noise_exponent", "γ noise", "Slope of the log variance of the sampled gradient on log h; noise alone has "
            "an α of 2 over it.", lambda r: _held_out(r, lambda s: s.noise_exponent.value), page="more"),
    _number("alpha_data_low", "α data low", "Lower end of the data's interval of the own-batch α.",
            lambda r: r.data_intervals.alpha[0] if r.data_intervals else math.nan),
    _number("alpha_data_high", "α data high", "Upper end of the data's interval of the own-batch α.",
            lambda r: r.data_intervals.alpha[1] if r.data_intervals else math.nan),
    *_exponent("alpha", "α", "Curvature exponent of h ≈ c·σ^α over this batch's own directions, with the interval of "
               "the fit.", lambda r: r.alpha, _own_alpha, r2=dict(page="first", terminal=2), page="first", terminal=1,
               tracked=True),
    _number("beta", "β", "Slope of the factors' eigenvalues against σ.", lambda r: r.beta.value,
            cell=lambda r: fit_cell(r.beta), page="more", terminal=17),
    _number("phi", "φ", "Slope of the alignment Φ against σ.", lambda r: r.phi.value, cell=lambda r: fit_cell(r.phi),
            page="more", terminal=18),
    _number("chi_slope", "χ slope", "d log χ/d log σ: what the Kronecker model misses of α.",
            lambda r: r.chi_slope.value, cell=lambda r: fit_cell(r.chi_slope), page="more", terminal=19),
    *_exponent("gamma", "γ", "Rank-decay exponent of σ.", lambda r: r.gamma, page="first", terminal=5, tracked=True),
    *_exponent("s", "s", "Rank-decay exponent of the sorted positive h.", lambda r: r.s, page="first", terminal=3,
               tracked=True),
    _number("alpha_gamma", "αγ", "What the transfer identity predicts for s.", lambda r: r.alpha_gamma, page="first",
            terminal=4, tracked=True),
    _number("transfer_error", "|s − αγ|/s", "Relative error of the transfer identity.",
            lambda r: r.transfer.relative_error, tracked=True),
    _text("transfer", "s = αγ", "What the bootstrap interval of s − αγ allows one to say.",
          lambda r: r.transfer.verdict, _transfer, page="first", terminal=7),
    _text("rank_model", "law in rank", "The law of σ in rank with the lowest BIC.", lambda r: r.rank_models.best, _law,
          page="first", terminal=8),
    _text("factor_match", "factor match", "The factor whose eigenvalues follow the same law in rank as σ.",
          lambda r: r.factor_match),
    _text("predicted_law", "predicted law", "The law of σ in rank that the factors' effective ranks predict.",
          lambda r: r.predicted_law),
    _number("pr_curvature", "PR h", "Participation ratio of the positive h.", lambda r: r.pr_curvature, page="first",
            terminal=9, tracked=True),
    _number("pr_gradient", "PR G", "Participation ratio of all σ.", lambda r: r.pr_gradient, 1, page="more",
            terminal=15),
    _number("zeta_bound", "ζ bound", "Bound ζ(αγ)²/ζ(2αγ) on PR h; infinite for αγ ≤ 1.", lambda r: r.zeta_bound,
            page="more"),
    _number("rank_bound", "PR bound", "The bound on PR h under the law in rank with the lowest BIC.",
            lambda r: r.rank_bound, page="more"),
    _number("effective_rank_delta", "r C_δ", "Effective rank of C_δ, from the entropy of its eigenvalues.",
            lambda r: r.effective_rank_delta.entropy, 1, page="more"),
    _number("effective_rank_A", "r C_A", "Effective rank of C_A, from the entropy of its eigenvalues.",
            lambda r: r.effective_rank_A.entropy, 1, page="more"),
    _number("concentration", "SoP/PoS", "Median over k of the mean of products over the product of means.",
            lambda r: finite_median(r.arrays.concentration), page="more", terminal=13),
    _number("chi", "χ", "Median over k of h/h_Kron, in the scale convention named on the page.",
            lambda r: finite_median(r.arrays.chi), page="more"),
    _number("gauss_newton_share", "GN %",
            "Share of the Gauss–Newton part in Σ|parts of h|: from 0 to 1 in files, in per cent in tables.",
            gauss_newton_share, cell=_share_cell, page="first", terminal=14),
    _number("relative_standard_error", "SE(h)/h",
            "Median over k of the standard error of h over its size, where h is estimated from drawn labels.",
            relative_standard_error, page="more"),
    _number("num_nonpositive", "h ≤ 0", "Number of directions without positive curvature.", lambda r: r.num_nonpositive,
            cell=_nonpositive, page="first", terminal=10, tracked=True),
    _number("num_directions", "K", "Number of directions measured.", lambda r: r.num_directions, 0),
    _number("spectrum_ks", "KS", "Distance of the predicted from the measured distribution of σ (Couillet–Hachem).",
            lambda r: r.prediction.ks if r.prediction else math.nan, page="more"),
    _number("alpha_weight", "α_weight", "Tail exponent of the eigenvalues of WWᵀ.",
            lambda r: r.weight.alpha_weight.value if r.weight else math.nan,
            cell=lambda r: fit_cell(r.weight.alpha_weight) if r.weight else Cell("–"), page="more"),
    _number("s_weight", "s_weight", "Slope in rank of the eigenvalues of WWᵀ.",
            lambda r: r.weight.s_weight.value if r.weight else math.nan,
            cell=lambda r: fit_cell(r.weight.s_weight) if r.weight else Cell("–"), page="more"),
    _number("r2_h_sigma2", "R²(h, σ²)", "Squared correlation of h and σ².", lambda r: r.r2_h_sigma2),
    _number("r2_gn_sigma2", "R²(h_GN, σ²)", "Squared correlation of the Gauss–Newton part and σ².",
            lambda r: r.r2_gn_sigma2),
    _number("r2_h_gn", "R²(h, h_GN)", "Squared correlation of h and its Gauss–Newton part.", lambda r: r.r2_h_gn),
    _number("log_correlation", "corr log", "Correlation of log h_Kron and log σ².", lambda r: r.log_correlation),
    _number("recommended_alpha", "use α", "Advice: the exponent for T(σ; α).",
            lambda r: r.recommendation.alpha if r.recommendation else math.nan, cell=_advised_alpha, page="first",
            terminal=6),
    _text("kronecker_justified", "Kronecker", "Advice: is a Kronecker preconditioner justified?",
          lambda r: r.recommendation.kronecker_justified if r.recommendation else "", _advised_kronecker, page="first",
          terminal=12),
    _number("recommended_rank", "rank", "Advice: how many directions carry 95 % of the positive curvature.",
            lambda r: r.recommendation.rank if r.recommendation else 0, cell=_advised_rank, page="more"),
    _number("samples", "B", "Samples, summed over the batches.", lambda r: r.samples, 0),
    _number("positions", "S", "Mean number of positions per sample.", lambda r: r.positions, 0),
    _text("method", "method", "How h was measured.", lambda r: r.method),
    _text("empty_reason", "not measured", "Why the row holds no measurement.", lambda r: r.empty_reason),
    _text("notes", "notes", "Remarks of the measurement about this layer.", lambda r: "; ".join(r.notes)),
)  # fmt: skip

BY_KEY = {column.key: column for column in COLUMNS}
PAGE = tuple(column for column in COLUMNS if column.page)
TERMINAL = tuple(column for column in COLUMNS if column.terminal)
TRACKED = tuple(column for column in COLUMNS if column.tracked)


def terminal_columns(rows: Iterable[LayerLandscape]) -> list[Column]:
    """The columns of a table in the terminal for these rows."""
    folds = any(row.signal is not None for row in rows)
    return [column for column in TERMINAL if folds or not column.folds]


def summary(row: LayerLandscape) -> dict[str, Value]:
    """The row as plain values: the name, then every column by its key."""
    return {"name": row.name, **{column.key: column.value(row) for column in COLUMNS}}
