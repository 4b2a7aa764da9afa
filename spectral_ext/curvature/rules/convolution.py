"""Convolution: directions of the input fold into the batch, directions of the weight into the output channels."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_ext.curvature.directions import Directions
from spectral_ext.curvature.rules.registry import Operation, Push, rule
from spectral_ext.curvature.sums import inner_products

aten = torch.ops.aten


@rule(aten.convolution.default, mechanism="bilinear", bilinear=True, differentiable_operands=(0, 1))
def convolution(op: Operation) -> Push:
    x, weight = op.args[:2]
    geometry = op.args[3:]
    transposed, groups, adjoint = op.args[6], op.args[8], op.adjoint

    def moved_weight(dw: Tensor) -> Tensor:
        if transposed:
            return torch.stack([aten.convolution(x, filters, None, *geometry) for filters in dw])
        return Directions(weight.shape, dense=dw).convolution_output(
            lambda filters: aten.convolution(x, filters, None, *geometry), groups
        )

    def push(dx: Tensor | None, dw: Tensor | None = None, _: None = None) -> tuple[Tensor, Tensor | None]:
        total = term = None
        if dx is not None:
            total = aten.convolution(dx.flatten(0, 1), weight, None, *geometry).unflatten(0, dx.shape[:2])
        if dw is not None:
            moved = moved_weight(dw)
            total = moved if total is None else total + moved
            if dx is not None:
                cross = [aten.convolution(one, filters, None, *geometry) for one, filters in zip(dx, dw, strict=True)]
                term = 2 * torch.cat([inner_products(y.unsqueeze(0), adjoint) for y in cross])
        return total, term  # type: ignore[return-value]

    return push
