"""How many directions count: participation ratio, effective ranks, and bounds on them from the law in rank (§7.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import erfcx, logsumexp, zeta

from spectral_ext.spectra.regression import FitError, as_vector


def participation_ratio(x: Any) -> float:
    """PR = (Σx)²/Σx² of non-negative numbers: from 1 (one dominates) to their count (all equal); NaN if all are zero.

    Raises:
        ValueError: NaN, infinity or a negative entry (leave out h ≤ 0 first).
    """
    x = as_vector(x, "x")
    if (x < 0).any():
        raise ValueError(
            f"participation_ratio needs non-negative numbers, {int((x < 0).sum())} are negative: leave them out"
        )
    if np.isinf(x).any():
        raise FitError("participation_ratio: a number is infinite, so that the ratio is undefined")
    peak = x.max(initial=0.0)
    if peak == 0:
        return math.nan
    x = x / peak
    return float(x.sum() ** 2 / np.square(x).sum())


def zeta_bound(s: float, n: int | None = None) -> float:
    """Bound on PR of h_k ~ k^(−s): ζ(s)²/ζ(2s), infinite for s ≤ 1 (Theorem 9); with ``n`` the exact value for n ranks.

    It is a bound for every n because PR never falls when a positive number not above the others is appended.
    """
    if n is not None:
        rank = np.arange(1, n + 1, dtype=np.float64)
        return participation_ratio(rank**-s)
    return float(zeta(s) ** 2 / zeta(2 * s)) if s > 1 else math.inf


def exponential_bound(rate: float, n: int | None = None) -> float:
    """Bound on PR of h_k ∝ e^(−bk), b = ``rate``: coth(b/2); with ``n``, exactly coth(b/2)·tanh(nb/2).

    With q = e^(−b): Σ_{k≤n} q^k = q(1−qⁿ)/(1−q) and Σ q^{2k} = q²(1−q^{2n})/(1−q²), hence
    PR_n = (1+q)/(1−q) · (1−qⁿ)/(1+qⁿ), which rises to (1+q)/(1−q) = coth(b/2). Infinite for b ≤ 0 without ``n``.
    With σ_k ∝ e^(−βk) and h = cσ^α the rate is b = αβ.
    """
    if n is not None:
        return float(n) if rate == 0 else math.tanh(n * rate / 2) / math.tanh(rate / 2)
    return 1.0 / math.tanh(rate / 2) if rate > 0 else math.inf


def lognormal_bound(a: float, b: float, n: int | None = None, *, terms: int = 1) -> float:
    """Bound on PR of h_k ∝ exp(a·log k + b·(log k)²), b < 0: finite for every a, unlike the zeta bound.

    Substituting t = log k, ∫_M^∞ k^a e^(b log²k) dk = ∫_{log M}^∞ e^((a+1)t − ct²) dt with c = −b, which is
    J(a, c, M) = ½√(π/c) · exp((a+1)²/4c) · erfc(√c·log M − (a+1)/(2√c)).
    Where the terms fall from rank M on (a ≤ 2c·log M), integrals enclose sums, so with f_k the k-th term

        PR ≤ (Σ_{k≤M} f_k + J(a, c, M))² / (Σ_{k≤M} f_k² + J(2a, 2c, M+1)).

    M = ``terms`` (raised until the terms fall); M = 1 and a ≤ 0 give the closed form (1 + J(a,c,1))²/(1 + J(2a,2c,2)),
    larger M tightens it to the exact limit. With log σ_k = const + a₀ log k + b₀ log²k and h = cσ^α use a = αa₀, b
    = αb₀.

    Args:
        n: with it, the exact PR of n ranks (any sign of b).

    Returns:
        The bound. For b = 0 it is ``zeta_bound(−a)``; for b > 0, and where the terms still rise at rank 10⁶, infinite.
    """
    if n is not None:
        t = np.log(np.arange(1, n + 1, dtype=np.float64))
        exponent = a * t + b * t * t
        return participation_ratio(np.exp(exponent - exponent.max()))
    if b == 0:
        return zeta_bound(-a)
    c = -b
    if b > 0 or a > 2 * c * _LAST_LOG_RANK:
        return math.inf
    start = max(terms, math.ceil(math.exp(max(a, 0.0) / (2 * c))))
    t = np.log(np.arange(1, start + 1, dtype=np.float64))
    exponent = a * t - c * t * t
    first = np.logaddexp(logsumexp(exponent), _log_tail(a, c, start))
    second = np.logaddexp(logsumexp(2 * exponent), _log_tail(2 * a, 2 * c, start + 1))
    with np.errstate(over="ignore"):
        return float(np.exp(2 * first - second))


_LAST_LOG_RANK = math.log(1e6)


def _log_tail(a: float, c: float, start: int) -> float:
    """log J(a, c, start), through the scaled erfc where it would underflow."""
    t = math.log(start)
    argument = math.sqrt(c) * t - (a + 1) / (2 * math.sqrt(c))
    scale = 0.5 * math.log(math.pi / (4 * c))
    if argument > 0:  # exp((a+1)²/4c)·erfc(z) = exp((a+1)t − ct²)·erfcx(z)
        return scale + (a + 1) * t - c * t * t + math.log(erfcx(argument))
    return scale + (a + 1) ** 2 / (4 * c) + math.log(math.erfc(argument))


@dataclass(frozen=True)
class EffectiveRank:
    """Two effective ranks of a spectrum (App. L)."""

    entropy: float = math.nan
    """exp(−Σ p log p) with p the eigenvalues over their sum."""
    participation: float = math.nan
    """(Σλ)²/Σλ²."""
    count: int = 0
    """Number of eigenvalues it was computed from."""


def effective_rank(eigenvalues: Any) -> EffectiveRank:
    """exp of the spectral entropy, and the participation ratio, of eigenvalues (negative ones count as zero).

    Both are NaN where all eigenvalues are zero or one is infinite.

    Raises:
        ValueError: NaN.
    """
    values = np.clip(as_vector(eigenvalues, "eigenvalues"), 0.0, None)
    peak = values.max(initial=0.0)
    if not 0 < peak < math.inf:
        return EffectiveRank(count=len(values))
    values = values / peak
    p = values[values > 0] / values.sum()
    return EffectiveRank(float(np.exp(-(p * np.log(p)).sum())), participation_ratio(values), len(values))
