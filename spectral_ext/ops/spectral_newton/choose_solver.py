"""Which solver spectral_newton uses, and why."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from spectral_ext.ops.spectral_newton.partial_fractions import (
    MAX_POLES,
    extent_of,
    partial_fractions,
    rounded_reach,
)
from spectral_ext.ops.spectral_newton.partial_fractions_cpu import POLE_LIMIT
from spectral_ext.ops.spectral_newton.partial_fractions_torch import device_fits
from spectral_ext.ops.spectral_newton.transfer_function import check_damping, check_exponent

SOLVERS = ("auto", "cholesky", "rational", "eigh", "svd")
EXACT_ALPHAS = (2.0, 4.0)
LOG_RANGE = 69.0
"""The largest |ln d^(1/α)| with which accelerators compute in float64: d^(2/α) between 1e-60 and 1e60."""


@dataclass(frozen=True)
class SolverChoice:
    """A solver for one (α, d, mode) on one kind of device, and the reason."""

    solver: str
    reason: str
    tolerance: float
    terms: int = 0
    """Matrices to invert, beside the Gram matrix and the last product."""

    def __str__(self) -> str:
        return f"{self.solver}: {self.reason} (relative error {self.tolerance:g})"


def default_tolerance(device: str, dtype: torch.dtype) -> float:
    """The relative error that spectral_newton aims at where none is asked for."""
    if dtype == torch.float64:
        return 1e-10
    if device != "cpu":
        return 1e-3
    return 1e-5 if dtype == torch.float32 else 1e-4


def choose_solver(
    alpha: float | None,
    damping: float | None,
    damping_mode: str = "absolute",
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    tolerance: float | None = None,
    small_side: int = 512,
) -> SolverChoice:
    """What ``solver="auto"`` picks for one α and d, and why.

    Args:
        alpha: None where α is a tensor on an accelerator, whose value the host does not know.
        damping: None likewise.
        damping_mode: ``absolute``, ``spectral`` or ``rms``.
        device: ``cpu`` or ``cuda``.
        dtype: of G.
        tolerance: relative Frobenius error; by default that of `default_tolerance` for the device and dtype.
        small_side: min(m, n) of G, on which the number of poles depends in the mode ``rms``.
    """
    wanted = default_tolerance(device, dtype) if tolerance is None else tolerance
    if alpha is None:
        return SolverChoice("eigh", "alpha is a tensor on the device, unknown to the host", wanted)
    check_exponent(alpha)
    if damping is not None:
        check_damping(damping)
    if alpha in EXACT_ALPHAS:
        matrix = "R + dI" if alpha == 2.0 else "R² + dI"
        return SolverChoice("cholesky", f"alpha = {alpha:g} is one solve with {matrix}, R = G Gᵀ, exact", wanted, 1)
    extent = math.inf if damping is None else extent_of(alpha, damping, damping_mode, small_side)
    if device != "cpu" and damping is not None and abs(math.log(damping)) / alpha > LOG_RANGE:
        return SolverChoice("eigh", f"damping^(1/alpha) leaves the range of float64 at alpha = {alpha:g}", wanted)
    try:
        if device != "cpu":
            fit = device_fits(alpha, extent, wanted)[-1]
        else:
            reach = rounded_reach(extent) if damping_mode == "spectral" else 16.0
            fit = partial_fractions(alpha, reach, wanted, POLE_LIMIT)
    except ValueError:
        limit = POLE_LIMIT if device == "cpu" else MAX_POLES
        return SolverChoice("eigh", f"more than {limit} poles would be needed at alpha = {alpha:g}", wanted)
    terms = len(fit.poles) + (fit.quadratic is not None)
    reason = f"{len(fit.poles)} real poles" + ("" if fit.quadratic is None else " and one quadratic factor")
    reason += f" for σ_max²/d^(2/α) ≤ {fit.reach:.3g}"
    if device == "cpu" and damping_mode != "spectral":
        reason += "; the spectrum decides, and further ones are fitted when met"
    return SolverChoice("rational", f"{reason}, fit error {fit.error:.1e}", wanted, terms)


def usable_solver(solver: str, alpha: float) -> str | None:
    """Why an explicit solver cannot do this α, or None if it can; NaN stands for an α that lives on the device."""
    if solver == "cholesky" and alpha not in EXACT_ALPHAS:
        return f"solver='cholesky' is for alpha = 2 and 4, not {alpha:g}: use 'auto' or 'rational'"
    if solver == "rational" and alpha != alpha:
        return "solver='rational' needs alpha as a number: use 'eigh' for an alpha that lives on the device"
    return None
