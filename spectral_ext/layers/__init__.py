"""The layers of a model: what one is, which are measured, and why the others are not."""

from spectral_ext.layers.find import NOT_ASKED, all_layers, find_layers, layer_name, why_no_layer
from spectral_ext.layers.kinds import CONVOLUTIONS, KINDS, MEASURABLE_TYPES, Layer, layer_of

__all__ = [
    "CONVOLUTIONS",
    "KINDS",
    "MEASURABLE_TYPES",
    "NOT_ASKED",
    "Layer",
    "all_layers",
    "find_layers",
    "layer_name",
    "layer_of",
    "why_no_layer",
]
