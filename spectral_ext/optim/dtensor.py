"""The part of a tensor that this process holds."""

from __future__ import annotations

import torch
from torch import Tensor

if torch.distributed.is_available():
    from torch.distributed.tensor import DTensor, Replicate, Shard
else:
    DTensor = Replicate = Shard = None  # type: ignore[assignment, misc]


def is_sharded(t: Tensor) -> bool:
    """Whether ``t`` is a DTensor (FSDP2, tensor parallelism)."""
    return DTensor is not None and isinstance(t, DTensor)


def local(t: Tensor) -> Tensor:
    """The local tensor of a DTensor, sharing its memory; any other tensor as it is."""
    return t.to_local() if is_sharded(t) else t  # type: ignore[attr-defined]
