"""Which solver spectral_newton uses, and why."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch

from spectral_ext.ops.spectral_newton.partial_fractions import (
    MAX_POLES,
    MAX_REACH,
    PartialFractions,
    fit_partial_fractions,
    reach_of,
)
from spectral_ext.ops.spectral_newton.partial_fractions_cpu import POLE_LIMIT
from spectral_ext.ops.spectral_newton.product_sum import Basis, ProductSum, fit_products, fit_terms
from spectral_ext.ops.spectral_newton.product_sum_torch import MARGIN
from spectral_ext.ops.spectral_newton.transfer_function import check_damping, check_exponent

EXACT_ALPHAS = (2.0, 4.0)
FLOAT16_ERROR = 7e-5
"""Relative error that float16 operands add, times d/σ_max^α: measured over α, d, shapes and spectra."""
FIT_SHARE = 0.7
"""The part of the tolerance that the fit may use where products are rounded to 16 bit."""
DEFAULT_TOLERANCE = {
    ("cpu", torch.float64): 1e-10,
    ("cpu", torch.float32): 1e-5,
    ("cpu", torch.float16): 1e-4,
    ("cpu", torch.bfloat16): 1e-4,
    ("cuda", torch.float64): 1e-10,
    ("cuda", torch.float32): 1e-3,
    ("cuda", torch.float16): 1e-3,
    ("cuda", torch.bfloat16): 1e-3,
}


@dataclass(frozen=True)
class SolverChoice:
    """A solver for one (α, d, mode) on one kind of device, and the reason."""

    solver: str
    reason: str
    tolerance: float
    terms: int = 0
    """Matrices to invert, or products, beside the Gram matrix and the last product."""

    def __str__(self) -> str:
        return f"{self.solver}: {self.reason} (relative error {self.tolerance:g})"


def default_tolerance(device: str, dtype: torch.dtype) -> float:
    """The relative error that spectral_newton aims at where none is asked for."""
    return DEFAULT_TOLERANCE[("cpu" if device == "cpu" else "cuda", dtype)]


def choose_solver(
    alpha: float | None,
    damping: float | None,
    damping_mode: str = "absolute",
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    tolerance: float | None = None,
) -> SolverChoice:
    """What ``solver="auto"`` picks for one α and d, and why.

    Args:
        alpha: None where α is a tensor on an accelerator, whose value the host does not know.
        damping: None likewise.
        damping_mode: ``absolute``, ``spectral`` or ``mean``.
        device: ``cpu`` or ``cuda``.
        dtype: of G.
        tolerance: relative Frobenius error; by default that of `default_tolerance` for the device and dtype.
    """
    wanted = default_tolerance(device, dtype) if tolerance is None else tolerance
    if alpha is None or damping is None:
        return SolverChoice("eigh", "alpha or damping is a tensor on the device, unknown to the host", wanted)
    check_exponent(alpha)
    check_damping(damping)
    if alpha in EXACT_ALPHAS:
        matrix = "R + dI" if alpha == 2.0 else "R² + dI"
        return SolverChoice("cholesky", f"alpha = {alpha:g} is one solve with {matrix}, R = G Gᵀ, exact", wanted, 1)
    if damping_mode == "mean" and device != "cpu":
        return SolverChoice("eigh", f"the mean of σ^{alpha:g} needs all singular values", wanted)
    if device != "cpu" and damping_mode == "spectral" and dtype != torch.float64:
        found = _cheapest_products(alpha, damping, wanted)
        if found is not None:
            return found
    reach = reach_of(alpha, damping) if damping_mode == "spectral" else 16.0
    limit = POLE_LIMIT if device == "cpu" else MAX_POLES
    try:
        fit = fit_partial_fractions(alpha, reach, wanted, limit)
        if device != "cpu" and damping_mode != "spectral":
            pole_fits(alpha, None, wanted)  # the device chooses among all of them
    except ValueError:
        return SolverChoice("eigh", f"more than {limit} poles would be needed at alpha = {alpha:g}", wanted)
    terms = len(fit.poles) + (fit.quadratic is not None)
    reason = f"{len(fit.poles)} real poles" + ("" if fit.quadratic is None else " and one quadratic factor")
    if damping_mode == "mean":
        reason += f", and eigenvalues alone for the mean of σ^{alpha:g}"
    if damping_mode != "spectral":
        reason += ", for σ_max ≤ 4 d^(1/α); further ones are fitted when met"
    return SolverChoice("rational", f"{reason}, fit error {fit.error:.1e}", wanted, terms)


def _cheapest_products(alpha: float, damping: float, tolerance: float) -> SolverChoice | None:
    """The basis with the fewer products within the tolerance in float16, or None."""
    effective = damping * MARGIN**-alpha
    rounding = FLOAT16_ERROR / min(effective, 1.0)
    best: SolverChoice | None = None
    for basis in ("polynomial", "iterates"):
        try:
            fit = fit_products(basis, alpha, effective, max(tolerance - rounding, 1e-12))
        except ValueError:
            continue
        if best is None or fit.products < best.terms:
            reason = (
                f"{len(fit.coefficients)} terms in {fit.products} products, fit error {fit.error:.1e}, "
                f"float16 rounding about {rounding:.0e}"
            )
            best = SolverChoice(basis, reason, tolerance, fit.products)
    return best


def operand_type(dtype: torch.dtype) -> torch.dtype:
    """What the operands of ``polynomial`` and ``iterates`` are rounded to for G of that dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float16


