"""The interval of the data for the own-batch exponents: a jackknife over groups along the directions of all samples."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats

from spectral_ext.signal.exponent import GroupFit, fit_alpha_from_groups
from spectral_ext.signal.resampling import Jackknife, jackknife
from spectral_ext.spectra.regression import FitError, fit_power_law

_NONE = (math.nan, math.nan)
MOVED_BY_DIRECTIONS = {"phi": ("phi",), "s": ("s", "alpha")}
"""Exponent → the laws around which new directions scatter: Φ around its own; h around its law in rank, and around
c σ^α, since sorting hides scatter from s. The largest counts. α, β and γ rest on σ, and σ_k along a fixed direction
varies more over the samples than a singular value does, so that their jackknife is wide enough without
(experiments/signal_cifar_batches.py measures the coverage)."""


@dataclass
class FactorMoments:
    """Second moments of one layer per group of samples, along fixed directions.

    ``output`` and ``input`` are u_kᵀC_δu_k and v_kᵀC_Av_k of each group along the gradient's singular directions;
    ``eigen_output`` and ``eigen_input`` are the same along the k-th eigenvectors of the C_δ and C_A of all samples. To
    first order the latter are the eigenvalues of the group's factors. All have shape (J, K).
    """

    output: np.ndarray
    input: np.ndarray
    eigen_output: np.ndarray
    eigen_input: np.ndarray
    rows: np.ndarray
    """(J,): rows of x in each group, the weights of ``input`` and ``eigen_input``."""


@dataclass
class DataIntervals:
    """How far own-batch values would move with other groups of samples, along the same directions.

    The jackknife holds the directions fixed, and for β and φ the eigenvectors of the factors. Other samples also bring
    other directions: for φ and s, the scatter of the directions around the law is added. NaN where the value or a
    replicate cannot be fitted.
    """

    alpha: tuple[float, float] = _NONE
    beta: tuple[float, float] = _NONE
    phi: tuple[float, float] = _NONE
    gamma: tuple[float, float] = _NONE
    s: tuple[float, float] = _NONE
    sigma_se: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """(K,): standard error of σ_k."""
    h_se: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """(K,): standard error of h_k."""
    replicates: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    """Exponent → (J,): its value without group j. For the difference of two landscapes on the same groups."""
    h_groups: list[np.ndarray] = field(default_factory=list, repr=False)
    """J arrays (K,): h of each group's mean loss along the directions of all samples."""
    alpha_all: GroupFit = field(default_factory=lambda: GroupFit.empty("every h_k is positive"))
    """Where some h_k ≤ 0: α by a fit that keeps them. ``row.alpha`` leaves them out, and that flattens the slope."""
    level: float = 0.95


def own_batch_intervals(
    sigma: Any, h: Any, *, weights: Any = None, factors: FactorMoments | None = None, level: float = 0.95
) -> DataIntervals:
    """Intervals from u_kᵀG_jv_k and h_jk, both (J, K), along the singular directions of the gradient of all samples.

    Args:
        weights: samples of each group; None for groups of equal size.
        factors: moments of the groups; None leaves β and φ without an interval.

    Raises:
        ValueError: fewer than three groups, or arrays of different shapes.
    """
    S, H = np.asarray(sigma, dtype=np.float64), np.asarray(h, dtype=np.float64)
    if S.shape != H.shape:
        raise ValueError(f"sigma and h must have one shape (groups, directions), not {S.shape} and {H.shape}")
    if len(S) < 3:
        raise ValueError(f"a jackknife needs at least 3 groups, there are {len(S)}")
    found = DataIntervals(level=level, h_groups=list(H))
    for name, (interval, replicates) in _jackknives(S, H, weights, factors, level).items():
        setattr(found, name, interval)
        found.replicates[name] = replicates
    found.sigma_se = np.asarray(jackknife(lambda s: s, S, weights=weights, level=level).se)
    found.h_se = np.asarray(jackknife(lambda s: s, H, weights=weights, level=level).se)
    w = np.ones(len(S)) if weights is None else np.asarray(weights, dtype=np.float64)
    if ((w @ H) <= 0).any():
        try:
            found.alpha_all = fit_alpha_from_groups(S, H, weights=weights, level=level)
        except FitError as error:
            found.alpha_all = GroupFit.empty(str(error), level=level)
    return found


