"""The spectral landscape of a model: one call, one row a layer."""

from .measure import measure
from .mechanisms import (
    LayerNormDiagnostic,
    ResidualDiagnostic,
    SoftmaxDiagnostic,
    layer_norm_diagnostic,
    residual_diagnostic,
    softmax_diagnostic,
)
from .recommendation import Recommendation, recommend
from .row import Arrays, Closure, LayerLandscape
from .storage import LandscapeFileError
from .table import Landscape, summary

__all__ = [
    "Arrays",
    "Closure",
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
]
