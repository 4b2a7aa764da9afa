"""Exact directional curvature h_k of every layer."""

from .measure import directional_curvature
from .result import MECHANISMS, DirectionalCurvature, LayerCurvature, SelfCheck

__all__ = ["MECHANISMS", "DirectionalCurvature", "LayerCurvature", "SelfCheck", "directional_curvature"]