def _jackknives(
    S: np.ndarray, H: np.ndarray, weights: Any, factors: FactorMoments | None, level: float
) -> dict[str, tuple[tuple[float, float], np.ndarray]]:
    """Exponent → (interval, replicates)."""
    statistics: dict[str, tuple[Any, tuple[np.ndarray, ...]]] = {
        "alpha": (lambda s, h: _slope(s, h), (S, H)),
        "gamma": (lambda s: -_slope(_ranks(s), s), (S,)),
        "s": (lambda h: -_slope(_ranks(h), _sorted(h)), (H,)),
    }
    if factors is not None:
        samples = np.ones(len(S)) if weights is None else np.asarray(weights, dtype=np.float64)
        rows = (factors.rows / samples)[:, None]  # the input's moments are means over rows, not over samples
        data = S, H, factors.output, rows * factors.input, factors.eigen_output, rows * factors.eigen_input, rows
        statistics["beta"] = (lambda s, h, *moments: _slope(s, _factor_values(h, *moments)[0]), data)
        statistics["phi"] = (lambda s, h, *moments: _slope(s, _factor_values(h, *moments)[1]), data)
    found = {}
    made: dict[str, Jackknife] = {}
    for name, (statistic, arrays) in statistics.items():
        try:
            one = jackknife(statistic, *arrays, weights=weights, level=level)
        except ValueError:  # the exponent itself cannot be fitted; its own fit says why
            continue
        made[name] = one
        variance = float(one.se[0]) ** 2
        laws = [made[law] for law in MOVED_BY_DIRECTIONS.get(name, ()) if law in made]
        if laws and math.isfinite(variance):
            variance += float(np.abs(one.value[1])) * max(_scatter_of_directions(law) for law in laws)
        half = float(stats.t.ppf(0.5 + level / 2, len(S) - 1)) * math.sqrt(variance)
        found[name] = (float(one.value[0]) - half, float(one.value[0]) + half), one.replicates[:, 0]
    return found


def _slope(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(3 + K,): the slope of log y on log x over positive values, 1/Σ(log x − mean)², the number of points, and the
    residuals, NaN where y is not positive."""
    keep = (x > 0) & (y > 0)
    fit = fit_power_law(x[keep], y[keep], what="slope")
    log_x = np.log(x[keep])
    residuals = np.full(len(x), math.nan)
    residuals[keep] = np.log(y[keep]) - fit.intercept - fit.value * log_x
    return np.concatenate([[fit.value, 1 / np.square(log_x - log_x.mean()).sum(), fit.n], residuals])


def _scatter_of_directions(law: Jackknife) -> float:
    """Variance of the directions around the law of a jackknifed :func:`_slope`, less what the groups' noise makes."""
    points, residuals, se = abs(law.value[2]), law.value[3:], law.se[3:]
    noise = se[np.isfinite(se)]
    explained = float(np.square(noise).mean()) if len(noise) else 0.0
    return max(0.0, float(np.nansum(residuals**2)) / (points - 2) - explained)


def _ranks(values: np.ndarray) -> np.ndarray:
    return np.arange(1.0, len(values) + 1)


def _sorted(h: np.ndarray) -> np.ndarray:
    """h in decreasing order, so that the positive values come first."""
    return -np.sort(-h)


def _factor_values(
    h: np.ndarray,
    output: np.ndarray,
    inputs: np.ndarray,
    eigen_output: np.ndarray,
    eigen_inputs: np.ndarray,
    rows: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Λ_k and Φ_k, NaN where ``row.beta`` leaves the direction out: h, Λ or Φ is not positive."""
    Lambda, product = eigen_output * eigen_inputs / rows**2, output * inputs / rows**2
    keep = (h > 0) & (Lambda > 0) & (product > 0)
    Lambda = np.where(keep, Lambda, math.nan)
    return Lambda, product / Lambda
