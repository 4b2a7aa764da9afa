"""The spectral landscape of a model: one call, one row per layer."""

from spectral_ext.landscape.columns import COLUMNS, Column, summary
from spectral_ext.landscape.files import write_atomically
from spectral_ext.landscape.measure import measure
from spectral_ext.landscape.mechanisms import (
    LayerNormDiagnostic,
    ResidualDiagnostic,
    SoftmaxDiagnostic,
    layer_norm_diagnostic,
    residual_diagnostic,
    softmax_diagnostic,
)
from spectral_ext.landscape.recommendation import Recommendation, recommend
from spectral_ext.landscape.row import Closure, DirectionArrays, LayerLandscape
from spectral_ext.landscape.storage import LandscapeFileError
from spectral_ext.landscape.table import Landscape

__all__ = [
    "COLUMNS",
    "Closure",
    "Column",
    "DirectionArrays",
    "Landscape",
    "LandscapeFileError",
    "LayerLandscape",
    "LayerNormDiagnostic",
    "Recommendation",
    "ResidualDiagnostic",
    "SoftmaxDiagnostic",
    "layer_norm_diagnostic",
    "measure",
    "recommend",
    "residual_diagnostic",
    "softmax_diagnostic",
    "summary",
    "write_atomically",
]
