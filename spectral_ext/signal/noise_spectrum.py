"""The singular values of a gradient that is pure noise, from C_A and C_δ alone; what lies beyond them is signal.

If the B samples are independent, the population gradient is zero and d and a are independent of each other, then
G = (1/B) Σ_b Σ_s d_bs a_bsᵀ has, in the eigenbases of the factors, entries of variance

    Var(G_ij) = κ λ_i(C_δ) λ_j(C_A)/B,

κ = 1 where the S positions of a sample are independent too. A convolution or a sequence has correlated positions; then
κ > 1, and S/κ is the *effective number of positions* (between 1, all positions alike, and S). The distribution of the
singular values of such a matrix is that of Couillet and Hachem (2014); its upper edge follows from the same equations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize

from spectral_ext.spectra.couillet_hachem import separable_distribution
from spectral_ext.spectra.regression import FitError, as_vector

TRACY_WIDOM = 0.9793
"""The 95 % quantile of the Tracy–Widom law of real matrices: the fluctuation of the largest noise singular value."""


@dataclass(frozen=True)
class NoiseLevel:
    """What noise alone would give, and how many measured singular values exceed it."""

    sigma: np.ndarray
    """(K,): predicted noise singular values, k = 1 … K."""
    edge: float
    """Upper edge of the predicted spectrum for large m and n."""
    threshold: float
    """The largest noise singular value lies above it in 5 % of the samples (Tracy–Widom)."""
    num_beyond: int
    """How many of the measured σ_k exceed the threshold."""
    correlation: float
    """κ, the variance of a sample's gradient over that of independent positions."""
    effective_positions: float
    """S/κ."""


def noise_level(
    rows: Any,
    columns: Any,
    sigma: Any,
    *,
    samples: int,
    positions: float = 1.0,
    correlation: float = 1.0,
    shape: Any = None,
) -> NoiseLevel:
    """Noise spectrum of a mean gradient of ``samples`` samples, and the measured σ_k beyond it.

    Args:
        rows, columns: all eigenvalues of C_δ = Σdd'/B (m,) and C_A = Σaa'/(BS) (n,); "expand" scale.
        sigma: measured singular values (K,), decreasing.
        samples: B.
        positions: S.
        correlation: κ, from :func:`sample_correlation`.
        shape: all min(m, n) predicted singular values in any unit, where :func:`predict_singular_values` has found them
            already.

    Raises:
        FitError: NaN, or a factor that is zero.
        ValueError: ``samples`` or ``correlation`` is not positive.
    """
    if not (samples > 0 and correlation > 0):
        raise ValueError(f"samples and correlation must be positive, not {samples} and {correlation}")
    d, e = (np.clip(as_vector(v, name), 0.0, None) for v, name in ((rows, "rows"), (columns, "columns")))
    sigma = as_vector(sigma, "sigma")
    if not (d.any() and e.any()):
        raise FitError("a factor is zero, so that there is no noise to predict")
    edge, scale = upper_edge(d, e)
    unit = correlation / samples
    if shape is None:
        shape = _quantiles(d, e)
    predicted = as_vector(shape, "shape")
    predicted = predicted * math.sqrt(unit * float(d.sum() * e.sum()) / float(predicted @ predicted))
    threshold = math.sqrt(unit * (edge + TRACY_WIDOM * scale))
    return NoiseLevel(
        predicted[: len(sigma)],
        math.sqrt(unit * edge),
        threshold,
        int((sigma > threshold).sum()),
        correlation,
        positions / correlation,
    )


def _quantiles(d: np.ndarray, e: np.ndarray) -> np.ndarray:
    short, long = (d, e) if len(d) <= len(e) else (e, d)
    x, tail = separable_distribution(short, long)
    levels = (np.arange(len(short)) + 0.5) / len(short)
    return np.sqrt(np.exp(np.interp(levels, tail[::-1], np.log(x)[::-1])))


def sample_correlation(gn_sample: Any, sigma: Any, h_kron: Any) -> float:
    """κ = median_k (mean_b ⟨u_kv_kᵀ, G_b⟩² − σ_k²)/h_k^Kron: the variance of a sample's gradient along the directions,
    over what the factors say for independent positions.

    Raises:
        FitError: no direction has a positive h_kron and a positive variance.
    """
    gn_sample, sigma, h_kron = as_vector(gn_sample, "gn_sample"), as_vector(sigma, "sigma"), as_vector(h_kron, "h_kron")
    variance = gn_sample - sigma**2
    keep = (h_kron > 0) & (variance > 0) & np.isfinite(variance) & np.isfinite(h_kron)
    if not keep.any():
        raise FitError("no direction has a positive variance over the samples")
    return float(np.median(variance[keep] / h_kron[keep]))


def upper_edge(d: np.ndarray, e: np.ndarray) -> tuple[float, float]:
    """Upper edge of the spectrum of D^½ X Ẽ Xᵀ D^½ (X of independent entries of variance 1), and its Tracy–Widom scale.

    Outside the spectrum the fixed point of :func:`separable_distribution` is real. With p = −δ and q = −δ̃ it reads
    x p = R(q) = Σ d/(1 − d q) and x q = Q(p) = Σ e/(1 − e p), so that q R(q) = p Q(p) gives p for every q in
    (0, 1/max d). The edge is the minimum of x(q) = R(q)/p(q).
    """
    unit = float(d.max() * e.max())
    d, e = d[d > 0] / d.max(), e[e > 0] / e.max()

    def partner(q: float) -> float:
        target = q * float((d / (1 - d * q)).sum())
        low, high = 0.0, 1.0 - 1e-15
        return float(optimize.brentq(lambda p: p * float((e / (1 - e * p)).sum()) - target, low, high, xtol=1e-15))

    def x_of(t: float) -> float:
        q = 1 / (1 + math.exp(-t))
        return float((d / (1 - d * q)).sum()) / partner(q)

    grid = np.linspace(-12, 12, 97)
    values = np.array([x_of(t) for t in grid])
    i = int(np.clip(values.argmin(), 1, len(grid) - 2))
    found = optimize.minimize_scalar(x_of, bracket=(grid[i - 1], grid[i], grid[i + 1]), options={"xtol": 1e-10})
    t, edge = float(found.x), float(found.fun)
    q, step = 1 / (1 + math.exp(-t)), 1e-3
    second = (x_of(t + step) - 2 * edge + x_of(t - step)) / (step * q * (1 - q)) ** 2
    slope = float((d / (1 - d * q) ** 2).sum()) / edge  # m |∂/∂q| of the Stieltjes transform at the edge
    scale = (slope * math.sqrt(2 / second)) ** (-2 / 3)
    return unit * edge, unit * scale
