"""Singular values of a matrix with separable variance profile, from its factor spectra (Couillet–Hachem; App. L)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from spectral_ext.spectra.regression import FitError, as_vector


@dataclass(frozen=True)
class SpectrumPrediction:
    """Predicted against measured singular values, decreasing, after matching Σσ² (the prediction knows no scale)."""

    sigma: np.ndarray
    """Predicted quantiles, one for each measured singular value."""
    ks: float
    """Kolmogorov–Smirnov distance between the two distributions of the largest ``compared`` singular values."""
    log_rms: float
    """Root mean square of log(predicted/measured) over the top ranks."""
    top: int
    """How many ranks ``log_rms`` covers."""
    scale: float
    """‖G‖²_F · B/(tr C_δ · tr C_A): 1 where samples are independent with zero mean, as the theory assumes."""
    compared: int = 0
    """How many singular values ``ks`` compares: those above ``RANK_CUTOFF`` · σ_1. The others are zero but for
    rounding, and no distribution describes rounding errors.
    """


RANK_CUTOFF = 1e-6
"""Share of σ_1 below which a singular value counts as zero."""
POINTS = 600
"""Grid points of the predicted distribution."""


class PredictionError(FitError):
    """The prediction could not be computed from these spectra: they are zero or not finite, or the solver failed."""


def separable_distribution(rows: Any, columns: Any, *, points: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Distribution of the squared singular values of Y = D^½ X D̃^½, X (m, n) with independent entries of variance 1/n.

    The deterministic equivalent at z = x + iη is the fixed point with Im δ > 0 and Im zδ > 0 of

        δ(z) = (1/n) Σ_i d_i / (−z(1 + d_i δ̃)),   δ̃(z) = (1/n) Σ_j d̃_j / (−z(1 + d̃_j δ)),

    and the Stieltjes transform of YYᵀ is (1/m) Σ_i 1/(−z(1 + d_i δ̃)); the density is its imaginary part over π. On the
    negative axis δ is real and found by bisection; Newton steps then follow it along z = x·e^(iφ) from φ = π to 10⁻³,
    which is the relative resolution.

    Args:
        rows, columns: eigenvalues d (m,) and d̃ (n,), non-negative, any order.
        points: size of the grid, over ten decades below the upper edge.

    Returns:
        ``(x, tail)``: the grid, increasing, and the fraction of the m eigenvalues of YYᵀ above each x.

    Raises:
        ValueError: NaN.
        PredictionError: a spectrum that is all zero or not finite, or the iteration did not converge.
    """
    rows, columns = as_vector(rows, "rows"), as_vector(columns, "columns")
    # Y/√(s t) has the spectra d/s and d̃/t: with the largest eigenvalue at 1 nothing over- or underflows.
    row_scale, column_scale = _peak(rows, "rows"), _peak(columns, "columns")
    x, tail = _unit_distribution(rows / row_scale, columns / column_scale, points)
    with np.errstate(over="ignore", under="ignore"):
        return x * row_scale * column_scale, tail


def _unit_distribution(rows: np.ndarray, columns: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray]:
    """``separable_distribution`` of spectra whose largest eigenvalue is 1."""
    (d, d_count), (e, e_count) = _atoms(rows), _atoms(columns)
    m, n = len(rows), len(columns)
    edge = d.max() * e.max() * (np.sqrt(d_count.sum() / n) + np.sqrt(e_count.sum() / n)) ** 2
    edge = 1.2 * min(edge, 4 * float(d @ d_count) * float(e @ e_count) / n)
    x = np.geomspace(edge * 1e-10, edge, points)
    delta = _on_negative_axis(x, d, d_count / n, e, e_count / n).astype(np.complex128)
    for angle in (*np.linspace(np.pi, 1.0, 6)[1:-1], *np.geomspace(1.0, 1e-3, 16)):
        z = x * np.exp(1j * angle)
        delta = _solve(delta, z, d, d_count / n, e, e_count / n)
    other = _transform(delta, z, e, e_count / n)
    stieltjes = ((1 / (1 + np.outer(other, d))) @ d_count + (m - d_count.sum())) / (-z * m)
    density = np.imag(stieltjes) / np.pi * x  # with respect to log x
    cells = (density[1:] + density[:-1]) / 2 * np.log(x[1] / x[0])
    tail = np.append(np.cumsum(cells[::-1])[::-1], 0.0)
    # The finite angle spreads each edge, which adds about 2 % of mass; there are min(rank) positive eigenvalues of m.
    mass = min(d_count.sum(), e_count.sum()) / m
    return x, tail * min(1.0, mass / tail[0])


