"""The state of a parameter: made at its first step, and brought to the parameter's device, dtype and placement."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spectral_ext.optim.dtensor import laid_out_as, local

MOMENTS = ("momentum_buffer", "exp_avg", "exp_avg_sq")


def state_dtype(parameter: Tensor) -> torch.dtype:
    """The dtype of moments: float32 for weights of 16 bits, else that of the weights."""
    return torch.promote_types(parameter.dtype, torch.float32)


def _zeros(parameter: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return torch.zeros_like(parameter, dtype=dtype, memory_format=torch.preserve_format)


def current_state(state: dict[str, Any], parameter: Tensor, group: dict[str, Any], name: str) -> dict[str, Any]:
    """The state of a parameter for a step of its group: what it lacks is made, what it has follows the parameter.

    ``momentum_buffer`` of a matrix (where there is momentum) or ``step``, ``exp_avg`` and ``exp_avg_sq`` of AdamW, and
    ``compensation`` where 16-bit weights are compensated.

    Raises:
        ValueError: the state has another shape than the parameter; the message names it.
    """
    dtype = state_dtype(parameter)
    wanted = MOMENTS[1:] if group["use_adamw"] else MOMENTS[: bool(group["momentum"])]
    for key in MOMENTS:
        value = state.get(key)
        if value is None:
            if key in wanted:
                state[key] = _zeros(parameter, dtype)
        elif value.shape != parameter.shape:
            raise ValueError(
                f"the state's {key} of {name!r} has shape {tuple(value.shape)}, the parameter now has "
                f"{tuple(parameter.shape)}: delete it, del optimizer.state[parameter], or make the optimizer anew"
            )
        elif value.dtype != dtype or value.device != parameter.device or type(value) is not type(parameter.data):
            state[key] = laid_out_as(value, parameter).to(parameter.device, dtype)
    if group["use_adamw"]:
        device = local(parameter).device if group["capturable"] else torch.device("cpu")
        step = state.get("step")
        state["step"] = torch.zeros((), device=device) if step is None else torch.as_tensor(step).to(device)
    compensation = state.get("compensation")
    if group["low_precision"] == "compensated" and parameter.dtype.itemsize == 2:
        if compensation is None or compensation.dtype != parameter.dtype or compensation.shape != parameter.shape:
            state["compensation"] = _zeros(parameter)
        else:
            state["compensation"] = laid_out_as(compensation, parameter).to(parameter.device)
    elif compensation is not None:
        del state["compensation"]
    return state
