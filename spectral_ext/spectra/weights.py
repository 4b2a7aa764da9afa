"""The weight's own spectrum: tail exponent α_weight and rank slope s_weight, two different things (Corollary 8)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor

from spectral_ext.spectra.curvature_exponent import fit_gamma
from spectral_ext.spectra.regression import MIN_POINTS, Fit, FitError, as_vector

GRAM_FROM = 2**20
"""Entries from which on λ is computed as an eigenvalue of the Gram matrix."""
TILE = 4096
"""Rows that are converted to float64 at a time."""


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


def weight_spectrum(weight: Any, *, top_k: int = 20, family: bool = False) -> WeightSpectrum:
    """Both exponents of a weight W, from the eigenvalues λ = singular values squared.

    Args:
        weight: (m, …), flattened to two dimensions. A matrix of ``GRAM_FROM`` entries or more goes through WᵀW or WWᵀ
            in float64, whichever is smaller.
        top_k: the ranks of ``s_weight``.
        family: the weight holds E matrices (E, m, n); their eigenvalues are taken together.

    Raises:
        FitError: fewer than four positive eigenvalues.
        ValueError: the weight holds NaN.
    """
    W = weight.detach() if isinstance(weight, Tensor) else torch.as_tensor(np.asarray(weight, dtype=np.float64))
    W = W if family else W.reshape(1, W.shape[0], -1)
    if not bool(W.isfinite().all()):
        raise ValueError("the weight holds NaN or Inf")
    eigenvalues = np.concatenate([_eigenvalues(one) for one in W])
    eigenvalues = np.sort(eigenvalues)[::-1]
    eigenvalues = eigenvalues[eigenvalues > 1e-12 * eigenvalues.max(initial=0.0)]
    alpha, x_min, distance = fit_tail_exponent(eigenvalues)
    return WeightSpectrum(alpha, x_min, distance, fit_gamma(eigenvalues[:top_k]))


def _eigenvalues(W: Tensor) -> np.ndarray:
    """The squared singular values of a matrix, float64."""
    if W.numel() < GRAM_FROM:
        return torch.linalg.svdvals(W.double()).square().cpu().numpy()
    W = W if W.shape[0] >= W.shape[1] else W.mT
    gram = W.new_zeros(W.shape[1], W.shape[1], dtype=torch.float64)
    for rows in W.split(TILE):
        rows = rows.double()
        gram.addmm_(rows.mT, rows)
    return torch.linalg.eigvalsh(gram).clamp_min(0).cpu().numpy()


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
