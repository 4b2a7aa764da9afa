"""Pooling and reductions by maximum: piecewise linear, the tangent is taken where the maximum is."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spectral_ext.curvature.rules.registry import Operation, Push, rule

aten = torch.ops.aten


@rule(aten.max_pool2d_with_indices.default, aten.adaptive_max_pool2d.default, aten.max_pool3d_with_indices.default,
      aten.adaptive_max_pool3d.default)  # fmt: skip
def max_pool(op: Operation) -> Push:
    spatial = 3 if "3d" in str(op.node.target) else 2
    index = op.value[1]
    where, shape = index.flatten(-spatial), index.shape

    def push(d: Tensor) -> tuple[tuple[Tensor, None], None]:
        flat = d.flatten(-spatial)
        return (flat.gather(-1, where.expand(d.shape[0], *where.shape)).reshape(d.shape[0], *shape), None), None

    return push


@rule(aten.max.dim, aten.min.dim, aten.topk.default, aten.sort.default, aten.sort.stable, aten.kthvalue.default,
      aten.median.dim)  # fmt: skip
def by_index(op: Operation) -> Push:
    values, index = op.value[0], op.value[1]
    shape = op.args[0].shape
    position = 2 if op.target in (aten.topk.default, aten.kthvalue.default) else 1
    if op.target is aten.sort.stable:
        axis = op.kwargs.get("dim", -1)
    else:
        axis = op.args[position] if len(op.args) > position else -1
    axis = axis % max(len(shape), 1)
    index = index if index.dim() == len(shape) else index.unsqueeze(axis)

    def push(d: Tensor) -> tuple[tuple[Tensor, None], None]:
        taken = d.gather(axis + 1, index.expand(d.shape[0], *index.shape))
        return (taken.reshape(d.shape[0], *values.shape), None), None

    assert math.prod(index.shape) == values.numel()
    return push
