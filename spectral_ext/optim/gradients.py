"""What is asked of gradients before a step: dense, laid out as their parameters, finite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from spectral_ext.optim.dtensor import is_sharded, local
from spectral_ext.optim.settings import names_of


def settle(group: Mapping[str, Any], number: int) -> None:
    """Bring gradients of DTensors to the placement of their parameters: partial sums (norms under sequence
    parallelism) are added up.

    Raises:
        TypeError: a gradient is sparse; the message names the parameter.
    """
    for i, parameter in enumerate(group["params"]):
        gradient = parameter.grad
        if gradient is None:
            continue
        if gradient.layout is not torch.strided:
            name = names_of(group, number)[i]
            raise TypeError(f"the gradient of {name!r} is sparse; make it dense (nn.Embedding(sparse=False))")
        if is_sharded(parameter) and gradient.placements != parameter.placements:
            parameter.grad = gradient.redistribute(parameter.device_mesh, parameter.placements)


def any_nonfinite(parameters: Sequence[Tensor]) -> Tensor | None:
    """A float32 0-d tensor, 1 if any gradient holds NaN or infinity on any rank of its mesh, else 0; None without
    gradients.

    The norm of 0·g is NaN exactly where g is not finite, whatever the size of g. No synchronisation.
    """
    if not parameters:
        return None
    gradients = [local(p.grad) for p in parameters]  # type: ignore[arg-type]
    device = gradients[0].device
    whole = [gradient for gradient in gradients if gradient.numel()]
    norms = (
        [norm.to(device, torch.float32) for norm in torch._foreach_norm(torch._foreach_mul(whole, 0))] if whole else []
    )
    flag = (~torch.stack(norms).isfinite()).any().float() if norms else torch.zeros((), device=device)
    for mesh in {p.device_mesh for p in parameters if is_sharded(p)}:  # type: ignore[attr-defined]
        for dimension in range(mesh.ndim):
            torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX, mesh.get_group(dimension))
    return flag


def has_nonfinite(parameters: Sequence[Tensor]) -> bool:
    """``any_nonfinite`` with one synchronisation and, as a rule, one pass: a finite norm proves a gradient finite."""
    if parameters and not any(is_sharded(p) for p in parameters):
        device = parameters[0].device
        norms = torch._foreach_norm([p.grad for p in parameters if p.grad is not None and p.grad.numel()])
        if norms and torch.stack([norm.to(device, torch.float32) for norm in norms]).isfinite().all():
            return False
    flag = any_nonfinite(parameters)
    return flag is not None and bool(flag.item())


def nonfinite_names(groups: Sequence[Mapping[str, Any]]) -> str:
    """The parameters whose gradient is not finite here, quoted, at most eight."""
    named = (pair for number, group in enumerate(groups) for pair in zip(names_of(group, number), group["params"]))
    bad = [name for name, p in named if p.grad is not None and not local(p.grad).isfinite().all()]
    return ", ".join(map(repr, bad[:8])) or "a parameter whose shard on another rank"
