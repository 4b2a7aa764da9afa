"""α, γ and s: the three exponents of the Alpha Triangle (§7.1), and α by quartiles of the rank (App. F)."""

from __future__ import annotations

from typing import Any

import numpy as np

from spectral_ext.spectra.regression import Fit, FitError, as_vector, fit_line, fit_power_law


def fit_alpha(sigma: Any, h: Any, *, level: float = 0.95) -> Fit:
    """Curvature exponent α of h_k = c σ_k^α: the OLS slope of log h_k on log σ_k over h_k > 0 (eq. 1).

    Args:
        sigma: gradient singular values (K,).
        h: directional curvatures (K,). Values ≤ 0 are left out and counted in ``excluded``.
        level: coverage of the interval.

    Raises:
        ValueError: lengths differ.
        FitError: NaN, or fewer than four positive pairs.
    """
    return fit_power_law(sigma, h, level=level, what="alpha")


def fit_gamma(sigma: Any, *, level: float = 0.95) -> Fit:
    """Rank-decay exponent γ of σ_k ~ k^(−γ): minus the OLS slope of log σ_k on log k, k = 1, 2, … in the given order.

    Raises:
        FitError: NaN, or fewer than four positive values.
    """
    return _rank_slope(as_vector(sigma, "sigma"), level, "gamma")


def fit_s(h: Any, *, level: float = 0.95) -> Fit:
    """Hessian decay exponent s: minus the OLS slope of log(positive h sorted in decreasing order) on log k (§7.1).

    Raises:
        FitError: NaN, or fewer than four positive values.
    """
    h = as_vector(h, "h")
    positive = np.sort(h[h > 0])[::-1]
    return _rank_slope(positive, level, "s", len(h) - len(positive))


def alpha_by_quartile(sigma: Any, h: Any, *, parts: int = 4, level: float = 0.95) -> list[Fit]:
    """α within each quarter of the rank index, strongest first (App. F); an unusable quarter is an empty fit."""
    sigma, h = as_vector(sigma, "sigma"), as_vector(h, "h")
    fits = []
    for index in np.array_split(np.arange(len(sigma)), parts):
        try:
            fits.append(fit_alpha(sigma[index], h[index], level=level))
        except FitError as error:
            fits.append(Fit.empty(str(error), n=len(index), level=level))
    return fits


def _rank_slope(values: np.ndarray, level: float, what: str, excluded: int = 0) -> Fit:
    rank = np.arange(1, len(values) + 1, dtype=np.float64)
    keep = (values > 0) & np.isfinite(values)
    fit = fit_line(
        np.log(rank[keep]),
        -np.log(values[keep]),
        level=level,
        excluded=excluded + int((~keep).sum()),
        what=what,
    )
    return fit
