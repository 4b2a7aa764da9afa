"""Settings of a param group: per-parameter values, and the checks, each error naming the parameter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from spectral_ext.ops.spectral_newton import DAMPING_MODES, SOLVERS, check_damping, check_exponent, choose_solver
from spectral_ext.optim.dtensor import local
from spectral_ext.optim.layout import Layout
from spectral_ext.optim.low_precision import LOW_PRECISION
from spectral_ext.optim.names import matches
from spectral_ext.optim.transfer import check_transfer
from spectral_ext.optim.update_scale import UPDATE_SCALES

LAYOUT = ("batch_dims", "split", "split_dim")
PER_PARAMETER = ("alpha", "damping", "damping_mode", *LAYOUT)
RATES = ("lr", "weight_decay")
"""Settings that torch keeps per group: where a mapping gives several values, the group is cut by value."""
NUMBERS = ("lr", "weight_decay", "momentum", "adamw_eps")
FLAGS = ("nesterov", "maximize", "capturable")
MOMENTUM_MODES = ("ema", "sum")
NONFINITE = ("raise", "skip")
GLOBAL_SETTINGS = ("capturable", "nonfinite")
"""Settings that hold for all groups."""


def names_of(group: Mapping[str, Any], number: int) -> list[str]:
    """Every parameter's name: its own where the optimizer was given names, else its place and shape."""
    if "param_names" in group:
        return list(group["param_names"])
    return [f"parameter {i} of group {number}, shape {tuple(p.shape)}" for i, p in enumerate(group["params"])]


def by_name(key: str, value: Any, names: Sequence[str], otherwise: Sequence[Any] | None = None) -> list[Any]:
    """One value per parameter: the first pattern that fits of a mapping, the entries of a list, or the same for all.

    ``otherwise``: the values where no pattern fits; without it that is an error, except for the layout's settings.
    """
    if not isinstance(value, Mapping):
        return list(value) if is_list(key, value) else [value] * len(names)
    if otherwise is None and key in LAYOUT:
        otherwise = [getattr(Layout, key)] * len(names)
    values = []
    for i, name in enumerate(names):
        fitting = next((pattern for pattern in value if matches(name, pattern)), None)
        if fitting is None and otherwise is None:
            raise ValueError(f"{key}: no pattern fits {name!r}; add it, or '*' for all others")
        values.append(value[fitting] if fitting is not None else otherwise[i])  # type: ignore[index]
    return values


def is_list(key: str, value: Any) -> bool:
    """Whether a value has one entry per parameter; a tuple is the sizes of one ``split``."""
    return isinstance(value, list) or (isinstance(value, tuple) and key != "split")


def values_of(group: Mapping[str, Any], key: str) -> list[Any]:
    """One value per parameter.

    Raises:
        ValueError: a list has another length.
    """
    value, count = group[key], len(group["params"])
    if not is_list(key, value):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{key} has {len(value)} values for the {count} parameters of its group")
    return list(value)


def layouts_of(group: Mapping[str, Any]) -> list[Layout]:
    """One layout per parameter."""
    return [
        Layout(batch_dims, tuple(split) if isinstance(split, (list, tuple)) else split, split_dim)
        for batch_dims, split, split_dim in zip(*(values_of(group, key) for key in LAYOUT))
    ]


def is_matrix(parameter: Tensor, batch_dims: int) -> bool:
    """Whether its dimensions suffice; ``Layout.check`` refuses a ``batch_dims`` that is not an integer."""
    return parameter.dim() >= (batch_dims if isinstance(batch_dims, int) else 0) + 2


def number(value: Any, name: str) -> float:
    """A number as a float; TypeError for anything else, text included."""
    try:
        if not isinstance(value, str):
            return float(value)
    except (TypeError, ValueError):
        pass
    raise TypeError(f"{name} must be a number, not {value!r}")


def _check_choice(key: str, value: Any, choices: Sequence[Any], name: str) -> None:
    if not isinstance(value, (str, type(None))) or value not in choices:
        raise ValueError(f"{key} of {name!r} must be one of {choices}, not {value!r}")


def _check_range(key: str, value: Any, name: str, upper: float = math.inf) -> None:
    if not 0 <= number(value, f"{key} of {name!r}") < upper:
        limit = "finite" if upper == math.inf else f"below {upper:g}"
        raise ValueError(f"{key} of {name!r} must be at least 0 and {limit}, not {float(value)!r}")


