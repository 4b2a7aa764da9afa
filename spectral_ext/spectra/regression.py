"""Log-log least squares with its uncertainty: the ``Fit`` that every exponent is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

MIN_POINTS = 4


class FitError(ValueError):
    """The data cannot carry the fit: too few usable points, NaN, or no spread. The message says which."""


@dataclass(frozen=True)
class Fit:
    """An exponent: a slope by ordinary least squares, with a two-sided Student-t interval at ``level``.

    The interval holds its nominal rate for independent, equally spread residuals; residuals of rank-ordered data are
    correlated, so for γ and s it is a lower bound on the uncertainty. An empty fit has NaN values and a ``reason``.
    """

    value: float
    interval: tuple[float, float]
    r2: float
    n: int
    intercept: float = math.nan
    excluded: int = 0
    level: float = 0.95
    reason: str = ""

    @classmethod
    def empty(cls, reason: str, *, n: int = 0, excluded: int = 0, level: float = 0.95) -> Fit:
        return cls(
            math.nan,
            (math.nan, math.nan),
            math.nan,
            n,
            math.nan,
            excluded,
            level,
            reason,
        )

    @property
    def ok(self) -> bool:
        return math.isfinite(self.value)

    def __str__(self) -> str:
        if not self.ok:
            return f"– ({self.reason})"
        return f"{self.value:.2f} [{self.interval[0]:.2f}, {self.interval[1]:.2f}]"


def as_vector(x: Any, name: str) -> np.ndarray:
    """A float64 copy of a tensor, array or sequence with one dimension.

    Raises:
        ValueError: more than one dimension, or a NaN.
    """
    if hasattr(x, "detach"):
        x = x.detach().cpu().double().numpy()
    vector = np.array(x, dtype=np.float64)
    if vector.ndim != 1:
        raise ValueError(f"{name} must have one dimension, not shape {vector.shape}")
    if np.isnan(vector).any():
        raise FitError(f"{name} holds NaN at index {int(np.isnan(vector).argmax())}: drop or repair that entry")
    return vector


def fit_line(
    x: np.ndarray,
    y: np.ndarray,
    *,
    level: float = 0.95,
    excluded: int = 0,
    what: str = "fit",
) -> Fit:
    """OLS of y on x: slope, interval slope ± t_{n−2} SE, R² = 1 − RSS/TSS.

    Raises:
        FitError: fewer than four points, or all x equal.
    """
    n = len(x)
    if n < MIN_POINTS:
        left_out = f" ({excluded} of {n + excluded} are not positive)" if excluded else ""
        raise FitError(f"{what}: {n} usable points{left_out}, at least {MIN_POINTS} are needed")
    dx, dy = x - x.mean(), y - y.mean()
    spread = dx @ dx
    if spread <= (np.finfo(np.float64).eps * max(1.0, np.abs(x).max())) ** 2 * n:
        raise FitError(f"{what}: all {n} points have the same abscissa, so there is no slope")
    slope = float(dx @ dy / spread)
    rss = float(np.square(dy - slope * dx).sum())
    total = float(dy @ dy)
    half = float(stats.t.ppf(0.5 + level / 2, n - 2)) * math.sqrt(rss / (n - 2) / spread)
    return Fit(
        value=slope,
        interval=(slope - half, slope + half),
        r2=1.0 - rss / total if total > 0 else 1.0,
        n=n,
        intercept=float(y.mean() - slope * x.mean()),
        excluded=excluded,
        level=level,
    )


def fit_power_law(x: Any, y: Any, *, level: float = 0.95, what: str = "fit") -> Fit:
    """Slope of log y on log x over the points where both are positive; the others are counted in ``excluded``.

    Raises:
        ValueError: the lengths differ.
        FitError: NaN, fewer than four positive points, or all x equal.
    """
    x, y = as_vector(x, "x"), as_vector(y, "y")
    if x.shape != y.shape:
        raise ValueError(f"{what}: {len(x)} abscissas and {len(y)} ordinates")
    keep = (x > 0) & (y > 0) & np.isfinite(x) & np.isfinite(y)
    return fit_line(
        np.log(x[keep]),
        np.log(y[keep]),
        level=level,
        excluded=int((~keep).sum()),
        what=what,
    )


def squared_correlation(x: Any, y: Any) -> float:
    """R² of the straight line through (x_k, y_k), the squared Pearson correlation (App. A).

    NaN if x or y is constant, or holds a value that is not finite.

    Raises:
        ValueError: NaN, or lengths differ.
    """
    x, y = as_vector(x, "x"), as_vector(y, "y")
    if x.shape != y.shape:
        raise ValueError(f"squared_correlation: {len(x)} and {len(y)} points")
    if not len(x) or not np.isfinite(x).all() or not np.isfinite(y).all():
        return math.nan
    dx, dy = (_centred(values) for values in (x, y))  # of size 1, so that no square over- or underflows
    scale = float((dx @ dx) * (dy @ dy))
    return float((dx @ dy) ** 2 / scale) if scale > 0 else math.nan


def _centred(values: np.ndarray) -> np.ndarray:
    """values − mean, over their largest absolute value."""
    scaled = values / (np.abs(values).max() or 1.0)
    centred = scaled - scaled.mean()
    return centred / (np.abs(centred).max() or 1.0)


def log_correlation(x: Any, y: Any) -> float:
    """Pearson correlation of log x and log y where both are positive; NaN with fewer than two such points (App. L).

    Raises:
        ValueError: NaN, or lengths differ.
    """
    x, y = as_vector(x, "x"), as_vector(y, "y")
    if not len(x) or not len(y):
        return math.nan
    if x.shape != y.shape:
        raise ValueError(f"log_correlation: {len(x)} and {len(y)} points")
    keep = (x > 0) & (y > 0) & np.isfinite(x) & np.isfinite(y)
    log_x, log_y = (np.log(values[keep]) for values in (x, y))
    if keep.sum() < 2 or np.ptp(log_x) == 0 or np.ptp(log_y) == 0:
        return math.nan
    return float(np.corrcoef(log_x, log_y)[0, 1])
