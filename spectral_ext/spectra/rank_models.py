"""Which law the spectrum follows in rank: power law, exponential or log-normal, by BIC (App. G)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from spectral_ext.spectra.regression import MIN_POINTS, FitError, as_vector

COEFFICIENTS = {"power_law": 2, "exponential": 2, "lognormal": 3}
"""Number of coefficients of each model."""
MODELS = tuple(COEFFICIENTS)
MODEL_NAMES = {"power_law": "power law", "exponential": "exponential", "lognormal": "log-normal"}


@dataclass(frozen=True)
class RankModels:
    """Least-squares fits of log σ_k by rank models, and their BIC; the smallest wins.

    ``coefficients`` per model, all of log σ_k: power_law ``(log c, −γ)`` on log k; exponential ``(log c, −β)`` on k;
    lognormal ``(log c, a, b)`` on log k and (log k)².
    """

    best: str
    bic: dict[str, float]
    rss: dict[str, float]
    coefficients: dict[str, tuple[float, ...]]
    n: int
    reason: str = ""

    @classmethod
    def empty(cls, reason: str, n: int = 0) -> RankModels:
        return cls("", {}, {}, {}, n, reason)

    @property
    def ok(self) -> bool:
        return bool(self.best)

    @property
    def margin(self) -> float:
        """BIC of the runner-up minus the winner's: below 2 the choice says little, above 10 it is clear."""
        first, second = sorted(self.bic.values())[:2] if self.ok else (math.nan, math.nan)
        return second - first

    def predict(self, model: str | None = None, k: Any = None) -> np.ndarray:
        """σ_k of one model (the best by default) at ranks k (1 … n by default)."""
        rank = np.arange(1, self.n + 1, dtype=np.float64) if k is None else np.asarray(k, dtype=np.float64)
        name = model or self.best
        return np.exp(_design(name, rank) @ np.array(self.coefficients[name]))


def _design(model: str, rank: np.ndarray) -> np.ndarray:
    log_rank = np.log(rank)
    columns = {
        "power_law": (log_rank,),
        "exponential": (rank,),
        "lognormal": (log_rank, log_rank**2),
    }[model]
    return np.stack([np.ones_like(rank), *columns], axis=1)


def fit_rank_models(sigma: Any) -> RankModels:
    """BIC = n log(RSS/n) + p log n on log σ_k, with p = 2, 2, 3 coefficients (App. G).

    Args:
        sigma: positive values in decreasing order (n,); values that are not positive are left out, ranks are kept.

    Raises:
        FitError: NaN, or fewer than four positive values.
    """
    sigma = as_vector(sigma, "sigma")
    rank = np.arange(1, len(sigma) + 1, dtype=np.float64)
    keep = (sigma > 0) & np.isfinite(sigma)
    rank, y = rank[keep], np.log(sigma[keep])
    n = len(y)
    if n < MIN_POINTS:
        raise FitError(f"rank models: {n} positive values, at least {MIN_POINTS} are needed")
    bic, rss, coefficients = {}, {}, {}
    floor = (
        n * (np.finfo(np.float64).eps * max(1.0, float(np.abs(y).max()))) ** 2
    )  # keeps log(RSS) finite on exact data
    for model in MODELS:
        design = _design(model, rank)
        solution = np.linalg.lstsq(design, y, rcond=None)[0]
        rss[model] = float(np.square(y - design @ solution).sum())
        bic[model] = n * math.log(max(rss[model], floor) / n) + design.shape[1] * math.log(n)
        coefficients[model] = tuple(float(c) for c in solution)
    return RankModels(min(bic, key=lambda name: bic[name]), bic, rss, coefficients, n)