def check_parameters(parameters: Sequence[Tensor], names: Sequence[str]) -> None:
    """Raise unless all are real, floating, and on one device."""
    for parameter, name in zip(parameters, names):
        if getattr(parameter, "_is_flat_param", False) or getattr(parameter, "_fsdp_flattened", False):
            raise TypeError(
                f"{name!r} was flattened by FullyShardedDataParallel (FSDP1) and is no matrix any more: shard the "
                "model with torch.distributed.fsdp.fully_shard (FSDP2)"
            )
        if parameter.is_complex():
            raise TypeError(f"{name!r} is complex; SpectralNewton takes real parameters: use torch.view_as_real")
        if not parameter.is_floating_point() or parameter.dtype.itemsize == 1:
            raise TypeError(f"{name!r} is {parameter.dtype}; SpectralNewton takes float16, bfloat16, float32, float64")
        if local(parameter).device != local(parameters[0]).device:
            raise ValueError(
                f"{name!r} is on {local(parameter).device} and {names[0]!r} on {local(parameters[0]).device}: "
                "give the parameters of each device a group of their own"
            )


def check(group: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raise ValueError or TypeError, naming setting and parameter, for any setting out of its range.

    A learning rate in a tensor on an accelerator is not looked at, so as not to wait for it.
    """
    first, lr = names[0], group["lr"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError(f"lr of {first!r} must have one element, not shape {tuple(lr.shape)}")
    if not isinstance(lr, Tensor) or lr.device.type == "cpu":
        _check_range("lr", lr, first)
    _check_range("weight_decay", group["weight_decay"], first)
    for key in FLAGS:
        if not isinstance(group[key], (bool, int)):
            raise TypeError(f"{key} of {first!r} must be True or False, not {group[key]!r}")
    _check_choice("low_precision", group["low_precision"], LOW_PRECISION, first)
    if not isinstance(group["rounding_seed"], int):
        raise TypeError(f"rounding_seed of {first!r} must be an integer, not {group['rounding_seed']!r}")
    if group["capturable"] and group["low_precision"] == "stochastic_rounding":
        raise ValueError(
            f"low_precision of {first!r}: a CUDA graph replays the same noise, so capturable=True cannot round "
            "stochastically: use 'compensated'"
        )
    if group["use_adamw"]:
        if not isinstance(group["adamw_betas"], (tuple, list)) or len(group["adamw_betas"]) != 2:
            raise ValueError(f"adamw_betas of {first!r} must be two numbers, not {group['adamw_betas']!r}")
        for beta in group["adamw_betas"]:
            _check_range("adamw_betas", beta, first, 1)
        _check_range("adamw_eps", group["adamw_eps"], first)
        return
    _check_range("momentum", group["momentum"], first, 1)
    _check_choice("momentum_mode", group["momentum_mode"], MOMENTUM_MODES, first)
    _check_choice("solver", group["solver"], SOLVERS, first)
    check_transfer(group["transfer"], first)
    if not callable(group["update_scale"]):
        _check_choice("update_scale", group["update_scale"], UPDATE_SCALES, first)
    if group["tolerance"] is not None and not 0 < number(group["tolerance"], f"tolerance of {first!r}") < 1:
        raise ValueError(f"tolerance of {first!r} must lie in (0, 1), not {group['tolerance']!r}")
    columns = [values_of(group, key) for key in PER_PARAMETER[:3]]
    for name, parameter, layout, alpha, damping, mode in zip(names, group["params"], layouts_of(group), *columns):
        check_exponent(number(alpha, f"alpha of {name!r}"), f"alpha of {name!r}")
        check_damping(number(damping, f"damping of {name!r}"), f"damping of {name!r}")
        _check_choice("damping_mode", mode, DAMPING_MODES, name)
        layout.check(name, parameter.shape)
        if group["capturable"] and local(parameter).device.type != "cpu":
            _check_capturable(group, name, float(alpha), float(damping), mode)


def _check_capturable(group: Mapping[str, Any], name: str, alpha: float, damping: float, mode: str) -> None:
    """Raise where the solver would wait for the device, which a CUDA graph cannot."""
    solver = group["solver"]
    if solver == "auto":
        tolerance = None if group["tolerance"] is None else float(group["tolerance"])
        solver = choose_solver(alpha, damping, mode, device="cuda", tolerance=tolerance).solver
    if solver in ("eigh", "svd"):
        raise ValueError(
            f"capturable=True cannot take solver {solver!r}, which waits for the device, for {name!r} with "
            f"alpha={alpha:g} and damping_mode={mode!r}: use solver='auto' and a larger damping or tolerance"
        )
