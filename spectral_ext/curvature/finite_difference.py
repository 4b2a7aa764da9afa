"""h_k by central differences of the gradient: the last method, and the judge of a double backward that may be wrong.

With φ(t) = ⟨∂L/∂W (W + t D), D⟩, h = φ′(0). Differences (φ(t) − φ(−t)) / 2t at a decreasing sequence of steps are
extrapolated to t = 0 (Ridders 1982), which also gives an error estimate. Only first derivatives are needed, so that any
differentiable model will do; but at the kinks of a piecewise linear network the differences do not converge, and the
estimate says so. The model is evaluated in float64 where it can be.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from spectral_ext.curvature.directions import Directions
from spectral_ext.curvature.extrapolation import derivative_at_zero
from spectral_ext.curvature.objective import batch_in_float64, call_with, in_float64
from spectral_ext.curvature.sums import inner_products
from spectral_ext.layers import Layer
from spectral_ext.measurement.batches import LossFunction, batch_loss
from spectral_ext.measurement.gradients import Piece

FIRST_STEP = 0.05
"""‖t D‖ of the first step, relative to ‖W‖."""


@dataclass
class Difference:
    """Derivatives with their error estimates, (K,) float64."""

    value: Tensor
    error: Tensor


def central_differences(
    model: nn.Module, loss_fn: LossFunction, pieces: list[Piece], layer: Layer, directions: Directions
) -> Difference:
    """h_k of the mean loss over the pieces, and an estimate of its absolute error."""
    weight, total = layer.weight, sum(piece.weight for piece in pieces)
    replaced = in_float64(model)
    try:
        return _differences(model, loss_fn, pieces, total, weight, replaced, directions.to(torch.float64))
    except RuntimeError:
        if weight.dtype == torch.float64:
            raise
    # Kernels or constants of the model that do not take float64.
    return _differences(model, loss_fn, pieces, total, weight, {}, directions)


def _differences(
    model: nn.Module,
    loss_fn: LossFunction,
    pieces: list[Piece],
    total: float,
    weight: Tensor,
    replaced: dict[int, Tensor],
    directions: Directions,
) -> Difference:
    base = replaced.get(id(weight), weight).detach()
    double = base.dtype == torch.float64
    batches = [batch_in_float64(piece.batch) if double else piece.batch for piece in pieces]

    def slope(tangent: Tensor, step: float) -> float:
        """φ(step)."""
        moved = torch.add(base, tangent, alpha=step).requires_grad_()
        found = 0.0
        for piece, batch in zip(pieces, batches, strict=True):
            loss = call_with(model, {**replaced, id(weight): moved}, partial(batch_loss, model, loss_fn, batch))
            if loss.requires_grad:
                (gradient,) = torch.autograd.grad(loss, moved, allow_unused=True)
                if gradient is not None:
                    found += piece.weight / total * float(inner_products(tangent.unsqueeze(0), gradient))
        return found

    eps = torch.finfo(base.dtype).eps
    values, errors = [], []
    for k in range(len(directions)):
        (tangent,) = directions[[k]].weight_tangents()
        value, error = derivative_at_zero(partial(slope, tangent), _first_step(base, tangent), eps)
        values.append(value)
        errors.append(error)
    device = weight.device
    return Difference(
        torch.tensor(values, dtype=torch.float64, device=device),
        torch.tensor(errors, dtype=torch.float64, device=device),
    )


def _first_step(weight: Tensor, tangent: Tensor) -> float:
    """A step that moves the weight by a twentieth of its norm, or of 1 where it is zero."""
    scale = float(weight.double().norm()) or 1.0
    return FIRST_STEP * scale / max(float(tangent.double().norm()), torch.finfo(torch.float64).tiny)
