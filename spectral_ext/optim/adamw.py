"""AdamW for the parameters that are not matrices: torch's own functional form over our state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim.adamw import adamw


def update(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    states: Sequence[dict[str, Tensor]],
    group: dict[str, Any],
    found_inf: Tensor | None = None,
) -> None:
    """One AdamW step with the group's ``lr``, ``adamw_betas``, ``adamw_eps``, ``weight_decay`` and ``maximize``, in
    place, of local tensors that have the dtype of their moments.

    ``found_inf``: a tensor that, where 1, leaves everything as it was without a synchronisation (torch's fused kernel).
    """
    beta1, beta2 = group["adamw_betas"]
    adamw(
        list(weights),
        list(gradients),
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
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
