"""Which solver spectral_newton uses, and why."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from spectral_ext.ops.spectral_newton_cpu import POLE_LIMIT
from spectral_ext.transfer import check_damping, check_exponent, fit_partial_fractions, reach_of

EXACT_ALPHAS = (2.0, 4.0)
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
        tolerance: relative Frobenius error; by default 1e-5 for float32 on the CPU, 1e-3 on CUDA, 1e-10 for float64.
    """
    wanted = default_tolerance(device, dtype) if tolerance is None else tolerance
    if alpha is None or damping is None:
        return SolverChoice("eigh", "alpha or damping is a tensor on the device, unknown to the host", wanted)
    check_exponent(alpha)
    check_damping(damping)
    if alpha in EXACT_ALPHAS:
        matrix = "R + dI" if alpha == 2.0 else "R² + dI"
        return SolverChoice("cholesky", f"alpha = {alpha:g} is one solve with {matrix}, R = G Gᵀ, exact", wanted, 1)
    if damping_mode == "mean":
        return SolverChoice("eigh", f"the mean of σ^{alpha:g} needs all singular values", wanted)
    reach = reach_of(alpha, damping) if damping_mode == "spectral" else 16.0
    limit = POLE_LIMIT
    try:
        fit = fit_partial_fractions(alpha, reach, wanted, limit)
    except ValueError:
        return SolverChoice("eigh", f"more than {limit} poles would be needed at alpha = {alpha:g}", wanted)
    terms = len(fit.poles) + (fit.quadratic is not None)
    reason = f"{len(fit.poles)} real poles" + ("" if fit.quadratic is None else " and one quadratic factor")
    if damping_mode == "absolute":
        reason += ", for σ_max ≤ 4 d^(1/α); further ones are fitted when met"
    return SolverChoice("rational", f"{reason}, fit error {fit.error:.1e}", wanted, terms)


def usable_solver(solver: str, alpha: float, damping_mode: str) -> str | None:
    """Why an explicit solver cannot do this α and mode, or None if it can."""
    if solver == "cholesky" and alpha not in EXACT_ALPHAS:
        return f"solver='cholesky' is for alpha = 2 and 4, not {alpha:g}: use 'auto' or 'rational'"
    if solver in ("rational", "polynomial", "iterates") and damping_mode == "mean" and alpha not in EXACT_ALPHAS:
        return f"solver={solver!r} cannot do damping_mode='mean' at alpha = {alpha:g}: use 'auto' or 'eigh'"
    if solver in ("rational", "polynomial", "iterates") and not math.isfinite(alpha):
        return f"solver={solver!r} needs alpha as a number: use 'eigh' for an alpha that lives on the device"
    return None
