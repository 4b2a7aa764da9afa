"""The interval of the data for the own-batch exponents: a jackknife over groups along the directions of all samples."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from spectral_ext.signal.resampling import jackknife
from spectral_ext.spectra.curvature_exponent import fit_alpha, fit_gamma, fit_s

_NONE = (math.nan, math.nan)


@dataclass
class DataIntervals:
    """How far own-batch values would move with other groups of samples, along the same directions.

    The directions are held fixed: what a new choice of directions would change comes on top. NaN where a replicate
    cannot be fitted.
    """

    alpha: tuple[float, float] = _NONE
    gamma: tuple[float, float] = _NONE
    s: tuple[float, float] = _NONE
    sigma_se: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """(K,): standard error of σ_k."""
    h_se: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """(K,): standard error of h_k."""
    alpha_replicates: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """(J,): α without group j; for the difference of two landscapes on the same groups."""
    level: float = 0.95


def own_batch_intervals(sigma: Any, h: Any, *, weights: Any = None, level: float = 0.95) -> DataIntervals:
    """Intervals from u_kᵀG_jv_k and h_jk, both (J, K), along the singular directions of the gradient of all samples.

    Raises:
        ValueError: fewer than three groups, or arrays of different shapes.
    """
    S, H = np.asarray(sigma, dtype=np.float64), np.asarray(h, dtype=np.float64)
    if S.shape != H.shape:
        raise ValueError(f"sigma and h must have one shape (groups, directions), not {S.shape} and {H.shape}")
    if len(S) < 3:
        raise ValueError(f"a jackknife needs at least 3 groups, there are {len(S)}")
    found = DataIntervals(level=level)
    for name, statistic in (
        ("alpha", lambda s, h: fit_alpha(s, h).value),
        ("gamma", lambda s, h: fit_gamma(s).value),
        ("s", lambda s, h: fit_s(h).value),
    ):
        try:
            one = jackknife(statistic, S, H, weights=weights, level=level)
        except ValueError:  # α itself cannot be fitted; its own fit says why
            continue
        setattr(found, name, one.interval)
        if name == "alpha":
            found.alpha_replicates = one.replicates
    found.sigma_se = np.asarray(jackknife(lambda s: s, S, weights=weights, level=level).se)
    found.h_se = np.asarray(jackknife(lambda s: s, H, weights=weights, level=level).se)
    return found
