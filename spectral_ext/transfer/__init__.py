"""The transfer map T(σ; α, d) = σ/(σ^α + d): values, maximum, coefficients of its approximations by partial
fractions and by matrix products."""

from spectral_ext.transfer.products import Basis, ProductSum, block_length, fit_products, fit_terms
from spectral_ext.transfer.rational import (
    LADDER,
    MAX_POLES,
    MAX_REACH,
    PartialFractions,
    fit_partial_fractions,
    reach_of,
)
from spectral_ext.transfer.scalar import MAX_ALPHA, check_damping, check_exponent, transfer, transfer_maximum

__all__ = [
    "LADDER",
    "MAX_ALPHA",
    "MAX_POLES",
    "MAX_REACH",
    "Basis",
    "PartialFractions",
    "ProductSum",
    "block_length",
    "check_damping",
    "check_exponent",
    "fit_partial_fractions",
    "fit_products",
    "fit_terms",
    "reach_of",
    "transfer",
    "transfer_maximum",
]
