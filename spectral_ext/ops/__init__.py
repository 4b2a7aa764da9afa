"""The public functions over the compiled ops."""

from spectral_ext.ops.geometry import Geometry, geometry_of
from spectral_ext.ops.input_factor import expand_lag_sums, input_factor, lag_state_size, lag_sums_
from spectral_ext.ops.output_factor import output_factor

__all__ = [
    "Geometry",
    "expand_lag_sums",
    "geometry_of",
    "input_factor",
    "lag_state_size",
    "lag_sums_",
    "output_factor",
]
