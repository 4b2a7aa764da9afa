"""The ranks of a process group: each brings its own samples, and all end with the same result or the same error.

A measurement over ranks has this order. Each rank prepares its arguments inside :func:`together`, which communicates
only at its end, so that an error of one rank is raised on all. Then :func:`agree` compares models and options. Only
then come collectives on tensors, whose shapes are equal by now. ``group`` None means a single process, and every
function here then does nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from spectral_ext.layers import Layer
from spectral_ext.measurement.digest import digest
from spectral_ext.measurement.singular_directions import SingularDirections


@contextlib.contextmanager
def together(group: Any) -> Iterator[None]:
    """A step without communication; if it fails on one rank, it raises on all.

    Raises:
        RuntimeError: the step failed on other ranks only; the message holds their errors.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as problem:
        error = problem
    if group is not None:
        mine = None if error is None else f"{type(error).__name__}: {error}"
        failed = {rank: said for rank, said in enumerate(gathered(mine, group)) if said is not None}
        if error is None and failed:
            told = "; ".join(f"rank {rank}: {said}" for rank, said in failed.items())
            raise RuntimeError(f"the measurement failed on another rank of the process group ({told})")
    if error is not None:
        raise error


def agree(model: nn.Module, layers: Mapping[str, Layer], options: Mapping[str, Any], group: Any) -> None:
    """Compare options, layers, parameters, buffers and modes of all ranks before anything is summed.

    Raises:
        ValueError: on every rank, naming the first thing that differs, the ranks, and what each has.
    """
    if group is None:
        return
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    mine: dict[str, str] = {f"option {name}": repr(value) for name, value in options.items()}
    mine |= {"names of the layers": ", ".join(layers)}
    mine |= {f"shape and dtype of {name!r}": f"{tuple(t.shape)} {t.dtype}" for name, t in tensors.items()}
    mine |= {f"mode of {name or 'the model'!r}": str(module.training) for name, module in model.named_modules()}
    mine |= {f"values of {name!r}": digest(tensor)[:16] for name, tensor in tensors.items()}
    everyone: list[dict[str, str]] = gathered(mine, group)
    for what, value in everyone[0].items():
        for rank, theirs in enumerate(everyone):
            if theirs.get(what) != value:
                raise ValueError(
                    f"the ranks of the process group differ in the {what}: {value} on rank 0 and "
                    f"{theirs.get(what, 'missing')} on rank {rank}; all ranks must measure the same model with the "
                    "same options"
                )
    for rank, theirs in enumerate(everyone):
        for what in theirs:
            if what not in everyone[0]:
                raise ValueError(f"the ranks of the process group differ: rank {rank} has a {what}, rank 0 has none")


def gathered(value: Any, group: Any) -> list[Any]:
    """The values of all ranks, in their order; values are pickled, so that tensors do not belong here."""
    if group is None:
        return [value]
    everyone: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, value, group=group)
    return everyone


def union(names: Mapping[str, str], group: Any) -> dict[str, str]:
    """Names with reasons, of all ranks; the first rank's reason where several have one."""
    if group is None:
        return dict(names)
    found: dict[str, str] = {}
    for theirs in gathered(dict(names), group):
        found = {**theirs, **found}
    return found


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


def directions_of_first(along: SingularDirections | None, group: Any) -> SingularDirections | None:
    """The first rank's singular directions; None has to be None on all ranks, which have the same gradient."""
    if group is None or along is None:
        return along
    k, notes = gathered((len(along.sigma), along.notes), group)[0]
    sigma, U, V = along.sigma, along.U, along.V
    if k != len(sigma):  # the numerical rank is unique only up to rounding
        sigma, U, V = sigma.new_empty(k), U.new_empty(U.shape[0], k), V.new_empty(V.shape[0], k)
    sigma, U, V, sigma_all = (from_first(t, group) for t in (sigma, U, V, along.sigma_all))
    return SingularDirections(sigma, U, V, sigma_all, notes)


def check_group(group: Any) -> None:
    """Raises TypeError or RuntimeError where ``group`` is no process group or this process is not in it."""
    if group is None:
        return
    if not dist.is_available() or not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            f"process_group must be a torch.distributed process group, not {group!r}: for all ranks pass "
            "torch.distributed.group.WORLD after init_process_group"
        )
