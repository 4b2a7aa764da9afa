"""Running Kronecker factors and their largest eigenpairs."""

from spectral_ext.factors.accumulator import KroneckerAccumulator, KroneckerFactors
from spectral_ext.factors.eigen import Eigenpairs, top_eigenpairs
from spectral_ext.factors.second_moment import SecondMoment

__all__ = ["Eigenpairs", "KroneckerAccumulator", "KroneckerFactors", "SecondMoment", "top_eigenpairs"]
