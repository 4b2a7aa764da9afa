"""AdamW for the parameters that are not matrices: torch's own functional form over our state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from spectral_ext.optim.dtensor import local


def new_state(parameter: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
    """Zero moments and a step count of 0, as torch's AdamW keeps them."""
    device = local(parameter).device if group["capturable"] else torch.device("cpu")
    return {
        "step": torch.zeros((), dtype=torch.float32, device=device),
        "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
    }


def step(
    parameters: Sequence[Tensor],
    states: Sequence[dict[str, Any]],
    group: dict[str, Any],
    found_inf: Tensor | None = None,
) -> None:
    """One AdamW step with the group's ``lr``, ``adamw_betas``, ``adamw_eps``, ``weight_decay`` and ``maximize``.

    ``found_inf``: a tensor that, where 1, leaves everything as it was without a synchronisation (torch's fused kernel).
    """
    beta1, beta2 = group["adamw_betas"]
    adamw(
        [local(p) for p in parameters],
        [local(p.grad) for p in parameters],  # type: ignore[arg-type]
        [local(state["exp_avg"]) for state in states],
        [local(state["exp_avg_sq"]) for state in states],
        [],
        [state["step"] for state in states],
        fused=found_inf is not None,
        capturable=group["capturable"],
        found_inf=found_inf,
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["adamw_eps"],
        maximize=group["maximize"],
    )
