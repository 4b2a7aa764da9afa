"""What the cross-fit says about one layer, in numbers and in a sentence."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from spectral_ext.signal.cross_fitting import MIN_GROUPS, CrossFit
from spectral_ext.signal.exponent import GroupFit, fit_alpha_from_groups
from spectral_ext.spectra.regression import MIN_POINTS, FitError, as_vector

VERDICTS = ("signal", "mixed", "noise", "too few groups")
SIGNAL_SHARE = 0.5
"""From this share of resolved directions on, a layer's spectrum counts as signal."""


def _none() -> np.ndarray:
    return np.zeros(0)


@dataclass
class Signal:
    """One layer, cross-fitted over J groups: directions from the other groups, values on the group held out.

    Arrays have shape (K,), k counting directions in decreasing σ of the other groups.
    """

    groups: int
    """J."""
    sigma: np.ndarray = field(default_factory=_none)
    """σ̃_k, mean over the folds; may be negative."""
    sigma_se: np.ndarray = field(default_factory=_none)
    """Its standard error, a jackknife over groups."""
    h: np.ndarray = field(default_factory=_none)
    """h̃_k, held-out directional curvature, mean over the folds."""
    h_se: np.ndarray = field(default_factory=_none)
    """Its standard error, from the spread of the folds."""
    z: np.ndarray = field(default_factory=_none)
    """σ̃_k over its standard error."""
    resolved_directions: list[int] = field(default_factory=list)
    """Which directions are resolved, counted from 0."""
    share: np.ndarray = field(default_factory=_none)
    """σ̃_k/σ_k: which part of the own-batch singular value other samples confirm."""
    error_rate: float = 0.05
    """Bound on the probability that any of the K directions without signal counts as resolved."""
    alpha: GroupFit = field(default_factory=lambda: GroupFit.empty("not measured"))
    """α over the resolved directions, from held-out values."""
    sigma_folds: list[np.ndarray] = field(default_factory=list, repr=False)
    """J arrays (K,): u_jkᵀG_jv_jk."""
    h_folds: list[np.ndarray] = field(default_factory=list, repr=False)
    """J arrays (K,): h along fold j's directions on group j."""
    own_folds: list[np.ndarray] = field(default_factory=list, repr=False)
    """J arrays (K,): u_kᵀG_jv_k along the directions of all samples, from which the interval of the data follows."""
    verdict: str = "too few groups"
    """``signal``, ``mixed``, ``noise`` or ``too few groups``."""
    reason: str = ""
    """Why, in a sentence."""
    notes: list[str] = field(default_factory=list)

    @property
    def resolved(self) -> int:
        """How many directions are resolved."""
        return len(self.resolved_directions)

    def problem(self) -> str:
        """What does not fit together, for a result from a file; "" if all does."""
        count = len(self.sigma)
        lengths = {name: len(getattr(self, name)) for name in ("sigma_se", "h", "h_se", "z", "share")}
        wrong = [f"{name} has {length}" for name, length in lengths.items() if length != count]
        if wrong:
            return f"sigma has {count} values, but {', '.join(wrong)}"
        if self.verdict not in VERDICTS:
            return f"the verdict {self.verdict!r} is none of {', '.join(VERDICTS)}"
        if not all(0 <= k < count for k in self.resolved_directions):
            return f"a resolved direction is none of the {count}"
        return ""

    @property
    def median_share(self) -> float:
        known = self.share[np.isfinite(self.share)]
        return float(np.median(known)) if len(known) else math.nan


def judge(
    cross: CrossFit, h_folds: Any, own_sigma: Any, *, weights: Any = None, level: float = 0.95, notes: Any = ()
) -> Signal:
    """The verdict on one layer from its cross-fit and the held-out curvature.

    ``signal``: at least half of the directions are resolved. ``mixed``: some are. ``noise``: none is.

    Args:
        cross: of :func:`cross_fit`, K directions.
        h_folds: (J, ≥ K): h along fold j's directions on group j.
        own_sigma: (≥ K,) singular values of the gradient of all groups.
        weights: samples of each group; None for equal sizes.
        level: coverage of α's intervals.
        notes: sentences to keep with the result.
    """
    groups, count = cross.folds.shape
    H = np.asarray(h_folds, dtype=np.float64)[:, :count]
    own = as_vector(own_sigma, "own_sigma")[:count]
    w = np.ones(groups) if weights is None else np.asarray(weights, dtype=np.float64)
    w = w / w.sum()
    h = w @ H
    h_se = np.sqrt(groups / (groups - 1) * (np.square(w)[:, None] * np.square(H - h)).sum(0))
    share = np.full(count, math.nan)
    share[: len(own)] = np.divide(cross.sigma[: len(own)], own, out=np.full(len(own), math.nan), where=own > 0)
    found = Signal(
        groups,
        cross.sigma,
        cross.sigma_se,
        h,
        h_se,
        cross.z,
        np.flatnonzero(cross.resolved).tolist(),
        share,
        cross.error_rate,
        sigma_folds=list(cross.folds),
        h_folds=list(H),
        notes=list(notes),
    )
    found.alpha = _alpha(cross, H, weights, level)
    found.verdict, found.reason = _verdict(found)
    return found


def too_few_groups(groups: int) -> Signal:
    """The result where cross-fitting is impossible."""
    return Signal(
        groups,
        alpha=GroupFit.empty(f"{groups} groups, at least {MIN_GROUPS} are needed"),
        reason=f"there are {groups} groups, and a standard error over groups needs at least {MIN_GROUPS}: "
        "give more samples or more folds",
    )


def _alpha(cross: CrossFit, H: np.ndarray, weights: Any, level: float) -> GroupFit:
    keep = cross.resolved
    n = int(keep.sum())
    if n < MIN_POINTS:
        return GroupFit.empty(
            f"{n} of {len(keep)} directions are resolved, at least {MIN_POINTS} are needed", n=n, level=level
        )
    try:
        return fit_alpha_from_groups(cross.folds[:, keep], H[:, keep], weights=weights, level=level)
    except FitError as error:
        return GroupFit.empty(str(error), n=n, level=level)


def _verdict(found: Signal) -> tuple[str, str]:
    n, count = found.resolved, len(found.sigma)
    rate = f"{100 * found.error_rate:g} %"
    if count == 0:
        return "noise", "the gradient of the other groups is zero, so that there is no direction to test"
    if n == 0:
        why = (
            f"none of the {count} held-out singular values differs from 0 at an error rate of {rate}: on other samples "
            "these directions are no better than any"
        )
        if found.z[0] < 0 and np.median(found.sigma) < 0:
            why += (
                "; they are negative, since the gradient of a group is about minus that of the others, whose sum "
                "training has brought near zero"
            )
        return "noise", why
    confirmed = f"{n} of {count} directions hold on other samples (error rate {rate})"
    median = 100 * found.median_share
    if n >= SIGNAL_SHARE * count:
        return "signal", f"{confirmed}; the held-out σ is {median:.0f} % of the own-batch one in the median"
    return "mixed", f"{confirmed}; the other {count - n} may be noise, so that an α over all of them mixes the two"
