"""The part of a tensor that this process holds."""

from __future__ import annotations

import torch
from torch import Tensor

if torch.distributed.is_available():
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
else:
    DTensor = Replicate = Shard = distribute_tensor = None  # type: ignore[assignment, misc]


def is_sharded(t: Tensor) -> bool:
    """Whether ``t`` is a DTensor (FSDP2, tensor parallelism)."""
    return DTensor is not None and isinstance(t, DTensor)


def local(t: Tensor) -> Tensor:
    """The local tensor of a DTensor, sharing its memory; any other tensor as it is."""
    return t.to_local() if is_sharded(t) else t  # type: ignore[attr-defined]


def laid_out_as(value: Tensor, parameter: Tensor) -> Tensor:
    """``value``, of the shape of ``parameter``, with the placement of ``parameter``; every rank has the same value."""
    if not is_sharded(parameter):
        return value.full_tensor() if is_sharded(value) else value  # type: ignore[attr-defined]
    mesh, placements = parameter.device_mesh, parameter.placements  # type: ignore[attr-defined]
    if not is_sharded(value):
        return distribute_tensor(value.to(mesh.device_type), mesh, placements, src_data_rank=None)
    if value.device_mesh == mesh and value.placements == placements:  # type: ignore[attr-defined]
        return value
    return value.redistribute(mesh, placements)  # type: ignore[attr-defined]
