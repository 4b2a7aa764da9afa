"""Batch, layer, group and RMS norm: x̂ = r c(x) over groups of n numbers, c centring or not, r = (mean c² + ε)^(−1/2).

With ċ = c(ẋ), a = mean(x̂ ċ), v = mean(ċ²) and g = ȳ · weight, per group:

    x̂˙ = r (ċ − x̂ a),    term = r² [ −2a Σ(g ċ) + (3a² − v) Σ(g x̂) ].
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from spectral_ext.curvature import normal_form
from spectral_ext.curvature.rules.registry import Operation, Push, rule
from spectral_ext.curvature.sums import sum_in_float64


def normalized(
    op: Operation,
    shape: tuple[int, ...],
    axes: tuple[int, ...],
    weight: Any,
    weight_shape: tuple[int, ...],
    eps: float,
    centre: bool = True,
) -> Push:
    """The rule with x viewed as ``shape``, groups along ``axes`` of it, and the weight as ``weight_shape``."""
    x, out = op.args[0].reshape(shape), op.value.shape
    n = math.prod(shape[axis] for axis in axes)
    tangent_axes = [axis + 1 for axis in axes]
    if centre:
        x = x - x.mean(axes, keepdim=True)
    r = (x.square().mean(axes, keepdim=True) + eps).rsqrt()
    unit = x * r
    gain = r if weight is None else r * weight.reshape(weight_shape)
    if op.adjoint is not None:
        g = op.adjoint.reshape(shape)
        g = g if weight is None else g * weight.reshape(weight_shape)
        alignment = (g * unit).sum(axes, keepdim=True) * r.square()
        g = (g - g.mean(axes, keepdim=True) if centre else g) * r.square()

    def push(d: Tensor, *_: None) -> tuple[Tensor, Tensor | None]:
        d = d.reshape(d.shape[0], *shape)
        d = d - d.mean(tangent_axes, keepdim=True) if centre else d
        a = (d * unit).sum(tangent_axes, keepdim=True) / n
        term = None
        if op.adjoint is not None:
            v = d.square().mean(tangent_axes, keepdim=True)
            b = (d * g).sum(tangent_axes, keepdim=True)
            term = sum_in_float64((3 * a.square() - v) * alignment - 2 * a * b)
        return (torch.addcmul(d, unit, a, value=-1) * gain).reshape(d.shape[0], *out), term

    return push


@rule(normal_form.layer_norm, mechanism="norm", differentiable_operands=(0,))
def layer_norm(op: Operation) -> Push:
    x, shape, weight, _, eps = op.args
    axes = tuple(range(x.dim() - len(shape), x.dim()))
    return normalized(op, tuple(x.shape), axes, weight, tuple(shape), eps)


@rule(normal_form.rms_norm, mechanism="norm", differentiable_operands=(0,))
def rms_norm(op: Operation) -> Push:
    x, shape, weight, eps = op.args
    axes = tuple(range(x.dim() - len(shape), x.dim()))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    return normalized(op, tuple(x.shape), axes, weight, tuple(shape), eps, centre=False)


@rule(normal_form.group_norm, mechanism="norm", differentiable_operands=(0,))
def group_norm(op: Operation) -> Push:
    x, groups, weight, _, eps = op.args
    shape = (x.shape[0], groups, x.shape[1] // groups, math.prod(x.shape[2:]))
    return normalized(op, shape, (2, 3), weight, (groups, -1, 1), eps)


@rule(normal_form.batch_norm, mechanism="norm", differentiable_operands=(0,))
def batch_norm(op: Operation) -> Push:
    x, weight, _, eps = op.args
    axes = (0, *range(2, x.dim()))
    return normalized(op, tuple(x.shape), axes, weight, (-1, *(1,) * (x.dim() - 2)), eps)


@rule(normal_form.fixed_norm, differentiable_operands=(0,))
def fixed_norm(op: Operation) -> Push:
    scale, _ = normal_form.fixed_norm_coefficients(*op.args)
    return lambda d, *_: (d * scale, None)
