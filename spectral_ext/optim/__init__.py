"""Optimizers: SpectralNewton, and the paper's negative control ScalarSpectralAdam."""

from spectral_ext.optim.parameters import parameter_groups
from spectral_ext.optim.scalar_spectral_adam import ScalarSpectralAdam
from spectral_ext.optim.spectral_newton import NonFiniteGradientError, SpectralNewton

__all__ = ["NonFiniteGradientError", "ScalarSpectralAdam", "SpectralNewton", "parameter_groups"]