@lru_cache(maxsize=256)
def pole_fits(alpha: float, dampings: frozenset[float] | None, tolerance: float) -> tuple[PartialFractions, ...]:
    """Levels of ascending reach for ``rational``: those of these ``spectral`` dampings, else (None) a ladder for
    ``absolute`` damping, where the host does not know σ_max: 16^k up to what the poles can do.

    Raises:
        ValueError: too many poles would be needed.
    """
    if dampings is not None:
        reaches = sorted({reach_of(alpha, d) for d in dampings})
        return tuple(fit_partial_fractions(alpha, reach, tolerance) for reach in reaches)
    levels: list[PartialFractions] = []
    reach = 16.0 ** math.floor(math.log(0.5 * tolerance, 16.0) * 2.0 / alpha)  # the first is T(G) = G/d
    while reach <= MAX_REACH and (not levels or math.isfinite(levels[-1].reach)):
        try:
            levels.append(fit_partial_fractions(alpha, reach, tolerance))
        except ValueError:
            if reach >= 16.0:
                break
            raise
        reach *= 16.0
    return tuple(levels)


@lru_cache(maxsize=256)
def product_fits(basis: Basis, alpha: float, damping: float | None, tolerance: float) -> tuple[ProductSum, ...]:
    """Fits for ``product_sum``: one for ``spectral`` damping d, else (None) a table of one length for descending d/s^α,
    from where T(G) = G/d down to the smallest that the basis can do at this tolerance.

    Raises:
        ValueError: not even d = 2 σ_max^α is within the tolerance.
    """
    if damping is not None:
        return (fit_products(basis, alpha, damping * MARGIN**-alpha, FIT_SHARE * tolerance),)
    entries: list[ProductSum] = []
    value = 2.0 / tolerance
    while value > 1e-4:
        try:
            entries.append(fit_products(basis, alpha, value, FIT_SHARE * tolerance))
        except ValueError:
            if value > 2.0:
                raise
            break
        value *= 2.0 ** (-alpha / 2.0)
    terms = max(len(entry.coefficients) for entry in entries)
    return tuple(fit_terms(basis, alpha, entry.damping, terms) for entry in entries)


def usable_solver(solver: str, alpha: float, damping_mode: str) -> str | None:
    """Why an explicit solver cannot do this α and mode, or None if it can."""
    if solver == "cholesky" and alpha not in EXACT_ALPHAS:
        return f"solver='cholesky' is for alpha = 2 and 4, not {alpha:g}: use 'auto' or 'rational'"
    if solver in ("polynomial", "iterates") and damping_mode == "mean" and alpha not in EXACT_ALPHAS:
        return f"solver={solver!r} cannot do damping_mode='mean' at alpha = {alpha:g}: use 'auto' or 'rational'"
    if solver in ("rational", "polynomial", "iterates") and not math.isfinite(alpha):
        return f"solver={solver!r} needs alpha as a number: use 'eigh' for an alpha that lives on the device"
    return None
