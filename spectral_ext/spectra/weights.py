"""The weight's own spectrum: tail exponent α_weight and rank slope s_weight, two different things (Corollary 8)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import norm

from spectral_ext.spectra.curvature_exponent import fit_gamma
from spectral_ext.spectra.regression import MIN_POINTS, Fit, FitError, as_vector


@dataclass(frozen=True)
class WeightSpectrum:
    """Exponents of the eigenvalues of WWᵀ."""

    alpha_weight: Fit
    """Density exponent of the tail, p(λ) ~ λ^(−α) for λ ≥ x_min; ``n`` eigenvalues lie in it."""
    x_min: float
    distance: float
    """Kolmogorov–Smirnov distance of the fitted tail."""
    s_weight: Fit
    """Minus the slope of log λ_k on log k over the top k."""


def weight_spectrum(weight: Any, *, top_k: int = 20) -> WeightSpectrum:
    """Both exponents of a weight W (flattened to two dimensions), from the eigenvalues λ = singular values squared.

    Raises:
        FitError: fewer than four positive eigenvalues.
        ValueError: the weight holds NaN.
    """
    matrix = (
        weight.detach().cpu().double().numpy() if hasattr(weight, "detach") else np.asarray(weight, dtype=np.float64)
    )
    matrix = matrix.reshape(matrix.shape[0], -1)
    if not np.isfinite(matrix).all():
        raise ValueError("the weight holds NaN or Inf")
    eigenvalues = np.linalg.svd(matrix, compute_uv=False) ** 2
    eigenvalues = eigenvalues[eigenvalues > 1e-12 * eigenvalues.max(initial=0.0)]
    alpha, x_min, distance = fit_tail_exponent(eigenvalues)
    return WeightSpectrum(alpha, x_min, distance, fit_gamma(eigenvalues[:top_k]))


def fit_tail_exponent(values: Any, *, level: float = 0.95) -> tuple[Fit, float, float]:
    """Continuous power-law tail by maximum likelihood, x_min by the smallest Kolmogorov–Smirnov distance.

    Clauset et al. 2009: α = 1 + n/Σ log(x_i/x_min) over the n values ≥ x_min; the interval is α ± z(α − 1)/√n,
    which takes x_min as given. The
    distance is max_i |F(x_i) − (i − 1)/n|, as in their code.

    Returns:
        ``(fit, x_min, distance)``; the fit's ``r2`` is NaN, as it is no regression.

    Raises:
        FitError: NaN, or fewer than four positive values.
    """
    x = as_vector(values, "values")
    x = np.sort(x[x > 0])
    if len(x) < MIN_POINTS:
        raise FitError(f"tail exponent: {len(x)} positive values, at least {MIN_POINTS} are needed")
    logs = np.log(x)
    starts = np.unique(x, return_index=True)[1][:-1]
    best = (math.inf, 0, math.nan)
    for start in starts:
        tail = logs[start:] - logs[start]
        n = len(tail)
        if n < 2 or tail[-1] == 0:
            continue
        alpha = 1 + n / tail.sum()
        model = -np.expm1(-(alpha - 1) * tail)
        empirical = np.arange(n) / n
        distance = np.abs(model - empirical).max()
        if distance < best[0]:
            best = (float(distance), int(start), float(alpha))
    distance, start, alpha = best
    if not math.isfinite(alpha):
        raise FitError("tail exponent: all values are equal, so there is no tail")
    n = len(x) - start
    half = float(norm.ppf(0.5 + level / 2)) * (alpha - 1) / math.sqrt(n)
    return (
        Fit(
            alpha,
            (alpha - half, alpha + half),
            math.nan,
            n,
            excluded=start,
            level=level,
        ),
        float(x[start]),
        distance,
    )
