"""A loaded state: is it of this optimizer and of these parameters?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from spectral_ext.optim.dtensor import local
from spectral_ext.optim.settings import names_of

GROUP_KEYS = ("use_adamw", "lr", "alpha", "momentum", "damping_mode")


def check_groups(groups: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError if the groups of a state are another optimizer's."""
    for group in groups:
        lacking = [key for key in GROUP_KEYS if key not in group]
        if lacking:
            whose, remedy = "another optimizer", "begin with a fresh state"
            if "ns_steps" in group:
                whose, remedy = "torch.optim.Muon", "copy its momentum_buffer of each parameter into optimizer.state[p]"
            raise ValueError(
                f"the state is of {whose}, not of SpectralNewton: its groups lack {', '.join(lacking)}; {remedy}"
            )


def check_shapes(groups: Sequence[Mapping[str, Any]], state: Mapping[Tensor, Mapping[str, Any]]) -> None:
    """Raise ValueError, naming the parameter, if a state has another shape than its parameter."""
    for number, group in enumerate(groups):
        for name, parameter in zip(names_of(group, number), group["params"]):
            for key, value in state.get(parameter, {}).items():
                if isinstance(value, Tensor) and value.dim() and value.shape != parameter.shape:
                    raise ValueError(
                        f"the state's {key} for {name!r} has shape {tuple(value.shape)}, not {tuple(parameter.shape)}: "
                        "were the parameters sorted into groups in another way, or is it another model's?"
                    )


def follow(
    groups: Sequence[dict[str, Any]], state: Mapping[Tensor, dict[str, Any]], settings: Mapping[str, Any]
) -> None:
    """Let the settings that say how this process runs hold, not those of the process that saved the state."""
    for group in groups:
        group |= settings
        for parameter in group["params"]:
            step = state.get(parameter, {}).get("step")
            if isinstance(step, Tensor):
                device = local(parameter).device if group["capturable"] else torch.device("cpu")
                state[parameter]["step"] = step.to(device)
