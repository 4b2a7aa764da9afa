"""Optimizers: SpectralNewton, and the paper's negative control ScalarSpectralAdam."""

from spectral_ext.optim.parameters import parameter_groups
from spectral_ext.optim.spectral_newton import NonFiniteGradient, SpectralNewton

__all__ = ["NonFiniteGradient", "SpectralNewton", "parameter_groups"]
