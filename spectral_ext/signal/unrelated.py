"""What s and the identity s = αγ show where h has nothing to do with σ."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from spectral_ext.spectra.curvature_exponent import fit_alpha, fit_gamma, fit_s
from spectral_ext.spectra.regression import FitError, as_vector


@dataclass(frozen=True)
class TransferNull:
    """|s − αγ|/|s| as measured, against two kinds of h that are unrelated to σ."""

    relative_error: float
    p_permuted: float
    """Share of the permutations of h over the directions whose error is as small: does it matter which h_k belongs to
    which σ_k?"""
    p_sorted: float
    """Share of draws of h from a log-normal of the same spread, sorted in decreasing order and otherwise unrelated to
    σ, whose error is as small: does the identity say more than that both spectra decrease?"""
    draws: int


def transfer_null(sigma: Any, h: Any, *, draws: int = 999, seed: int = 0) -> TransferNull:
    """Two null distributions of the error of s = αγ (Theorem 7).

    The p-values count the measured value among the draws, (1 + hits)/(1 + draws), so that they are valid at any number
    of draws.

    Raises:
        FitError: fewer than four directions with h > 0, NaN, or s = 0.
    """
    sigma, h = as_vector(sigma, "sigma"), as_vector(h, "h")
    keep = (sigma > 0) & (h > 0)
    gamma, s = fit_gamma(sigma).value, fit_s(h).value
    error = abs(s - fit_alpha(sigma, h).value * gamma) / abs(s) if s else math.inf
    if not math.isfinite(error):
        raise FitError("transfer: s is zero, so that a relative error means nothing")
    log_sigma, log_h = np.log(sigma[keep]), np.log(h[keep])
    rng = np.random.default_rng(seed)
    permuted = rng.permuted(np.broadcast_to(log_h, (draws, len(log_h))), axis=1)
    unrelated = -np.sort(-rng.normal(0.0, log_h.std(), (draws, len(log_h))), axis=1)
    log_rank = np.log(np.arange(1, len(log_h) + 1))
    hits = []
    for values in (permuted, unrelated):
        slopes = -_slope(log_rank, -np.sort(-values, axis=1))
        errors = np.abs(slopes - _slope(log_sigma, values) * gamma) / np.abs(slopes)
        hits.append((1 + int((errors <= error).sum())) / (1 + draws))
    return TransferNull(error, hits[0], hits[1], draws)


def s_of_scatter(sigma: Any, h: Any, *, draws: int = 999, seed: int = 0) -> float:
    """The mean s of an h that is unrelated to σ and has the scatter of the measured one around its law.

    Sorting makes a slope out of scatter: s of independent log-normal values of log-sd .3 is .34 at K = 20. An s near
    this number says nothing.

    Raises:
        FitError: fewer than four directions with h > 0, or NaN.
    """
    sigma, h = as_vector(sigma, "sigma"), as_vector(h, "h")
    fit = fit_alpha(sigma, h)
    keep = (sigma > 0) & (h > 0)
    residual = np.log(h[keep]) - fit.intercept - fit.value * np.log(sigma[keep])
    spread = math.sqrt(float(residual @ residual) / max(len(residual) - 2, 1))
    drawn = -np.sort(-np.random.default_rng(seed).normal(0.0, spread, (draws, len(residual))), axis=1)
    return float(-_slope(np.log(np.arange(1, len(residual) + 1)), drawn).mean())


def _slope(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """OLS slopes of rows of y on x."""
    dx = x - x.mean()
    return (y - y.mean(1, keepdims=True)) @ dx / (dx @ dx)