def predict_singular_values(
    rows: Any, columns: Any, sigma: Any, *, samples: int | None = None, top: int = 20
) -> SpectrumPrediction:
    """Predict the singular values of G from the spectra of C_δ and C_A, and measure the distance (App. L).

    In the factors' eigenbases Var(G̃_ij) ∝ λ_i(C_δ) λ_j(C_A): a separable profile, so the distribution of σ depends on
    the two spectra alone. Both sides are scaled to the same Σσ². The distance is taken over the singular values that
    are not zero but for rounding: each side is the distribution of its largest ``compared`` values.

    Args:
        rows: all m eigenvalues of C_δ.
        columns: all n eigenvalues of C_A.
        sigma: all min(m, n) singular values of G.
        samples: B, for the scale; NaN without it.
        top: ranks in ``log_rms``.

    Raises:
        ValueError: NaN, or a wrong number of singular values.
        PredictionError: a zero spectrum or gradient, values that are not finite, or a solver that did not converge.
    """
    rows, columns = as_vector(rows, "rows"), as_vector(columns, "columns")
    sigma = np.sort(as_vector(sigma, "sigma"))[::-1]
    if len(sigma) != min(len(rows), len(columns)):
        raise ValueError(f"{len(sigma)} singular values for a {len(rows)} × {len(columns)} gradient: pass all of them")
    sigma_scale, row_scale, column_scale = (
        _peak(values, name) for values, name in ((sigma, "sigma"), (rows, "rows"), (columns, "columns"))
    )
    sigma, rows, columns = sigma / sigma_scale, rows / row_scale, columns / column_scale
    small, large = sorted((rows, columns), key=len)
    x, tail = _unit_distribution(small, large, POINTS)
    levels = (np.arange(len(sigma)) + 0.5) / len(sigma)
    predicted = np.sqrt(np.exp(np.interp(levels, tail[::-1], np.log(x)[::-1])))
    energy = float(sigma @ sigma)
    unit = np.sqrt(energy / (predicted @ predicted))
    predicted *= unit
    positive = sigma[sigma > RANK_CUTOFF]
    count = len(positive)
    # The fraction above a value among the largest `count` of len(sigma) values, which are count/len(sigma) of the mass.
    above = np.minimum(np.interp(2 * np.log(positive / unit), np.log(x), tail) * len(sigma) / count, 1.0)
    index = np.arange(count)
    ks = np.maximum(above - index / count, (index + 1) / count - above).max()
    top = min(top, count)
    # ‖G‖² B/(tr C_δ tr C_A), as a product of three numbers near 1 and the three scales, multiplied in logarithms
    share = energy / float(rows.clip(0).sum() * columns.clip(0).sum())
    log_scale = 2 * math.log(sigma_scale) - math.log(row_scale) - math.log(column_scale)
    return SpectrumPrediction(
        sigma=predicted * sigma_scale,
        ks=float(ks),
        log_rms=float(np.sqrt(np.mean(np.log(predicted[:top] / sigma[:top]) ** 2))),
        top=top,
        scale=share * samples * _exp(log_scale) if samples else math.nan,
        compared=count,
    )


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def _peak(values: np.ndarray, name: str) -> float:
    """The largest value; a spectrum must have a positive and finite one."""
    peak = float(values.max(initial=0.0))
    if peak <= 0:
        reason = "the gradient is zero" if name == "sigma" else f"{name}: all eigenvalues are zero"
        raise PredictionError(f"{reason}, so that there is no distribution to predict")
    if not np.isfinite(values).all():
        raise PredictionError(f"{name} holds a value that is not finite, so that there is no distribution to predict")
    return peak


def _atoms(values: np.ndarray, bins: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Positive eigenvalues as (value, multiplicity), merged within a logarithmic bin at its mean: the trace is kept."""
    values = values[values > 1e-12 * values.max()]
    label = np.round(np.log(values) * bins / np.log(1e12) * 2).astype(np.int64)
    _, inverse, count = np.unique(label, return_inverse=True, return_counts=True)
    return np.bincount(inverse, weights=values) / count, count.astype(np.float64)


def _transform(delta: np.ndarray, z: np.ndarray, atoms: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return (1 / (1 + np.outer(delta, atoms))) @ (weight * atoms) / -z


def _derivative(delta: np.ndarray, z: np.ndarray, atoms: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return (1 / (1 + np.outer(delta, atoms)) ** 2) @ (weight * atoms**2) / z


def _on_negative_axis(
    x: np.ndarray, d: np.ndarray, d_weight: np.ndarray, e: np.ndarray, e_weight: np.ndarray
) -> np.ndarray:
    """δ(−x) > 0 by bisection in log δ: f∘g rises less than proportionally, so the root is unique."""
    low, high = np.full(len(x), -800.0), np.log(d_weight @ d) - np.log(x)  # δ ≤ (1/n) Σ d/x, as δ̃ ≥ 0
    for _ in range(64):
        middle = (low + high) / 2
        delta = np.exp(middle)
        image = _transform(_transform(delta, -x, e, e_weight), -x, d, d_weight)
        above = np.log(image) > middle
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.exp((low + high) / 2)


def _solve(
    delta: np.ndarray,
    z: np.ndarray,
    d: np.ndarray,
    d_weight: np.ndarray,
    e: np.ndarray,
    e_weight: np.ndarray,
    tolerance: float = 1e-9,
    iterations: int = 500,
) -> np.ndarray:
    """The root of δ = f(g(δ)) at every z; a Newton step to where no solution lies becomes a fixed-point step."""
    delta = delta.copy()
    active = np.arange(len(z))
    for step in range(iterations):
        here, at = delta[active], z[active]
        other = _transform(here, at, e, e_weight)
        image = _transform(other, at, d, d_weight)
        slope = _derivative(other, at, d, d_weight) * _derivative(here, at, e, e_weight)
        newton = here - (here - image) / (1 - slope)
        outside = (newton.imag <= 0) | ((at * newton).imag <= 0) | ~np.isfinite(newton)  # of the cone of solutions
        careful = outside | (step % 8 == 0)
        new = np.where(careful, (here + image) / 2, newton)
        delta[active] = new
        active = active[np.abs(here - image) > tolerance * np.abs(here)]
        if not len(active):
            return delta
    raise PredictionError(f"Couillet–Hachem fixed point: {len(active)} of {len(z)} grid points did not converge")
