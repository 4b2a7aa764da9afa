"""Partial fractions for T(σ; α, d): real poles for 0 < α ≤ 2, one real quadratic beside them for α > 2.

In the unit δ = d^{2/α} of the eigenvalues x = σ² of R = G Gᵀ, T(G) = φ(R/δ) G / d with φ(y) = 1/(y^β + 1), β = α/2.
φ has a cut on the negative axis and, for β > 1, one pair of poles e^{±iπ/β}, the zeros of Q(y) = y² − 2 cos(π/β) y + 1.
With the pair split off, what is left is an integral of 1/(y + t) over t > 0 (a Stieltjes function up to sign), so

    φ(y) ≈ g(y)                     0 < α ≤ 2,      g(y) = c + Σ_j r_j / (y + p_j),  p_j > 0,
    φ(y) ≈ g(y) + (u + v y)/Q(y)    2 < α < 4,      u = 2/β,  v = −(2/β) cos(π/β),
    φ(y) ≈ g(y)/Q(y)                4 ≤ α ≤ 6,

converge exponentially in the number of poles; the two forms for α > 2 are those whose terms do not cancel. Every matrix
to invert, R/δ + p_j and Q(R/δ), is positive definite. α = 2 is one pole, α = 4 is Q alone, α = 6 is both: exact.
For 2 < α < 4 one pole is b: y/Q(y) = p − p/Q(y), p = 1/(y + b), whose factors are never large, as those of R Q⁻¹ are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from spectral_ext.ops.spectral_newton.transfer_function import check_exponent

Array = NDArray[np.float64]
MAX_POLES = 24
MAX_REACH = 1e14
FLOOR = 1.0 / 32.0
"""Errors count relative to max(T(σ), FLOOR · T(σ_max)): where T is small they are measured against the whole."""
LADDER = 4.0
"""A fit serves σ_max²/δ from reach/LADDER to reach; below, T(σ_max) would be smaller than its error is measured by."""
CENTRES, CENTRE_SHARE = 32, 0.85
"""Poles are fitted at multiples of 1/CENTRES of α, to this share of the tolerance, and serve the α around them."""

SMALLEST_POLE, SEPARATION, MAX_CANCELLATION = 1e-290, 1.4, 4.0


def extent_of(alpha: float, damping: float, mode: str, n: int) -> float:
    """An upper bound of y_max = σ_max²/d^{2/α} that needs no look at G (n the small side), raised for rounding.

    d^{−2/α} for ``spectral``, n d^{−2/α} for ``rms``, as σ_max² ≤ Σσ²; infinite for ``absolute``.
    """
    if mode == "absolute":
        return math.inf
    exponent = -2.0 / alpha * math.log(damping) + (math.log(n) if mode == "rms" else 0.0)
    return (1.0 + 1e-5) * math.exp(exponent) if exponent < 700.0 else math.inf


@dataclass(frozen=True)
class PartialFractions:
    """φ(y) by g(y) = constant + Σ residue/(y + pole), y = σ²/d^{2/α}, for spectra with lowest ≤ y_max ≤ reach."""

    alpha: float
    lowest: float
    reach: float
    constant: float
    poles: tuple[float, ...]
    residues: tuple[float, ...]
    error: float
    """Bound on |T̂(σ) − T(σ)| / max(T(σ), T(σ_max)/32) on a dense grid of [0, σ_max], for any d."""

    @property
    def quadratic(self) -> float | None:
        """b of Q(y) = y² + b y + 1, or None for α ≤ 2."""
        return quadratic_coefficient(self.alpha)

    @property
    def form(self) -> int:
        """0: g; 1: g + (u + v y)/Q, where the first pole of g is b; 2: g/Q."""
        return _form(self.alpha)

    @property
    def pair(self) -> tuple[float, float]:
        """(u, v), zeros unless the form is 1."""
        return pair_coefficients(self.alpha) if self.form == 1 else (0.0, 0.0)

    @property
    def pairs(self) -> tuple[tuple[complex, complex], ...]:
        """Further pairs of conjugate poles: none, those of φ are in ``quadratic``."""
        return ()

    def __call__(self, y: Array) -> Array:
        """The approximation of φ at y."""
        y = np.asarray(y, dtype=np.float64)
        total = self.constant + sum(r / (y + p) for p, r in zip(self.poles, self.residues))
        pair, q = _split(self.alpha, y)
        return np.asarray(total / q + pair)


def _form(alpha: float) -> int:
    return 0 if alpha <= 2.0 else 1 if alpha < 4.0 else 2


def quadratic_coefficient(alpha: float) -> float | None:
    """b = −2 cos(2π/α) of Q(y) = y² + b y + 1 for α > 2, else None."""
    return -2.0 * math.cos(2.0 * math.pi / alpha) if alpha > 2.0 else None


def pair_coefficients(alpha: float) -> tuple[float, float]:
    """(u, v) of the pair of poles of 1/(y^β + 1): the residue at p = e^{iπ/β} is −p/β."""
    return 4.0 / alpha, -4.0 / alpha * math.cos(2.0 * math.pi / alpha)


def _split(alpha: float, y: Array) -> tuple[Array, Array]:
    """``(pair, q)`` with φ ≈ g/q + pair."""
    b = quadratic_coefficient(alpha)
    if b is None:
        return np.zeros_like(y), np.ones_like(y)
    q = y * y + b * y + 1.0
    if alpha >= 4.0:
        return np.zeros_like(y), q
    u, v = pair_coefficients(alpha)
    return (u + v * y) / q, np.ones_like(y)


def error_weight(alpha: float, y: Array, lowest: float) -> Array:
    """What |error of φ| is multiplied by to be relative to max(T(σ), FLOOR · T(σ_max)) for any σ_max²/δ from
    LADDER · lowest to the last y: T has one maximum, so the least T(σ_max) is at an end."""
    transfer = np.sqrt(y) / (y ** (alpha / 2) + 1.0)
    first = LADDER * lowest
    least = min(transfer[-1], math.sqrt(first) / (first ** (alpha / 2) + 1.0))
    return np.sqrt(y) / np.maximum(transfer, FLOOR * least)


def _grid(reach: float, tolerance: float, points: int, lowest: float) -> Array:
    """From 0 to `reach`, geometric; below the first positive point σ is too small to matter at this tolerance."""
    smallest = (tolerance * FLOOR / 4.0) ** 2 * min(1.0, LADDER * lowest)
    return np.concatenate([[0.0], np.geomspace(smallest, reach, points)])


def rounded_reach(y_max: float) -> float:
    """The next power of two: over a training run, or a schedule of d, few distinct fits are met."""
    return 2.0 ** math.ceil(math.log2(max(y_max, 1e-300)))


@lru_cache(maxsize=4096)
def partial_fractions(
    alpha: float, reach: float, tolerance: float, max_poles: int = MAX_POLES, lowest: float | None = None
) -> PartialFractions:
    """As `fit_partial_fractions`, in about a millisecond once a neighbouring α was fitted: a schedule of α takes the
    poles of the nearest multiple of 1/32 and fits the residues alone. Where that misses the tolerance, as next to
    α = 2, it is a whole fit, some 30 ms. Cached.

    Raises:
        ValueError: as `fit_partial_fractions`.
    """
    check_exponent(alpha)
    centre = round(alpha * CENTRES) / CENTRES
    if alpha != centre and centre in (0.0, 2.0, 4.0, 6.0):  # there the form of the fit changes
        centre += math.copysign(1.0 / CENTRES, alpha - centre)
    if alpha == centre or not 0.0 < reach <= MAX_REACH:
        return fit_partial_fractions(alpha, reach, tolerance, max_poles, lowest)
    try:
        near = fit_partial_fractions(centre, reach, CENTRE_SHARE * tolerance, max_poles, lowest)
    except ValueError:
        return fit_partial_fractions(alpha, reach, tolerance, max_poles, lowest)
    if near.lowest == 0.0:  # T(G) = G/d
        return fit_partial_fractions(alpha, reach, tolerance, max_poles, lowest)
    fixed = _fixed_poles(alpha)
    found = _minimax(
        alpha,
        _grid(reach, tolerance, 220, near.lowest),
        np.array(near.poles[len(fixed) :]),
        6,
        fixed,
        True,
        lowest=near.lowest,
    )
    certified = _certified(alpha, reach, tolerance, found[0], found[1], near.lowest)
    if certified.error <= tolerance and _cancellation(found, reach) <= MAX_CANCELLATION:
        return certified
    return fit_partial_fractions(alpha, reach, tolerance, max_poles, lowest)


@lru_cache(maxsize=1024)
@np.errstate(divide="ignore", invalid="ignore")  # where float64 has no room for a fit, there is none
def fit_partial_fractions(
    alpha: float, reach: float, tolerance: float, max_poles: int = MAX_POLES, lowest: float | None = None
) -> PartialFractions:
    """Few poles with an error bound of at most `tolerance` on 0 ≤ σ²/d^{2/α} ≤ reach. Cached.

    It serves spectra whose σ_max²/d^{2/α} lies between ``lowest`` (by default reach/LADDER) and ``reach``.

    Raises:
        ValueError: α outside (0, 6], or no fit with `max_poles` (α near 0, or reach too large): use ``eigh``.
    """
    check_exponent(alpha)
    if reach > MAX_REACH:
        raise ValueError(f"reach={reach:.3g} is beyond {MAX_REACH:g}, where float64 ends: use solver='svd'")
    if not reach > 0.0 or not 0.0 < tolerance < 1.0:
        raise ValueError(f"reach must be positive and finite and tolerance in (0, 1), not {reach!r}, {tolerance!r}")
    exact = {2.0: ((1.0,), (1.0,), 0.0), 4.0: ((), (), 1.0), 6.0: ((1.0,), (1.0,), 0.0)}
    if alpha in exact:
        poles, residues, constant = exact[alpha]
        return PartialFractions(alpha, 0.0, math.inf, constant, poles, residues, 0.0)
    lowest = reach / LADDER if lowest is None else lowest
    if reach ** (alpha / 2) < 0.5 * tolerance:  # T(G) = G/d
        flat = _constant(alpha, reach)
        if flat.error <= tolerance:
            return flat
    y = _grid(reach, tolerance, 220, lowest)
    two = _minimax(alpha, y, np.geomspace(0.1 * min(1.0, reach), 3.0 * max(1.0, reach), 2), 15, lowest=lowest)
    fit = four = _minimax(alpha, y, _spread(two[0], 4), 20, lowest=lowest)
    decay = min(math.sqrt(four[2] / two[2]), 0.5)
    count = 4 + max(0, math.floor(math.log(tolerance / four[2]) / math.log(decay))) if four[2] > tolerance else 1
    for terms in range(count, max_poles + 1):
        for start in (fit[0], four[0]):
            found = _minimax(alpha, y, _spread(start, terms), 45, lowest=lowest)
            stable = _cancellation(found, reach) <= MAX_CANCELLATION
            if stable and found[2] <= 1.2 * tolerance:
                certified = _certified(alpha, reach, tolerance, found[0], found[1], lowest)
                if certified.error <= tolerance:
                    return _with_fixed_pole(certified, y, tolerance)
            if stable:
                break
        fit = found
    raise ValueError(
        f"alpha={alpha:g} with sigma_max²/damping^(2/alpha) = {reach:.3g} needs more than {max_poles} poles for a "
        f"relative error of {tolerance:g}: use solver='eigh'"
    )


def _constant(alpha: float, reach: float) -> PartialFractions:
    """φ ≈ 1 for y ≤ reach ≪ 1: beside a quadratic factor one pole cancels what it adds in y, above α = 4 in y²."""
    b = quadratic_coefficient(alpha)
    if b is None:
        fit = PartialFractions(alpha, 0.0, reach, 1.0, (), (), 0.0)
    elif alpha < 4.0:
        u, v = pair_coefficients(alpha)
        fit = PartialFractions(alpha, 0.0, reach, 1.0 - u + v * b, (b,), (-v * b * b,), 0.0)
    else:
        fit = PartialFractions(alpha, 0.0, reach, 1.0 - b * b, (-b,), (-(b**3),), 0.0)
    y = reach * np.geomspace(1e-6, 1.0, 200)
    return replace(fit, error=float(np.abs(fit(y) * (y ** (alpha / 2) + 1.0) - 1.0).max()))


def _spread(poles: Array, count: int) -> Array:
    """`count` poles distributed as `poles` are, over a range that widens by half a spacing for each pole more."""
    logs = np.log(poles)
    spacing = (logs[-1] - logs[0]) / max(len(logs) - 1, 1) if len(logs) > 1 else 2.0
    wider = 0.25 * spacing * (count - len(logs))
    low, high = float(logs[0] - 1.5 * wider), float(logs[-1] + 0.5 * wider)
    if len(logs) < 2:
        return np.exp(np.linspace(low, high, count))
    inside = np.interp(np.linspace(0, 1, count), np.linspace(0, 1, len(logs)), logs)
    return np.asarray(np.exp(np.interp(inside, [logs[0], logs[-1]], [low, high])))


def _fixed_poles(alpha: float) -> tuple[float, ...]:
    """b where the evaluation of (u + v y)/Q needs (y + b)⁻¹ in any case."""
    b = quadratic_coefficient(alpha)
    return (b,) if b is not None and alpha < 4.0 else ()


def _with_fixed_pole(fit: PartialFractions, y: Array, tolerance: float) -> PartialFractions:
    """The fit with b first among its poles: in place of the nearest one where the tolerance allows."""
    fixed = _fixed_poles(fit.alpha)
    if not fixed:
        return fit
    nearest = int(np.argmin(np.abs(np.log(np.array(fit.poles) / fixed[0]))))
    found = _minimax(fit.alpha, y, np.delete(np.array(fit.poles), nearest), 30, fixed, lowest=fit.lowest)
    if found[2] <= 1.2 * tolerance and _cancellation(found, fit.reach) <= MAX_CANCELLATION:
        certified = _certified(fit.alpha, fit.reach, tolerance, found[0], found[1], fit.lowest)
        if certified.error <= tolerance:
            return certified
    return replace(fit, poles=(*fixed, *fit.poles), residues=(0.0, *fit.residues))


def _basis(y: Array, poles: Array) -> Array:
    return np.column_stack([np.ones_like(y), poles / (y[:, None] + poles)])


def _minimax(
    alpha: float,
    y: Array,
    poles: Array,
    iterations: int,
    fixed: tuple[float, ...] = (),
    keep: bool = False,
    *,
    lowest: float,
) -> tuple[Array, Array, float]:
    """Poles, the fixed ones first, and coefficients (c, r/p) of least maximal error: Gauss–Newton on the logarithms of
    the other poles with the linear coefficients projected out, under weights that grow with the error (Lawson); with
    ``keep`` the poles stay where they are."""
    pair, q = _split(alpha, y)
    scale = error_weight(alpha, y, lowest) / q
    target = (1.0 / (y ** (alpha / 2) + 1.0) - pair) * q * scale
    weights = np.ones_like(y)
    first = 1 + len(fixed)
    best: tuple[Array, Array, float] = (poles, np.zeros(first + len(poles)), math.inf)
    damping = 1e-3
    for _ in range(iterations):
        if not (np.isfinite(poles) & (poles > SMALLEST_POLE)).all():  # no fit: float64 has no room
            break
        every = np.concatenate([fixed, poles])
        B = _basis(y, every) * scale[:, None]
        Qw, Rw = np.linalg.qr(B * weights[:, None])
        coefficients = np.linalg.lstsq(Rw, Qw.T @ (target * weights), rcond=1e-14)[0]
        residual = target - B @ coefficients
        size = float(np.abs(residual).max())
        if size < best[2]:
            best, damping = (every, coefficients, size), damping * 0.5
        else:
            damping = min(damping * 3.0, 1.0)
        weights_now = weights
        weights = weights * (np.abs(residual) / size + 0.02) ** 0.25
        weights /= weights.max()
        if keep:
            continue
        own = y[:, None] + poles  # not squared: y and poles may be as small as 1e-250
        slope = coefficients[first:] * (poles / own) * (y[:, None] / own) * (scale * weights_now)[:, None]
        J = slope - Qw @ (Qw.T @ slope)
        normal = J.T @ J
        normal[np.diag_indices_from(normal)] *= 1.0 + damping
        step = np.linalg.lstsq(normal, J.T @ (residual * weights_now), rcond=1e-14)[0]
        poles = _apart(np.sort(poles * np.exp(np.clip(step, -0.7, 0.7))))
    return best


def _cancellation(fit: tuple[Array, Array, float], reach: float) -> float:
    """How much larger than their sum the terms of a fit are, at worst."""
    poles, coefficients, _ = fit
    terms = _basis(reach * 4.0 ** -np.arange(0.0, 20.0), poles) * coefficients
    return float((np.abs(terms).sum(1) / np.abs(terms.sum(1))).max())


def _apart(poles: Array) -> Array:
    """Ascending poles pushed up to a ratio of SEPARATION: closer ones get large residues that cancel."""
    steps = np.arange(len(poles)) * math.log(SEPARATION)
    return np.asarray(np.exp(np.maximum.accumulate(np.log(poles) - steps) + steps))


def _certified(
    alpha: float, reach: float, tolerance: float, poles: Array, coefficients: Array, lowest: float
) -> PartialFractions:
    fit = PartialFractions(
        alpha,
        lowest,
        reach,
        float(coefficients[0]),
        tuple(map(float, poles)),
        tuple(map(float, coefficients[1:] * poles)),
        0.0,
    )
    y = _grid(reach, tolerance * 1e-3, 6000, lowest)
    error = np.abs(fit(y) - 1.0 / (y ** (alpha / 2) + 1.0)) * error_weight(alpha, y, lowest)
    return replace(fit, error=float(error.max()))
