"""Exact directional curvature h_k of every layer."""

from .measure import directional_curvature
from .memory import MemoryEstimate, estimate_memory
from .result import MECHANISMS, DirectionalCurvature, LayerCurvature, SelfCheck
from .trace import UntraceableError

__all__ = [
    "MECHANISMS",
    "DirectionalCurvature",
    "LayerCurvature",
    "MemoryEstimate",
    "SelfCheck",
    "UntraceableError",
    "directional_curvature",
    "estimate_memory",
]
