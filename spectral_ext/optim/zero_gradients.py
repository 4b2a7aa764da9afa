"""Matrices without gradient in this step are not moved.

c·T(D) has a fixed size and does not shrink as D does. The momentum of an expert that got no token, or of the queries
that nothing asked, would carry it on at full speed, in one direction, until it underflows.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spectral_ext.optim.dtensor import Replicate, Shard, distribute_tensor, is_sharded
from spectral_ext.optim.layout import Layout


@functools.lru_cache(maxsize=1024)
def _part_index(layout: Layout, shape: torch.Size, device: torch.device, mesh: Any, placements: Any) -> Tensor:
    """For each local row, or each local column in index order, the number of the fused matrix that it belongs to."""
    first = layout.batch_dims + layout.split_dim
    axes = shape[first : first + 1] if layout.split_dim == 0 else shape[first:]
    sizes = torch.tensor(layout.part_sizes(shape), device=device)
    index = torch.arange(len(sizes), device=device).repeat_interleave(sizes).view(axes)
    if mesh is None:
        return index.flatten()
    own: list[Any] = []
    for placement in placements:
        if placement.is_replicate() or not first <= placement.dim < first + len(axes):
            own.append(Replicate())
        elif type(placement) is Shard:
            own.append(Shard(placement.dim - first))
        else:
            own.append(type(placement)(placement.dim - first, split_factor=placement.split_factor))
    return distribute_tensor(index, mesh, own, src_data_rank=None).to_local().flatten()


def _index_of(parameter: Tensor, layout: Layout, device: torch.device) -> Tensor:
    mesh, placements = getattr(parameter, "device_mesh", None), getattr(parameter, "placements", None)
    return _part_index(layout, parameter.shape, device, mesh, placements)


def _moves(gradient: Tensor, parameter: Tensor, layout: Layout) -> Tensor:
    """(*batch, parts): 1.0 for each matrix that has an element other than zero in this local gradient, else 0.0."""
    b, parts = layout.batch_dims, len(layout.part_sizes(parameter.shape))
    flags = torch.zeros(*gradient.shape[:b], parts, device=gradient.device)
    if not gradient.numel():
        return flags
    if gradient.device.type == "cpu" and parts == 1:
        # The first row of each matrix mostly answers, without a pass over the gradient.
        row = gradient[(slice(None),) * b + (0,) * (gradient.dim() - b - 1)]
        if bool(row.ne(0).any(-1).all()):
            return flags.fill_(1.0)
    other = range(b, gradient.dim())
    if parts == 1:
        return gradient.ne(0).any(dim=tuple(other)).float().unsqueeze(-1)
    if layout.split_dim == 0:
        units = gradient.ne(0).any(dim=tuple(other)[1:]).float()
    else:
        units = gradient.ne(0).any(dim=b).flatten(b).float()
    index = _index_of(parameter, layout, gradient.device)
    return flags.scatter_reduce_(-1, index.expand(units.shape), units, "amax")


def _agree(flags: list[Tensor], parameters: Sequence[Tensor], layouts: Sequence[Layout]) -> None:
    """Let the shards of a matrix have one flag on all ranks, in place: one all-reduce per sharded mesh dimension."""
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


def hold_without_gradient(
    updates: Sequence[Tensor], gradients: Sequence[Tensor], parameters: Sequence[Tensor], layouts: Sequence[Layout]
) -> None:
    """Set the updates of matrices whose whole gradient is zero to zero, in place; local shards of DTensors."""
    flags = [_moves(*own) for own in zip(gradients, parameters, layouts)]
    _agree(flags, parameters, layouts)
    for update, flag, parameter, layout in zip(updates, flags, parameters, layouts):
        # On a host, looking at the flags costs less than a product with them; elsewhere it would wait for the device.
        if flag.device.type == "cpu" and bool(flag.all()):
            continue
        b, fused = layout.batch_dims, flag.shape[-1] > 1
        if fused:
            flag = flag.index_select(-1, _index_of(parameter, layout, flag.device))
        shape = [1, *update.shape[b + 1 :]] if fused and layout.split_dim else [flag.shape[-1]]
        shape += [1] * (update.dim() - b - len(shape))
        update.mul_(flag.view(*update.shape[:b], *shape).to(update.dtype))
