"""The spectral transfer identity s = αγ (Theorem 7): its error, what bounds it, and how sure we are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from spectral_ext.spectra.curvature_exponent import fit_alpha, fit_gamma, fit_s
from spectral_ext.spectra.regression import FitError, as_vector, fit_line


@dataclass(frozen=True)
class TransferCheck:
    """αγ against s, and why they may differ.

    With all h_k > 0 and s₀ fitted in the order of σ (not of h), the residuals e of α and r of γ give exactly
    s₀ = αγ − slope(e | log k), and ⟨e, log σ⟩ = 0 turns this into

        |s₀ − αγ| / |αγ| ≤ √((1 − R²_α)(1 − R²_γ)/R²_α) / R²_γ,

    the ``bound``: zero as soon as either law is exact. Sorting h before the fit adds s − s₀.
    """

    alpha_gamma: float
    s: float
    error: float
    """|s − αγ|."""
    relative_error: float
    """|s − αγ| / |s|."""
    deviation_interval: tuple[float, float]
    """Percentile bootstrap over directions k of s − αγ at ``level``."""
    s_unsorted: float
    """s₀: the slope with h in the order of σ."""
    bound: float
    """Bound on |s₀ − αγ|/|αγ|; R²_α, R²_γ over the directions with h > 0."""
    r2_gamma: float
    r2_alpha: float
    level: float = 0.95
    reason: str = ""

    @classmethod
    def empty(cls, reason: str) -> TransferCheck:
        nan = math.nan
        return cls(nan, nan, nan, nan, (nan, nan), nan, nan, nan, nan, reason=reason)

    @property
    def ok(self) -> bool:
        return math.isfinite(self.alpha_gamma)

    @property
    def verdict(self) -> str:
        """``holds``: the interval contains 0 and lies within ±10 % of s; ``not refuted``: contains 0 but is wider;
        ``deviates``: excludes 0; "" if empty."""
        if not self.ok:
            return ""
        low, high = self.deviation_interval
        if not low <= 0 <= high:
            return "deviates"
        return "holds" if max(-low, high) <= 0.1 * abs(self.s) else "not refuted"


def check_transfer(sigma: Any, h: Any, *, level: float = 0.95, draws: int = 1000, seed: int = 0) -> TransferCheck:
    """s, αγ and a bootstrap interval of s − αγ.

    Directions are drawn with replacement together with their rank, so each draw keeps (log k, log σ_k, log h_k)
    triples; s uses the rank of h_k among the positive ones, as in ``fit_s``.

    Raises:
        FitError: fewer than four positive pairs, or NaN.
    """
    sigma, h = as_vector(sigma, "sigma"), as_vector(h, "h")
    alpha, gamma, s = fit_alpha(sigma, h), fit_gamma(sigma), fit_s(h)
    product = alpha.value * gamma.value
    deviations = _bootstrap(sigma, h, draws, np.random.default_rng(seed))
    tail = 50 * (1 - level)
    low, high = np.percentile(deviations, [tail, 100 - tail])
    error = abs(s.value - product)
    keep = (sigma > 0) & (h > 0)
    log_rank = np.log(np.arange(1, len(sigma) + 1, dtype=np.float64)[keep])
    unsorted = -fit_line(log_rank, np.log(h[keep]), what="s").value
    r2_gamma = fit_line(log_rank, np.log(sigma[keep]), what="gamma").r2
    return TransferCheck(
        alpha_gamma=product,
        s=s.value,
        error=error,
        relative_error=error / abs(s.value) if s.value else math.inf,
        deviation_interval=(float(low), float(high)),
        s_unsorted=unsorted,
        bound=math.sqrt((1 - alpha.r2) * (1 - r2_gamma) / alpha.r2) / r2_gamma if alpha.r2 > 0 < r2_gamma else math.inf,
        r2_gamma=gamma.r2,
        r2_alpha=alpha.r2,
        level=level,
    )


def _bootstrap(sigma: np.ndarray, h: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """s − αγ of ``draws`` resamples, all at once."""
    keep = (sigma > 0) & (h > 0)
    n = int(keep.sum())
    if n < 4:
        raise FitError(f"transfer: {n} positive pairs, at least 4 are needed")
    log_sigma, log_h = np.log(sigma[keep]), np.log(h[keep])
    sigma_rank = np.log(np.arange(1, len(sigma) + 1, dtype=np.float64)[keep])
    h_rank = np.empty(n)
    h_rank[np.argsort(-log_h, kind="stable")] = np.log(np.arange(1, n + 1, dtype=np.float64))
    picks = rng.integers(0, n, size=(draws, n))
    with np.errstate(divide="ignore", invalid="ignore"):
        alpha = _slopes(log_sigma[picks], log_h[picks])
        gamma = -_slopes(sigma_rank[picks], log_sigma[picks])
        s = -_slopes(h_rank[picks], log_h[picks])
    deviations = s - alpha * gamma
    return deviations[np.isfinite(deviations)]


def _slopes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    dx, dy = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    return (dx * dy).sum(1) / np.square(dx).sum(1)
