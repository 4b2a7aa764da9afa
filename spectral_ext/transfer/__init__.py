"""The transfer map T(σ; α, d) = σ/(σ^α + d): values, maximum, and coefficients for its approximation by matrix products."""

from spectral_ext.transfer.scalar import MAX_ALPHA, check_damping, check_exponent, transfer, transfer_maximum

__all__ = ["MAX_ALPHA", "check_damping", "check_exponent", "transfer", "transfer_maximum"]
