"""Checks of a fast method against what does not share its rules: double backward, and the gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_ext.curvature.chunks import Plan
from spectral_ext.curvature.directions import Directions
from spectral_ext.curvature.methods import Measured, double_backward
from spectral_ext.curvature.result import SelfCheck
from spectral_ext.curvature.trace import first_line

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}


class CannotCheckError(Exception):
    """The model has no double backward."""


def check_slopes(
    measured: Measured, directions: Directions, gradient: Tensor | None, precision: torch.dtype
) -> str | None:
    """L̇_k must be ⟨G, D_k⟩: whether the traced graph is the model, at first order. The complaint, or None."""
    if measured.slope is None:
        return None
    slopes, norm = torch.zeros_like(measured.slope), torch.zeros_like(measured.slope)
    if gradient is not None:
        slopes, norm = directions.along(gradient).double(), (gradient.norm() * directions.norms()).double()
    scale = torch.maximum(slopes.abs(), 1e-2 * norm).max().clamp_min(torch.finfo(precision).tiny)
    error = float((measured.slope - slopes).abs().max() / scale)
    if error <= 10 * TOLERANCE[precision]:
        return None
    return f"its first derivatives differ from the gradient's by {error:.1e} (relative)"


def check_curvature(
    plan: Plan, found: dict[str, Measured], directions: dict[str, Directions], dtype: torch.dtype
) -> dict[str, SelfCheck]:
    """k = 1 and k = K of each layer, on the first piece of data, against double backward.

    Raises:
        CannotCheckError: an operation of the model has no double backward.
    """
    ends = {name: sorted({0, len(directions[name]) - 1}) for name in found}
    few = {name: directions[name][ends[name]] for name in found}
    try:
        reference = double_backward(plan, few, lambda _: None, weight=False, pieces=plan.pieces[:1])
    except RuntimeError as why:
        raise CannotCheckError(first_line(why)) from why
    checks = {}
    for name, measured in found.items():
        truth, ours = reference[name].first, measured.first
        assert truth is not None and ours is not None and measured.terms is not None
        ours, terms = ours[ends[name]], measured.terms[ends[name]]
        scale = torch.maximum(truth.abs(), 1e-3 * torch.maximum(terms, truth.abs().max()))
        scale = scale.clamp_min(torch.finfo(dtype).tiny)
        error = float(((ours - truth).abs() / scale).max())
        checks[name] = SelfCheck(tuple(ends[name]), error, TOLERANCE[dtype])
    return checks
