"""Spectral Newton, T(G) = U diag(σ/(σ^α + d)) Vᵀ: the op, its solvers, and the fits of the scalar map T(σ; α, d)."""

from spectral_ext.ops.spectral_newton.choose_solver import SOLVERS, SolverChoice, choose_solver
from spectral_ext.ops.spectral_newton.op import DAMPING_MODES, spectral_newton
from spectral_ext.ops.spectral_newton.partial_fractions import PartialFractions, fit_partial_fractions
from spectral_ext.ops.spectral_newton.spectral_maps import SpectralMap, fit_map, polar, spectral_map
from spectral_ext.ops.spectral_newton.transfer_function import (
    MAX_ALPHA,
    check_damping,
    check_exponent,
    transfer,
    transfer_maximum,
)

__all__ = [
    "DAMPING_MODES",
    "MAX_ALPHA",
    "SOLVERS",
    "PartialFractions",
    "SolverChoice",
    "SpectralMap",
    "check_damping",
    "check_exponent",
    "choose_solver",
    "fit_map",
    "fit_partial_fractions",
    "polar",
    "spectral_map",
    "spectral_newton",
    "transfer",
    "transfer_maximum",
]
