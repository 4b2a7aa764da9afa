"""The public functions over the compiled ops: one file an op."""

from spectral_ext.ops.input_factor import input_factor
from spectral_ext.ops.output_factor import output_factor
from spectral_ext.ops.rayleigh_quotients import rayleigh_quotients
from spectral_ext.ops.spectral_newton import spectral_newton

__all__ = ["input_factor", "output_factor", "rayleigh_quotients", "spectral_newton"]
