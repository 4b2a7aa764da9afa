"""What the measurement says to do with a layer: α for T(σ; α), Kronecker or not, how many directions (§7.3)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from spectral_ext.signal.verdict import Signal
from spectral_ext.spectra.regression import Fit, as_vector

KRONECKER_BAND = 0.3
"""|α − 2| below which a Kronecker preconditioner is justified."""
CONCENTRATION_BAND = (0.5, 2.0)
"""Median concentration ratio inside which product of means stands for mean of products."""
R2_NEEDED = 0.8
FALLBACK = 2.0
"""α where nothing is known: what aligned Kronecker factors give (Theorem 4)."""
SPREAD = 0.5
"""Standard deviation of α over layers and models around ``FALLBACK``, as far as the paper reports it."""


@dataclass(frozen=True)
class Recommendation:
    """For ``SpectralNewton.from_landscape``."""

    alpha: float
    """Exponent for T(σ; α) = σ/(σ^α + d)."""
    alpha_interval: tuple[float, float]
    """Of the measured α that ``alpha`` follows from."""
    kronecker_justified: str
    """``yes``, ``no`` or ``undecided``: whether a Kronecker preconditioner is justified."""
    rank: int
    """Directions that carry ``share`` of the positive curvature among those measured."""
    share: float
    trust: bool
    """False: the measured α is too weak to lean on, or missing."""
    reasons: tuple[str, ...]
    source: str = "own batch"
    """Which α it follows from: ``held out``, ``own batch`` or ``fallback``."""


def recommend(
    alpha: Fit,
    concentration: Any,
    h: Any,
    *,
    signal: Signal | None = None,
    data_interval: tuple[float, float] = (math.nan, math.nan),
    share: float = 0.95,
) -> Recommendation:
    """The recommendation from α with its error, the concentration ratios and h.

    The α that counts is the held-out one over the resolved directions where the layer was cross-fitted, else the
    own-batch one. Where folds find no law (no or too few resolved directions), the advice is 2 and says so.
    The measured α is drawn towards 2 by its error: 2 + w (α − 2) with w = 0.5²/(0.5² + se²), the mean of a normal
    posterior, clipped to [0.5, 3]. It has no threshold, so that a little more data moves it by little.
    Kronecker: ``yes`` if |α − 2| ≤ 0.3 and the median concentration ratio lies in [0.5, 2]; ``no`` if the ratio lies
    outside or the whole interval does; else ``undecided``.
    Rank: the fewest of the largest h_k that sum to ``share`` of Σ h_k over h_k > 0.

    Args:
        data_interval: of the own-batch α, where folds have measured it; NaN takes the interval of the fit.
    """
    reasons: list[str] = []
    value, interval, source, trust = _measured(alpha, signal, data_interval, reasons)
    used = FALLBACK
    if source != "fallback":
        level = alpha.level if source == "own batch" or signal is None else signal.alpha.level
        se = (interval[1] - interval[0]) / 2 / float(stats.norm.ppf(0.5 + level / 2))
        weight = SPREAD**2 / (SPREAD**2 + se**2) if math.isfinite(se) else 0.0
        used = float(np.clip(FALLBACK + weight * (value - FALLBACK), 0.5, 3.0))
        reasons.append(
            f"{source} α = {value:.2f} [{interval[0]:.2f}, {interval[1]:.2f}], drawn towards 2 with weight "
            f"{1 - weight:.2f}"
        )
    ratios = as_vector(concentration, "concentration")
    ratio = float(np.median(ratios)) if len(ratios) else math.nan
    kronecker = _kronecker(value, interval, ratio, trust, reasons)
    values = as_vector(h, "h")
    positive = np.sort(values[values > 0])[::-1]
    rank = int(np.searchsorted(np.cumsum(positive), share * positive.sum() * (1 - 1e-12)) + 1) if len(positive) else 0
    return Recommendation(used, interval, kronecker, rank, share, trust, tuple(reasons), source)


def _measured(
    alpha: Fit, signal: Signal | None, data_interval: tuple[float, float], reasons: list[str]
) -> tuple[float, tuple[float, float], str, bool]:
    """(α, interval, source, trust)."""
    if signal is not None and signal.verdict != "too few groups":
        if signal.alpha.ok:
            return signal.alpha.value, signal.alpha.interval, "held out", True
        reasons.append(
            f"no α on other samples ({signal.alpha.reason}): fallback 2; the own-batch α describes this batch's noise"
            if signal.verdict == "noise"
            else f"no α on other samples ({signal.alpha.reason}): fallback 2"
        )
        return math.nan, (math.nan, math.nan), "fallback", False
    if not alpha.ok:
        reasons.append(f"α could not be fitted ({alpha.reason}): fallback 2")
        return math.nan, (math.nan, math.nan), "fallback", False
    trust = alpha.r2 >= R2_NEEDED
    if not trust:
        reasons.append(f"R² = {alpha.r2:.2f} < {R2_NEEDED}: h is no clear power of σ")
    reasons.append("not tested on other samples: measure with folds=8")
    return alpha.value, data_interval if math.isfinite(data_interval[0]) else alpha.interval, "own batch", trust


def _kronecker(value: float, interval: tuple[float, float], ratio: float, trust: bool, reasons: list[str]) -> str:
    low, high = interval
    if not CONCENTRATION_BAND[0] <= ratio <= CONCENTRATION_BAND[1]:
        reasons.append(f"the median concentration ratio {ratio:.2f} is not near 1: samples do not factorise")
        return "no" if np.isfinite(ratio) else "undecided"
    if not trust:
        return "undecided"
    if abs(value - 2) <= KRONECKER_BAND:
        reasons.append(f"|α − 2| = {abs(value - 2):.2f} and the concentration ratio {ratio:.2f} is near 1")
        return "yes"
    if low > 2 + KRONECKER_BAND or high < 2 - KRONECKER_BAND:
        reasons.append(f"α lies away from 2 with its whole interval [{low:.2f}, {high:.2f}]")
        return "no"
    return "undecided"
