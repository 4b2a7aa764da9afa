"""Sums over the ranks of a process group: each rank brings its own samples, and all end with the same result."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def all_sum(tensor: Tensor, group: Any) -> Tensor:
    """Σ over the ranks; the tensor itself without a group."""
    if group is None:
        return tensor
    total = tensor.detach().clone().contiguous()
    dist.all_reduce(total, group=group)
    return total


def from_first(tensor: Tensor, group: Any) -> Tensor:
    """The first rank's value on every rank."""
    if group is None:
        return tensor
    value = tensor.detach().clone().contiguous()
    dist.broadcast(value, group=group, group_src=0)
    return value


def raise_on_all_ranks(error: Exception | None, device: torch.device, group: Any) -> None:
    """Raise on every rank if one rank failed, so that no rank waits for the others for ever."""
    if group is not None:
        failed = all_sum(torch.tensor([0.0 if error is None else 1.0], device=device), group)
        if error is None and failed.item() > 0:
            raise RuntimeError("the measurement failed on another rank of the process group; see its error")
    if error is not None:
        raise error
