"""The interval of the data: how a statistic of group means would move with other samples of the same size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Jackknife:
    """A statistic with its delete-one-group jackknife: standard error and Student's interval with J − 1 degrees of
    freedom (Tukey 1958). Values are floats or arrays of one shape."""

    value: Any
    se: Any
    interval: tuple[Any, Any]
    replicates: np.ndarray
    """(J, …): the statistic without group j; what the covariance of two landscapes on the same groups is made of."""
    level: float = 0.95


def jackknife(
    statistic: Callable[..., Any], *groups: Any, weights: Sequence[float] | None = None, level: float = 0.95
) -> Jackknife:
    """Jackknife of ``statistic(mean of the first array over groups, mean of the second, …)``.

    The interval holds its level for statistics that are close to linear in the means, with any dependence between the
    entries of a group, such as the directions of a layer; groups must be independent of each other.

    Args:
        statistic: takes as many arrays as ``groups`` has, without the group axis; returns a number or an array. A
            ValueError (an impossible fit) on a replicate makes the interval NaN.
        groups: arrays (J, …), such as u_kᵀG_jv_k and h_jk along the directions of the whole data.
        weights: samples of each group; None for equal sizes.
        level: coverage of the interval.

    Raises:
        ValueError: fewer than three groups, or arrays that do not have the same number of groups.
    """
    arrays = [np.asarray(group, dtype=np.float64) for group in groups]
    counts = {len(array) for array in arrays}
    if len(counts) != 1:
        raise ValueError(f"arrays have different numbers of groups: {sorted(counts)}")
    count = counts.pop()
    if count < 3:
        raise ValueError(f"a jackknife needs at least 3 groups, there are {count}")
    w = np.ones(count) if weights is None else np.asarray(weights, dtype=np.float64)

    def at(keep: np.ndarray) -> np.ndarray:
        means = [np.tensordot(w[keep] / w[keep].sum(), array[keep], 1) for array in arrays]
        return np.asarray(statistic(*means), dtype=np.float64)

    every = np.arange(count)
    value = at(every)
    replicates = np.full((count, *value.shape), math.nan)
    for j in every:
        try:
            replicates[j] = at(every[every != j])
        except ValueError:
            break
    return _summary(value, replicates, level)


def jackknife_difference(first: Jackknife, second: Jackknife) -> Jackknife:
    """The difference second − first of two statistics of the same groups, for instance α of two models on one data
    set: the replicates are paired, so that their covariance counts.

    Raises:
        ValueError: they have different numbers of groups or levels.
    """
    if first.replicates.shape != second.replicates.shape or first.level != second.level:
        raise ValueError("the two jackknives do not have the same groups and level, so they cannot be paired")
    return _summary(
        np.asarray(second.value) - np.asarray(first.value), second.replicates - first.replicates, first.level
    )


def _summary(value: np.ndarray, replicates: np.ndarray, level: float) -> Jackknife:
    count = len(replicates)
    se = np.sqrt((count - 1) / count * np.square(replicates - replicates.mean(0)).sum(0))
    half = float(stats.t.ppf(0.5 + level / 2, count - 1)) * se
    if value.ndim == 0:
        number, spread, width = float(value), float(se), float(half)
        return Jackknife(number, spread, (number - width, number + width), replicates, level)
    return Jackknife(value, se, (value - half, value + half), replicates, level)
