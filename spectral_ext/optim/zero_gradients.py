"""Matrices without gradient in this step are not moved.

T(D), scaled to a fixed size, does not shrink as D does. The momentum of an expert that got no token would carry it on
at full speed, in one direction, until it underflows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spectral_ext.optim.dtensor import is_sharded
from spectral_ext.optim.layout import Layout


def _shape(gradient: Tensor, batch_dims: int) -> list[int]:
    """(*batch, 1, …, 1), which broadcasts over the matrices; () for one."""
    return [*gradient.shape[:batch_dims], *[1] * (gradient.dim() - batch_dims)] if batch_dims else []


def _moves(gradients: Sequence[Tensor], layouts: Sequence[Layout]) -> list[Tensor]:
    """1.0 for each matrix here that has an element other than zero, else 0.0."""
    flags = [torch.zeros(_shape(g, layout.batch_dims), device=g.device) for g, layout in zip(gradients, layouts)]
    rest: list[int] = []
    for i, (gradient, layout) in enumerate(zip(gradients, layouts)):
        b = layout.batch_dims
        if not gradient.numel():
            continue
        if gradient.device.type == "cpu":
            # One row says it as a rule, and costs no pass over the gradient.
            row = gradient[(slice(None),) * b + (0,) * (gradient.dim() - b - 1)]
            if bool(row.ne(0).any(-1).all()):
                flags[i].fill_(1.0)
                continue
        if b:
            flags[i] = (torch.linalg.vector_norm(gradient, math.inf, tuple(range(b, gradient.dim())), True) > 0).float()
        else:
            rest.append(i)
    if rest:
        for i, peak in zip(rest, torch._foreach_norm([gradients[i] for i in rest], math.inf)):
            flags[i] = (peak > 0).float()
    return flags


def _agree(flags: list[Tensor], parameters: Sequence[Tensor], layouts: Sequence[Layout]) -> None:
    """Let the shards of a matrix have one flag on all ranks, in place: one all-reduce a sharded mesh dimension."""
    shared: dict[tuple[Any, int], list[int]] = {}
    for i, (parameter, layout) in enumerate(zip(parameters, layouts)):
        if is_sharded(parameter):
            for dimension, placement in enumerate(parameter.placements):  # type: ignore[attr-defined]
                if not placement.is_replicate() and placement.dim >= layout.batch_dims:
                    shared.setdefault((parameter.device_mesh, dimension), []).append(i)  # type: ignore[attr-defined]
    for (mesh, dimension), members in shared.items():
        row = torch.cat([flags[i].reshape(-1) for i in members])
        torch.distributed.all_reduce(row, torch.distributed.ReduceOp.MAX, mesh.get_group(dimension))
        for i, flag in zip(members, row.split([flags[i].numel() for i in members])):
            flags[i] = flag.view(flags[i].shape)


@torch.compiler.disable
def hold_idle(
    updates: list[Tensor], gradients: Sequence[Tensor], parameters: Sequence[Tensor], layouts: Sequence[Layout]
) -> list[Tensor]:
    """The updates, of local shards where parameters are DTensors, zero for matrices whose whole gradient is zero."""
    flags = _moves(gradients, layouts)
    _agree(flags, parameters, layouts)
    # On a host, looking at the flags costs less than a product with them; elsewhere it would wait for the device.
    chosen = [i for i, flag in enumerate(flags) if flag.device.type != "cpu" or not bool(flag.all())]
    held = list(updates)
    if not chosen:
        return held
    for i, update in zip(chosen, torch._foreach_mul([updates[i] for i in chosen], [flags[i] for i in chosen])):
        held[i] = update
    return held
