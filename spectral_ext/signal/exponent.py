"""α from values that are measured on J groups each: a fit that knows the errors of σ̃ and of h̃, and their covariance.

Model, for the directions k = 1 … K and the groups j = 1 … J:

    σ̃_jk = σ_k (1 + ξ_jk),   h̃_jk = c σ_k^α (1 + ε_k) + η_jk

with ξ and η independent between groups (not between directions, nor of each other), and a scatter ε_k of variance τ²
around the law that more data would not remove. With f_k = c σ̃_k^α and the relative residual e_k = h̃_k/f_k − 1 the
estimate solves

    Σ_k w_k e_k = 0,   Σ_k w_k (x_k − x̄) e_k = Σ_k w_k (1 − w_k/Σw) (v_k^{xy} − α v_k^{xx}),   x_k = log σ̃_k

a quasi-likelihood with logarithmic link, whose right-hand side removes the bias that the errors of σ̃ would cause
(attenuation); v are the variances of the relative errors, and w_k = 1/(τ² + var(e_k)). An h̃_k ≤ 0 is a number like
others here: no logarithm of h̃ is taken, so that it is not dropped.

Sources: Fuller, Measurement Error Models (1987), §3.1, for the correction; McCullagh and Nelder (1989), §9, for the
quasi-likelihood. York's fit (Am. J. Phys. 2004) is its limit for τ = 0 and logarithms of positive values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import optimize, stats

from spectral_ext.spectra.regression import MIN_POINTS, Fit, FitError, fit_line

ITERATIONS = 200


@dataclass(frozen=True)
class GroupFit:
    """An exponent from group-wise measurements, with the two sources of its uncertainty apart.

    ``fit_interval`` is what the scatter of the K directions around the law leaves open, as if the data were exact.
    ``data_interval`` is what other samples of the same size would change. ``interval`` covers both.
    """

    value: float
    interval: tuple[float, float]
    fit_interval: tuple[float, float]
    data_interval: tuple[float, float]
    n: int
    """Directions in the fit."""
    num_nonpositive: int = 0
    """How many of them have h̃_k ≤ 0; they take part."""
    scatter: float = math.nan
    """τ: relative scatter of h_k around c σ_k^α beyond the errors of measurement."""
    influence: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False)
    """(J,): how far each group moves the estimate, to first order; its squares sum to (J − 1)/J var(data)."""
    level: float = 0.95
    reason: str = ""

    @classmethod
    def empty(cls, reason: str, *, n: int = 0, level: float = 0.95) -> GroupFit:
        nan = (math.nan, math.nan)
        return cls(math.nan, nan, nan, nan, n, level=level, reason=reason)

    @property
    def ok(self) -> bool:
        return math.isfinite(self.value)

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.interval[0]:.2f}, {self.interval[1]:.2f}]" if self.ok else f"– ({self.reason})"


def fit_alpha_from_groups(sigma: Any, h: Any, *, weights: Any = None, level: float = 0.95) -> GroupFit:
    """α of h_k = c σ_k^α from σ̃_jk and h̃_jk on J groups, with intervals.

    Args:
        sigma, h: (J, K), for instance the folds of :class:`CrossFit` restricted to the resolved directions, and h along
            the same directions on the same groups.
        weights: samples of each group; None for groups of equal size.
        level: coverage of the intervals.

    Raises:
        FitError: fewer than three groups or four directions, a mean σ̃_k ≤ 0, NaN, no positive mean h̃, σ̃ without
            spread beyond its errors, or an iteration that does not settle.
    """
    S, H, w = _groups(sigma, h, weights)
    groups, n = S.shape
    s, mean_h = w @ S, w @ H
    if not (s > 0).all():
        raise FitError(f"alpha: {int((s <= 0).sum())} of {n} held-out σ̃_k are not positive: pass resolved directions")
    if not (mean_h > 0).any():
        raise FitError("alpha: no held-out curvature is positive")
    dS, dH = (S - s) / s, H - mean_h
    x = np.log(s)
    v_xx, raw_xx = _smoothed(_variance(dS, w), x), _variance(dS, w)
    alpha, residual_variance = _start(x, mean_h, _variance(dH, w))
    for _ in range(ITERATIONS):
        shape = np.exp(alpha * (x - x.mean()))
        scaled = shape / residual_variance
        f = shape * float(scaled @ mean_h) / float(scaled @ shape)
        if not ((f > 0) & np.isfinite(f)).all():
            raise FitError("alpha: h is no power of σ on the held-out groups: the best law is not positive")
        v_yy, raw_xy = _variance(dH / f, w), _variance(dS, w, dH / f)
        spread = np.sqrt(v_yy * raw_xx)
        correlation = float(np.clip((raw_xy[spread > 0] / spread[spread > 0]).mean(), -1, 1)) if spread.any() else 0.0
        v_yy = _smoothed(v_yy, x)
        v_xy = correlation * np.sqrt(v_yy * v_xx)
        error = np.maximum(v_yy - 2 * alpha * v_xy + alpha**2 * v_xx, 1e-12)
        e = mean_h / f - 1
        tau2 = _scatter(e, error)
        residual_variance = f**2 * (tau2 + error)
        weight = 1 / (tau2 + error)
        lever = weight * (x - weight @ x / weight.sum())
        correction = weight * (1 - weight / weight.sum())
        slope = float(lever @ x - correction @ v_xx)
        if not slope > 0:
            raise FitError("alpha: the errors of σ̃ are as large as its spread over the directions")
        step = (float(lever @ e) - float(correction @ (v_xy - alpha * v_xx))) / slope
        alpha += float(np.clip(step, -0.5, 0.5))
        if abs(step) < 1e-8:
            break
    else:
        raise FitError(f"alpha: the fit does not settle within {ITERATIONS} steps; h is no power of σ here")
    lever /= slope
    influence = w * ((dH / f - alpha * dS) @ lever)
    from_data = groups / (groups - 1) * float(influence @ influence)
    from_fit = tau2 * float(lever @ lever)
    total = from_data + from_fit
    bound = from_data**2 / (groups - 1) + from_fit**2 / (n - 2)
    freedom = total**2 / bound if bound > 0 else math.inf
    quantile = 0.5 + level / 2

    def interval(variance: float, df: float) -> tuple[float, float]:
        half = float(stats.t.ppf(quantile, df)) * math.sqrt(variance)
        return alpha - half, alpha + half

    return GroupFit(
        alpha,
        interval(total, freedom),
        interval(from_fit, n - 2),
        interval(from_data, groups - 1),
        n,
        int((mean_h <= 0).sum()),
        math.sqrt(tau2),
        influence,
        level,
    )


def fit_noise_exponent(variance: Any, h: Any, *, level: float = 0.95) -> Fit:
    """γ of C_k ∝ h_k^γ: the slope of log C_k on log h_k, C_k the variance of a sample's gradient along direction k.

    Zhang, Yang and Tu (arXiv 2602.05600) find C_ii ∝ H_ii^γ with 1 ≤ γ ≤ 2. A mean gradient that is pure noise has
    σ_k² ∝ C_k, so that its α is 2/γ.

    Args:
        variance: (K,), for instance mean_b⟨D_k, G_b⟩² − σ_k² from the gradients G_b of single samples.
        h: (K,) curvature along the same directions.

    Raises:
        FitError: fewer than four directions with positive h and positive variance.
    """
    variance, curvature = np.asarray(variance, dtype=np.float64), np.asarray(h, dtype=np.float64)
    keep = (curvature > 0) & (variance > 0) & np.isfinite(curvature) & np.isfinite(variance)
    return fit_line(
        np.log(curvature[keep]),
        np.log(variance[keep]),
        level=level,
        excluded=int((~keep).sum()),
        what="noise exponent",
    )


def _groups(sigma: Any, h: Any, weights: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    S, H = np.asarray(sigma, dtype=np.float64), np.asarray(h, dtype=np.float64)
    if S.ndim != 2 or S.shape != H.shape:
        raise ValueError(f"sigma and h must have one shape (groups, directions), not {S.shape} and {H.shape}")
    if not (np.isfinite(S).all() and np.isfinite(H).all()):
        raise FitError("alpha: a group's σ̃ or h̃ is NaN or infinite")
    groups, n = S.shape
    if groups < 3:
        raise FitError(f"alpha: {groups} groups, at least 3 are needed")
    if n < MIN_POINTS:
        raise FitError(f"alpha: {n} resolved directions, at least {MIN_POINTS} are needed")
    w = np.ones(groups) if weights is None else np.asarray(weights, dtype=np.float64)
    return S, H, w / w.sum()


def _variance(a: np.ndarray, w: np.ndarray, b: np.ndarray | None = None) -> np.ndarray:
    """(Co)variance of the weighted mean over groups of deviations (J, K) from it."""
    groups = len(w)
    return groups / (groups - 1) * (np.square(w)[:, None] * a * (a if b is None else b)).sum(0)


def _smoothed(variance: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Variances as a power of σ. A variance from J − 1 degrees of freedom is too rough for a weight of its own: the
    directions whose groups agree by chance would rule the fit."""
    if not (variance > 0).all():
        return variance
    slope, intercept = np.polyfit(x - x.mean(), np.log(variance), 1)
    return np.exp(intercept + slope * (x - x.mean()))


def _scatter(e: np.ndarray, error: np.ndarray) -> float:
    """τ² with Σ e²/(τ² + error) = K − 2 (Paule and Mandel 1982), or 0 where the errors explain the residuals."""

    def excess(tau2: float) -> float:
        return float((e * e / (tau2 + error)).sum()) - (len(e) - 2)

    return 0.0 if excess(0.0) <= 0 else float(optimize.brentq(excess, 0.0, float(e @ e)))


def _start(x: np.ndarray, h: np.ndarray, variance: np.ndarray) -> tuple[float, np.ndarray]:
    """α and the variances of h̃ − f to begin with, from a line through the h̃ that exceed their error twice."""
    clear = h > 2 * np.sqrt(variance)
    use = clear if clear.sum() > 2 else h > 0
    if use.sum() < 3:
        return 1.5, variance + np.square(h) + np.finfo(np.float64).tiny
    slope, intercept = np.polyfit(x[use], np.log(h[use]), 1)
    return float(slope), variance + 0.1 * np.exp(2 * (intercept + slope * x))
