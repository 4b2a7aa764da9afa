"""Sums over the ranks of a process group: each rank brings its own samples, and all end with the same result."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from spectral_ext.curvature.directions import Directions


def all_sum(tensor: Tensor, group: Any) -> Tensor:
    """Σ over the ranks; the tensor itself without a group."""
    if group is None:
        return tensor
    total = tensor.detach().clone().contiguous()
    dist.all_reduce(total, group=group)
    return total


def from_first(tensor: Tensor, group: Any) -> Tensor:
    """The first rank's value: a singular pair is unique only up to its sign, so that ranks could differ."""
    if group is None:
        return tensor
    value = tensor.detach().clone().contiguous()
    dist.broadcast(value, group=group, group_src=0)
    return value


def directions_from_first(directions: Directions, group: Any) -> Directions:
    if group is None:
        return directions
    U, V, dense = (None if t is None else from_first(t, group) for t in (directions.U, directions.V, directions.dense))
    return Directions(directions.shape, U, V, dense)


def raise_together(error: Exception | None, device: torch.device, group: Any) -> None:
    """Raise on every rank if one rank failed, so that none waits for it for ever."""
    if group is not None:
        failed = all_sum(torch.tensor([0.0 if error is None else 1.0], device=device), group)
        if error is None and failed.item() > 0:
            raise RuntimeError("the measurement failed on another rank of the process group; see its error")
    if error is not None:
        raise error
