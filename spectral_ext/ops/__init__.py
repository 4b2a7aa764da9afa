"""The public functions over the compiled ops: one file or package per op."""

from spectral_ext.ops.geometry import Geometry, geometry_of
from spectral_ext.ops.input_factor import expand_lag_sums, input_factor, lag_state_size, lag_sums_
from spectral_ext.ops.output_factor import output_factor
from spectral_ext.ops.rayleigh_quotients import RayleighQuotients, rayleigh_quotients
from spectral_ext.ops.spectral_newton import SpectralMap, polar, spectral_map, spectral_newton

__all__ = [
    "Geometry",
    "RayleighQuotients",
    "SpectralMap",
    "expand_lag_sums",
    "geometry_of",
    "input_factor",
    "lag_state_size",
    "lag_sums_",
    "output_factor",
    "polar",
    "rayleigh_quotients",
    "spectral_map",
    "spectral_newton",
]
