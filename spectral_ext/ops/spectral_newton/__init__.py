"""Spectral Newton, T(G) = U diag(σ/(σ^α + d)) Vᵀ: the op, its solvers, and the fits of the scalar map T(σ; α, d)."""

from spectral_ext.ops.spectral_newton.choose_solver import SolverChoice, choose_solver
from spectral_ext.ops.spectral_newton.op import DAMPING_MODES, SOLVERS, spectral_newton
from spectral_ext.ops.spectral_newton.partial_fractions import (
    LADDER,
    MAX_POLES,
    MAX_REACH,
    PartialFractions,
    fit_partial_fractions,
    reach_of,
)
from spectral_ext.ops.spectral_newton.product_sum import Basis, ProductSum, block_length, fit_products, fit_terms
from spectral_ext.ops.spectral_newton.transfer_function import (
    MAX_ALPHA,
    check_damping,
    check_exponent,
    transfer,
    transfer_maximum,
)

__all__ = [
    "DAMPING_MODES",
    "LADDER",
    "MAX_ALPHA",
    "MAX_POLES",
    "MAX_REACH",
    "SOLVERS",
    "Basis",
    "PartialFractions",
    "ProductSum",
    "SolverChoice",
    "block_length",
    "check_damping",
    "check_exponent",
    "choose_solver",
    "fit_partial_fractions",
    "fit_products",
    "fit_terms",
    "reach_of",
    "spectral_newton",
    "transfer",
    "transfer_maximum",
]
