"""The columns of the landscape's table, for the page and for the comparison."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from spectral_ext.landscape import LayerLandscape
from spectral_ext.plots.style import MODEL_NAMES
from spectral_ext.spectra import Fit


@dataclass(frozen=True)
class Cell:
    """What is shown, what it sorts by (NaN last), and a remark for the reader who points at it."""

    text: str
    key: float | str = math.nan
    title: str = ""
    doubt: bool = False


@dataclass(frozen=True)
class Column:
    heading: str
    explain: str
    cell: Callable[[LayerLandscape], Cell]
    essential: bool = False
    numeric: bool = True


def number(value: float, digits: int = 2, title: str = "", doubt: bool = False) -> Cell:
    if math.isnan(value):
        return Cell("–", title=title)
    if math.isinf(value):
        return Cell("∞" if value > 0 else "−∞", value, title)
    text = f"{value:.{digits}f}" if 1e-2 <= abs(value) < 1e4 or value == 0 else f"{value:.1e}"
    return Cell(text.replace("-", "−"), value, title, doubt)


def fit(value: Fit, *, weak: bool = False) -> Cell:
    if not value.ok:
        return Cell("–", title=value.reason)
    low, high = value.interval
    percent = f"{100 * value.level:.0f} %"
    title = f"{percent} interval [{low:.3f}, {high:.3f}], R² {value.r2:.3f}, n = {value.n}"
    if value.excluded:
        title += f", {value.excluded} left out"
    return number(value.value, 2, title, weak)


def median(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else math.nan


def gauss_newton_share(row: LayerLandscape) -> float:
    """Σ|Gauss–Newton part| over the sum of all parts' absolute values, in per cent."""
    parts = row.arrays
    if not len(parts.h_gauss_newton):
        return math.nan
    main = float(np.abs(parts.h_gauss_newton).sum())
    total = main + sum(float(np.abs(part).sum()) for part in parts.h_residual.values())
    return 100 * main / total if total > 0 else math.nan


def _alpha(row: LayerLandscape) -> Cell:
    weak = row.alpha.ok and row.alpha.r2 < 0.8
    cell = fit(row.alpha, weak=weak)
    if not row.alpha.ok:
        return cell
    low, high = row.alpha.interval
    return Cell(f"{cell.text} [{low:.2f}, {high:.2f}]".replace("-", "−"), cell.key, cell.title, weak)


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
    title = f"s − αγ in [{low:.2f}, {high:.2f}], relative error {check.relative_error:.1%}"
    return Cell(check.verdict, check.verdict, title, check.verdict != "holds")


def _advice(row: LayerLandscape, what: str) -> Cell:
    advice = row.recommendation
    if advice is None:
        return Cell("–")
    title = "; ".join(advice.reasons)
    if what == "alpha":
        return number(advice.alpha, 2, title, not advice.trust)
    if what == "kronecker":
        return Cell(advice.kronecker, advice.kronecker, title)
    return Cell(str(advice.rank), float(advice.rank), f"directions that carry {advice.share:.0%} of Σ h over h > 0")


def _negative(row: LayerLandscape) -> Cell:
    return Cell(f"{row.negative}/{row.top_k}", float(row.negative), "directions with h ≤ 0, of those measured")


COLUMNS = (
    Column("kind", "type of the module", lambda r: Cell(r.kind, r.kind), True, False),
    Column("shape", "rows × columns of the flattened weight",
           lambda r: Cell(f"{r.shape[0]}×{r.shape[1]}", float(r.shape[0] * r.shape[1])), True),
    Column("α", "curvature exponent with its interval", _alpha, True),
    Column("R²", "of log h against log σ", lambda r: number(r.alpha.r2, doubt=r.alpha.ok and r.alpha.r2 < 0.8), True),
    Column("β", "slope of the factors' eigenvalues", lambda r: fit(r.beta)),
    Column("φ", "slope of the alignment Φ", lambda r: fit(r.phi)),
    Column("χ slope", "d log χ/d log σ, what the Kronecker model misses of α", lambda r: fit(r.chi_slope)),
    Column("γ", "rank-decay exponent of σ", lambda r: fit(r.gamma), True),
    Column("s", "rank-decay exponent of the sorted positive h", lambda r: fit(r.s), True),
    Column("αγ", "prediction of s", lambda r: number(r.alpha_gamma), True),
    Column("s = αγ", "what the bootstrap interval of s − αγ allows to say", _transfer, True, False),
    Column("law in rank", "BIC winner for σ", _law, True, False),
    Column("PR h", "participation ratio of h > 0", lambda r: number(r.pr_curvature), True),
    Column("PR G", "participation ratio of all σ", lambda r: number(r.pr_gradient, 1), True),
    Column("ζ bound", "ζ(αγ)²/ζ(2αγ), infinite for αγ ≤ 1", lambda r: number(r.zeta_bound)),
    Column("PR bound", "the same under the BIC winner", lambda r: number(r.rank_bound)),
    Column("r C_δ", "effective rank of C_δ", lambda r: number(r.effective_rank_delta.entropy, 1)),
    Column("r C_A", "effective rank of C_A", lambda r: number(r.effective_rank_A.entropy, 1)),
    Column("SoP/PoS", "median concentration ratio", lambda r: number(median(r.arrays.concentration)), True),
    Column("χ", "median h/h_Kron, in the scale convention named below", lambda r: number(median(r.arrays.chi))),
    Column("GN %", "Gauss–Newton share of Σ|parts of h|", lambda r: number(gauss_newton_share(r), 0), True),
    Column("h ≤ 0", "directions without positive curvature", _negative, True),
    Column("KS", "distance of the predicted from the measured distribution of σ (Couillet–Hachem)",
           lambda r: number(r.prediction.ks if r.prediction else math.nan)),
    Column("α_weight", "tail exponent of the weight's spectrum",
           lambda r: number(r.weight.alpha_weight.value if r.weight else math.nan)),
    Column("s_weight", "slope in rank of the weight's spectrum",
           lambda r: number(r.weight.s_weight.value if r.weight else math.nan)),
    Column("use α", "advice: exponent for T(σ; α)", lambda r: _advice(r, "alpha"), True),
    Column("Kronecker", "advice: is a Kronecker preconditioner justified", lambda r: _advice(r, "kronecker"), True,
           False),
    Column("rank", "advice: directions that carry 95 % of the curvature", lambda r: _advice(r, "rank")),
)  # fmt: skip
