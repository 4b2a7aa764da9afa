"""What is asked of gradients before a step: dense, on the parameter's device, finite, and there on all ranks alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from spectral_ext.optim.dtensor import is_sharded, local
from spectral_ext.optim.settings import names_of


def check_gradients(parameters: Sequence[Tensor], names: Sequence[str]) -> None:
    """Raise TypeError or ValueError, naming the parameter, for a gradient that is sparse or elsewhere."""
    for parameter, name in zip(parameters, names):
        gradient = parameter.grad
        if gradient is None:
            continue
        if gradient.layout is not torch.strided:
            raise TypeError(f"the gradient of {name!r} is sparse; make it dense (nn.Embedding(sparse=False))")
        if gradient.device != parameter.device:
            raise ValueError(
                f"the gradient of {name!r} is on {gradient.device}, the parameter on {parameter.device}: the parameter "
                "was moved after the backward pass; call zero_grad() and compute the gradient anew"
            )


def redistribute_gradients(parameters: Sequence[Tensor]) -> None:
    """Bring gradients of DTensors to the placement of their parameters: partial sums (norms under sequence
    parallelism) are added up."""
    for parameter in parameters:
        own: Any = parameter
        if own.grad is not None and is_sharded(own) and own.grad.placements != own.placements:
            own.grad = own.grad.redistribute(own.device_mesh, own.placements)


def nonfinite_here(gradients: Sequence[Tensor], device: torch.device, wait: bool) -> Tensor:
    """A float32 0-d tensor, 1 if any of these local gradients holds NaN or infinity, else 0.

    The norm of 0·g is NaN exactly where g is not finite, whatever the size of g. ``wait`` allows a synchronisation,
    which mostly saves that product: a finite norm proves a gradient finite.
    """

    def finite(tensors: Sequence[Tensor]) -> Tensor:
        norms = torch._foreach_norm(list(tensors))
        return torch.stack([norm.to(device, torch.float32) for norm in norms]).isfinite().all()

    whole = [gradient for gradient in gradients if gradient.numel()]
    if not whole or (wait and bool(finite(whole))):
        return torch.zeros((), device=device)
    return (~finite(torch._foreach_mul(whole, 0))).float()


def _sharing_groups(
    parameters: Sequence[Tensor], process_group: dist.ProcessGroup | None
) -> list[tuple[list[int], list[dist.ProcessGroup], bool]]:
    """The parameters that ranks hold together, with the process groups of those ranks, in the same order on all ranks;
    True for shards, False for replicas."""
    meshes: dict[Any, list[int]] = {}
    for i, parameter in enumerate(parameters):
        if is_sharded(parameter):
            meshes.setdefault(parameter.device_mesh, []).append(i)  # type: ignore[attr-defined]
    shared = [(own, [mesh.get_group(d) for d in range(mesh.ndim)], True) for mesh, own in meshes.items()]
    replicas = [i for i, parameter in enumerate(parameters) if not is_sharded(parameter)]
    if process_group is not None and replicas:
        shared.insert(0, (replicas, [process_group], False))
    return shared


def agree(
    parameters: Sequence[Tensor], names: Sequence[str], process_group: dist.ProcessGroup | None, capturable: bool
) -> Tensor | None:
    """Whether a gradient is not finite on any rank: a float32 0-d tensor, 1 or 0; None without any gradient.

    Ranks that share parameters also agree about which gradients there are, in the same small all-reduce, except under
    ``capturable``, which cannot look. A shard that has no gradient where another rank has one (an expert without a
    token) gets zeros.

    Raises:
        RuntimeError: on all ranks alike, a replica has a gradient on some ranks only.
    """
    gradients = [local(p.grad) for p in parameters if p.grad is not None]
    shared = _sharing_groups(parameters, process_group)
    if not gradients and not shared:
        return None
    device = gradients[0].device if gradients else local(parameters[0]).device
    flag = nonfinite_here(gradients, device, not capturable)
    rows = []
    for indices, groups, _ in shared:
        row = flag.view(1)
        if not capturable:
            there = torch.tensor([float(parameters[i].grad is not None) for i in indices], device=device)
            row = torch.cat([row, there, 1 - there])
        for group in groups:
            dist.all_reduce(row, dist.ReduceOp.MAX, group)
        flag = torch.maximum(flag, row[0])
        rows.append(row)
    if not capturable:
        _share_presence(parameters, names, [(own, kind) for own, _, kind in shared], rows)
    return flag


def _share_presence(
    parameters: Sequence[Tensor], names: Sequence[str], shared: Sequence[tuple[list[int], bool]], rows: Sequence[Tensor]
) -> None:
    """Zeros for missing gradients of shards; RuntimeError for those of replicas."""
    for (indices, sharded), row in zip(shared, rows):
        there, lacking = row[1:].view(2, -1).tolist()
        partly = [i for i, some, none in zip(indices, there, lacking) if some and none]
        if partly and not sharded:
            raise RuntimeError(
                f"{', '.join(repr(names[i]) for i in partly[:8])}: there is a gradient on some ranks of process_group "
                "only; nothing was changed. Reduce the gradients on all ranks before the step (DistributedDataParallel "
                "with find_unused_parameters=True), or set missing ones to zero"
            )
        for i in partly:
            if parameters[i].grad is None:
                parameters[i].grad = torch.zeros_like(parameters[i])


def nonfinite_names(groups: Sequence[Mapping[str, Any]]) -> str:
    """The parameters whose gradient is not finite here, quoted, at most eight."""
    named = (pair for number, group in enumerate(groups) for pair in zip(names_of(group, number), group["params"]))
    bad = [name for name, p in named if p.grad is not None and not local(p.grad).isfinite().all()]
    return ", ".join(map(repr, bad[:8])) or "a parameter on another rank"
