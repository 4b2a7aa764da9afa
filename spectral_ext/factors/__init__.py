"""Running Kronecker factors and their largest eigenpairs."""

from spectral_ext.factors.accumulator import KroneckerAccumulator, KroneckerFactors
from spectral_ext.factors.eigen import Eigenpairs, top_eigenpairs

__all__ = ["Eigenpairs", "KroneckerAccumulator", "KroneckerFactors", "top_eigenpairs"]
