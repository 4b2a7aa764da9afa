"""Exact directional curvature h_k of every layer."""

from spectral_ext.curvature.measure import directional_curvature
from spectral_ext.curvature.memory import MemoryEstimate, estimate_memory
from spectral_ext.curvature.result import MECHANISMS, DirectionalCurvature, LayerCurvature, SelfCheck
from spectral_ext.curvature.trace import UntraceableError

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
