"""Exact directional curvature h_k of every layer."""

from .measure import directional_curvature
from .memory import MemoryEstimate, estimate_memory
from .result import MECHANISMS, DirectionalCurvature, LayerCurvature, SelfCheck

__all__ = [
    "MECHANISMS",
    "DirectionalCurvature",
    "LayerCurvature",
    "MemoryEstimate",
    "SelfCheck",
    "directional_curvature",
    "estimate_memory",
]
