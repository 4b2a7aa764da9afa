"""What the measurement says to do with a layer: α for T(σ; α), Kronecker or not, how many directions (§7.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from spectral_ext.spectra.regression import Fit, as_vector

KRONECKER_BAND = 0.3
"""|α − 2| below which a Kronecker preconditioner is justified."""
CONCENTRATION_BAND = (0.5, 2.0)
"""Median concentration ratio inside which product of means stands for mean of products."""
R2_NEEDED = 0.8


@dataclass(frozen=True)
class Recommendation:
    """For ``SpectralNewton.from_landscape``."""

    alpha: float
    """Exponent for T(σ; α) = σ/(σ^α + d)."""
    alpha_interval: tuple[float, float]
    kronecker_justified: str
    """``yes``, ``no`` or ``undecided``: whether a Kronecker preconditioner is justified."""
    rank: int
    """Directions that carry ``share`` of the positive curvature among those measured."""
    share: float
    trust: bool
    """False: the fit is too weak, and ``alpha`` is the fallback 2."""
    reasons: tuple[str, ...]


def recommend(alpha: Fit, concentration: Any, h: Any, *, share: float = 0.95) -> Recommendation:
    """The recommendation from α's interval, the concentration ratios and h.

    α: 2 where the interval contains 2, else 1 where it contains 1 (theory's two values, cheap to apply), else the
    estimate, clipped to [0.5, 3]; the fallback 2 where the fit is empty or its R² is below 0.8.
    Kronecker: ``yes`` if |α − 2| ≤ 0.3 and the median concentration ratio lies in [0.5, 2]; ``no`` if the ratio lies
    outside or the whole interval does; else ``undecided``.
    Rank: the fewest of the largest h_k that sum to ``share`` of Σ h_k over h_k > 0.
    """
    reasons = []
    low, high = alpha.interval
    trust = alpha.ok and alpha.r2 >= R2_NEEDED
    if not alpha.ok:
        value = 2.0
        reasons.append(f"α could not be fitted ({alpha.reason}): fallback 2")
    elif not trust:
        value = 2.0
        reasons.append(f"R² = {alpha.r2:.2f} < {R2_NEEDED}: h is no clear power of σ, fallback 2")
    elif low <= 2 <= high:
        value = 2.0
        reasons.append(f"the interval [{low:.2f}, {high:.2f}] contains 2")
    elif low <= 1 <= high:
        value = 1.0
        reasons.append(f"the interval [{low:.2f}, {high:.2f}] contains 1 and not 2")
    else:
        value = float(np.clip(alpha.value, 0.5, 3.0))
        reasons.append(f"the interval [{low:.2f}, {high:.2f}] contains neither 1 nor 2: the estimate is used")
    ratios = as_vector(concentration, "concentration")
    ratio = float(np.median(ratios)) if len(ratios) else float("nan")
    kronecker = _kronecker(alpha, ratio, trust, reasons)
    values = as_vector(h, "h")
    positive = np.sort(values[values > 0])[::-1]
    rank = int(np.searchsorted(np.cumsum(positive), share * positive.sum() * (1 - 1e-12)) + 1) if len(positive) else 0
    return Recommendation(value, (low, high), kronecker, rank, share, trust, tuple(reasons))


def _kronecker(alpha: Fit, ratio: float, trust: bool, reasons: list[str]) -> str:
    low, high = alpha.interval
    if not CONCENTRATION_BAND[0] <= ratio <= CONCENTRATION_BAND[1]:
        reasons.append(f"the median concentration ratio {ratio:.2f} is not near 1: samples do not factorise")
        return "no" if np.isfinite(ratio) else "undecided"
    if not trust:
        return "undecided"
    if abs(alpha.value - 2) <= KRONECKER_BAND:
        reasons.append(f"|α − 2| = {abs(alpha.value - 2):.2f} and the concentration ratio {ratio:.2f} is near 1")
        return "yes"
    if low > 2 + KRONECKER_BAND or high < 2 - KRONECKER_BAND:
        reasons.append(f"α lies away from 2 with its whole interval [{low:.2f}, {high:.2f}]")
        return "no"
    return "undecided"
