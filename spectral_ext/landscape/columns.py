"""Every column of a landscape, once: the frame, the CSV file, the page, the terminal and the tracker read this list.

A new column is a field of the row, its derivation in ``derive.py``, and one entry in ``COLUMNS``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from spectral_ext.landscape.cells import WEAK_R2, Cell, fit_cell, number
from spectral_ext.landscape.row import LayerLandscape
from spectral_ext.landscape.row_cells import (
    advised_alpha_cell,
    advised_kronecker_cell,
    advised_rank_cell,
    beyond_noise_cell,
    finite_median,
    gauss_newton_share,
    held_out_alpha_cell,
    held_out_value,
    law_cell,
    mechanism_cell,
    mechanism_shifts,
    noise_alpha_cell,
    nonpositive_cell,
    own_alpha_cell,
    own_fit_cell,
    relative_standard_error,
    shape_cell,
    share_cell,
    signal_cell,
    transfer_cell,
)
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
    """Whether it needs ``measure(folds=)``: tables leave it out where no layer was cross-fitted."""


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


def _data_ends(key: str, symbol: str) -> tuple[Column, ...]:
    """The ends of the interval of the data of an own-batch exponent."""

    def end(row: LayerLandscape, index: int) -> float:
        return getattr(row.data_intervals, key)[index] if row.data_intervals else math.nan

    where = f"end of the interval of the data of the own-batch {symbol}."
    return (
        _number(f"{key}_data_low", f"{symbol} data low", f"Lower {where}", lambda row: end(row, 0)),
        _number(f"{key}_data_high", f"{symbol} data high", f"Upper {where}", lambda row: end(row, 1)),
    )


COLUMNS: tuple[Column, ...] = (
    _text("kind", "kind", "Type of the module.", lambda r: r.kind, page="first", terminal=11),
    _number("m", "m", "Rows of the flattened weight: its outputs.", lambda r: r.shape[0], 0),
    _number("n", "n", "Columns of the flattened weight: its inputs times the kernel.", lambda r: r.shape[1], 0),
    Column("shape", "shape", "Rows × columns of the flattened weight.", lambda r: f"{r.shape[0]}×{r.shape[1]}",
           shape_cell, page="first", terminal=16),
    _number("depth", "depth", "Index among the model's measured layers, in order of definition.", lambda r: r.depth, 0),
    _text("signal", "signal", "Do the directions hold on other samples? How many are resolved, of those tested.",
          lambda r: r.signal.verdict if r.signal else "", signal_cell, page="first", terminal=1, folds=True),
    _number("alpha_held_out", "α held out", "α over the resolved directions, on samples that did not choose them, with "
            "its interval.", lambda r: held_out_value(r, lambda s: s.alpha.value), cell=held_out_alpha_cell,
            page="first", terminal=1, tracked=True, folds=True),
    _number("alpha_held_out_low", "α held out low", "Lower end of the interval of the held-out α.",
            lambda r: held_out_value(r, lambda s: s.alpha.interval[0])),
    _number("alpha_held_out_high", "α held out high", "Upper end of the interval of the held-out α.",
            lambda r: held_out_value(r, lambda s: s.alpha.interval[1])),
    _number("resolved", "resolved", "How many directions hold on other samples.",
            lambda r: held_out_value(r, lambda s: s.resolved), 0, tracked=True),
    _number("sigma_share", "σ̃/σ", "Median over k of the held-out singular value over the own-batch one.",
            lambda r: held_out_value(r, lambda s: s.median_share), page="more", tracked=True, folds=True),
    *_exponent("alpha", "α own batch", "Curvature exponent of h ≈ c·σ^α over this batch's own directions, with the "
               "interval of the data where folds measured it, else of the fit.", lambda r: r.alpha,
               own_alpha_cell, r2=dict(page="first", terminal=4), page="first", terminal=1, tracked=True),
    _number("noise_alpha", "α of noise", "2/γ of the noise: the own-batch α that sampling alone would give.",
            lambda r: r.noise_alpha, cell=noise_alpha_cell, page="first", terminal=3, tracked=True),
    _number("beyond_noise", "σ > noise", "How many σ exceed what noise alone gives, by the factors' spectra "
            "(Couillet–Hachem): cruder than folds.", lambda r: r.noise.num_beyond if r.noise else math.nan, 0,
            cell=beyond_noise_cell, page="first", terminal=3, tracked=True),
    _number("effective_positions", "S/κ", "Effective number of independent positions per sample.",
            lambda r: r.noise.effective_positions if r.noise else math.nan, 1, page="more"),
    _number("noise_exponent", "γ of noise", "Slope of the log variance of a sample's gradient on log h.",
            lambda r: r.noise_exponent.value, cell=lambda r: fit_cell(r.noise_exponent), page="more"),
    *(end for key, symbol in (("alpha", "α"), ("beta", "β"), ("phi", "φ"), ("gamma", "γ"), ("s", "s"))
      for end in _data_ends(key, symbol)),
    _number("beta", "β", "Slope of the factors' eigenvalues against σ.", lambda r: r.beta.value,
            cell=own_fit_cell("beta"), page="more", terminal=17),
    _number("phi", "φ", "Slope of the alignment Φ against σ.", lambda r: r.phi.value, cell=own_fit_cell("phi"),
            page="more", terminal=18),
    _number("chi_slope", "χ slope", "d log χ/d log σ: what the Kronecker model misses of α.",
            lambda r: r.chi_slope.value, cell=lambda r: fit_cell(r.chi_slope), page="more", terminal=19),
    _text("mechanism_slopes", "Δα by part", "What each part of h adds to the own-batch α.",
          mechanism_shifts, mechanism_cell, page="more"),
    *_exponent("gamma", "γ", "Rank-decay exponent of σ.", lambda r: r.gamma, own_fit_cell("gamma"), page="first",
               terminal=6, tracked=True),
    *_exponent("s", "s", "Rank-decay exponent of the sorted positive h.", lambda r: r.s, own_fit_cell("s"),
               page="first", terminal=5, tracked=True),
    _number("s_unrelated", "s unrelated", "s of an h that is unrelated to σ and scatters as much: sorting alone makes "
            "it.", lambda r: r.s_unrelated, page="first", terminal=7),
    _number("alpha_gamma", "αγ", "What the transfer identity predicts for s.", lambda r: r.alpha_gamma, page="first",
            terminal=4, tracked=True),
    _number("transfer_error", "|s − αγ|/s", "Relative error of the transfer identity.",
            lambda r: r.transfer.relative_error, tracked=True),
    _text("transfer", "s = αγ", "What the bootstrap interval of s − αγ allows one to say.",
          lambda r: r.transfer.verdict, transfer_cell, page="first", terminal=7),
    _number("transfer_p_permuted", "p permuted", "Share of permutations of h whose error of s = αγ is as small.",
            lambda r: r.transfer_null.p_permuted if r.transfer_null else math.nan, page="more"),
    _number("transfer_p_sorted", "p sorted", "Share of sorted h unrelated to σ whose error of s = αγ is as small: "
            "where it is large, the identity says nothing.",
            lambda r: r.transfer_null.p_sorted if r.transfer_null else math.nan, page="more"),
    _text("rank_model", "law in rank", "The law of σ in rank with the lowest BIC.", lambda r: r.rank_models.best,
          law_cell, page="first", terminal=8),
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
            gauss_newton_share, cell=share_cell, page="first", terminal=14),
    _number("relative_standard_error", "SE(h)/h",
            "Median over k of the standard error of h over its size, where h is estimated from drawn labels.",
            relative_standard_error, page="more"),
    _number("num_nonpositive", "h ≤ 0", "Number of directions without positive curvature.", lambda r: r.num_nonpositive,
            cell=nonpositive_cell, page="first", terminal=10, tracked=True),
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
            lambda r: r.recommendation.alpha if r.recommendation else math.nan, cell=advised_alpha_cell, page="first",
            terminal=2),
    _text("kronecker_justified", "Kronecker", "Advice: is a Kronecker preconditioner justified?",
          lambda r: r.recommendation.kronecker_justified if r.recommendation else "", advised_kronecker_cell,
          page="first", terminal=12),
    _number("recommended_rank", "rank", "Advice: how many directions carry 95 % of the positive curvature.",
            lambda r: r.recommendation.rank if r.recommendation else 0, cell=advised_rank_cell, page="more"),
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
    return _applicable(rows, TERMINAL)


def page_columns(rows: Iterable[LayerLandscape]) -> list[Column]:
    """The columns of the page's table for these rows."""
    return _applicable(rows, PAGE)


def _applicable(rows: Iterable[LayerLandscape], columns: Iterable[Column]) -> list[Column]:
    folds = any(row.signal is not None for row in rows)
    return [column for column in columns if folds or not column.folds]


def summary(row: LayerLandscape) -> dict[str, Value]:
    """The row as plain values: the name, then every column by its key."""
    return {"name": row.name, **{column.key: column.value(row) for column in COLUMNS}}
