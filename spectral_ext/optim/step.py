"""The step of one group, bucket by bucket: gradients in the dtype of the state, updates, weights rounded once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spectral_ext.optim import adamw
from spectral_ext.optim.dtensor import local
from spectral_ext.optim.low_precision import exact_weight, rounding_generator, store
from spectral_ext.optim.matrix_step import BUCKET_BYTES, Transform, buckets, matrix_updates, parts_of
from spectral_ext.optim.state import state_dtype


def group_step(
    group: dict[str, Any],
    number: int,
    states: dict[int, dict[str, Any]],
    transform: Transform | None,
    found_inf: Tensor | None,
    process_group: torch.distributed.ProcessGroup | None,
) -> None:
    """Move the parameters of a group, in place: those at the places ``states`` has, each with a gradient.

    Without ``transform`` the group is AdamW's. Weights of 16 bits are updated in float32 and rounded once.
    """
    places = list(states)
    parameters = [group["params"][i] for i in places]
    if transform is None:
        parts = buckets([local(p) for p in parameters], BUCKET_BYTES)
    else:
        parts = parts_of(parameters, process_group)
    for part in parts:
        indices, own = [places[i] for i in part], [parameters[i] for i in part]
        gradients = [local(p.grad).to(state_dtype(p)) for p in own]  # type: ignore[union-attr]
        moments = [
            {key: local(value) if isinstance(value, Tensor) else value for key, value in states[i].items()}
            for i in indices
        ]
        updates = None
        if transform is not None:
            buffers = [state["momentum_buffer"] for state in moments] if group["momentum"] else []
            updates = matrix_updates(
                transform, own, gradients, buffers, indices, group, found_inf, process_group
            )  # fmt: skip
            del gradients
        weights = [local(p) for p in own]
        low = [i for i, weight in enumerate(weights) if weight.dtype.itemsize == 2]
        exact = list(weights)
        for i in low:
            exact[i] = exact_weight(weights[i], moments[i])
        if updates is None:
            adamw.update(exact, gradients, moments, group, found_inf)
        else:
            _move(exact, updates, group, found_inf)
        for i in low:
            generator = None
            if group["low_precision"] == "stochastic_rounding":
                generator = rounding_generator(
                    own[i], group["rounding_seed"], group["rounding_step"], (number, indices[i])
                )
            store(exact[i], weights[i], moments[i], found_inf, generator)


def _move(weights: list[Tensor], updates: list[Tensor], group: dict[str, Any], found_inf: Tensor | None) -> None:
    """W ← (1 − lr·weight_decay) W − lr·update, in place; nothing where ``found_inf`` is 1."""
    lr, decay = group["lr"], group["weight_decay"]
    if found_inf is not None:
        lr = (1 - found_inf) * (lr.to(found_inf.device) if isinstance(lr, Tensor) else lr)
    if isinstance(lr, Tensor):
        lr = lr.to(weights[0].device)
        torch._foreach_mul_(updates, -lr)
    if decay:
        torch._foreach_mul_(weights, 1 - lr * decay)
    torch._foreach_add_(weights, updates, alpha=1.0 if isinstance(lr, Tensor) else -lr)
