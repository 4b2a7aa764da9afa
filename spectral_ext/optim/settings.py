"""Settings of a param group: per-parameter values, and the checks, each error naming the parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from spectral_ext.ops.spectral_newton import DAMPING_MODES, SOLVERS
from spectral_ext.optim.local import is_sharded, local
from spectral_ext.optim.matrices import Layout
from spectral_ext.optim.parameters import matches
from spectral_ext.optim.scale import UPDATE_SCALES
from spectral_ext.transfer import check_damping, check_exponent

LAYOUT = ("batch_dims", "split", "split_dim")
PER_PARAMETER = ("alpha", "damping", "damping_mode", *LAYOUT)
MOMENTUM_MODES = ("ema", "sum")
NONFINITE = ("raise", "skip")


def names_of(group: Mapping[str, Any], number: int) -> list[str]:
    """Every parameter's name: its own where the optimizer was given names, else its place and shape."""
    if "param_names" in group:
        return list(group["param_names"])
    return [f"parameter {i} of group {number}, shape {tuple(p.shape)}" for i, p in enumerate(group["params"])]


def by_name(key: str, value: Any, names: Sequence[str]) -> list[Any]:
    """One value a parameter: the first pattern that fits of a mapping, the entries of a list, or the same for all."""
    if not isinstance(value, Mapping):
        return list(value) if isinstance(value, list) else [value] * len(names)
    values = []
    for name in names:
        fitting = [setting for pattern, setting in value.items() if matches(name, pattern)]
        if not fitting and key not in LAYOUT:
            raise ValueError(f"{key}: no pattern fits {name!r}; add it, or '*' for all others")
        values.append(fitting[0] if fitting else getattr(Layout, key))
    return values


def values_of(group: Mapping[str, Any], key: str) -> list[Any]:
    """One value a parameter."""
    value = group[key]
    return list(value) if isinstance(value, list) else [value] * len(group["params"])


def layouts_of(group: Mapping[str, Any]) -> list[Layout]:
    """One layout a parameter."""
    return [
        Layout(batch_dims, tuple(split) if isinstance(split, (list, tuple)) else split, split_dim)
        for batch_dims, split, split_dim in zip(*(values_of(group, key) for key in LAYOUT))
    ]


def is_matrix(parameter: Tensor, batch_dims: int) -> bool:
    return parameter.dim() >= batch_dims + 2


def _check_choice(key: str, value: Any, choices: Sequence[Any], name: str) -> None:
    if value not in choices:
        raise ValueError(f"{key} of {name!r} must be one of {choices}, not {value!r}")


def _check_range(key: str, value: Any, name: str, upper: float = float("inf")) -> None:
    number = float(value)
    if not 0 <= number < upper:
        raise ValueError(f"{key} of {name!r} must be at least 0 and below {upper:g}, not {number!r}")


def check_parameters(parameters: Sequence[Tensor], names: Sequence[str]) -> None:
    """Raise unless all are real, floating, and on one device."""
    for parameter, name in zip(parameters, names):
        if parameter.is_complex():
            raise TypeError(f"{name!r} is complex; SpectralNewton takes real parameters: use torch.view_as_real")
        if not parameter.is_floating_point() or parameter.dtype.itemsize == 1:
            raise TypeError(f"{name!r} is {parameter.dtype}; SpectralNewton takes float16, bfloat16, float32, float64")
        if local(parameter).device != local(parameters[0]).device:
            raise ValueError(
                f"{name!r} is on {local(parameter).device} and {names[0]!r} on {local(parameters[0]).device}: "
                "give the parameters of each device a group of their own"
            )
        if is_sharded(parameter) != is_sharded(parameters[0]):
            raise ValueError(f"{name!r} and {names[0]!r}: only one of them is a DTensor; give them groups of their own")


def check(group: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raise ValueError, naming the parameter, for any setting out of its range."""
    first = names[0]
    if isinstance(group["lr"], Tensor) and group["lr"].numel() != 1:
        raise ValueError(f"lr of {first!r} must have one element, not shape {tuple(group['lr'].shape)}")
    _check_range("lr", group["lr"], first)
    _check_range("weight_decay", group["weight_decay"], first)
    if group["use_adamw"]:
        for beta in group["adamw_betas"]:
            _check_range("adamw_betas", beta, first, 1)
        _check_range("adamw_eps", group["adamw_eps"], first)
        return
    _check_range("momentum", group["momentum"], first, 1)
    _check_choice("momentum_mode", group["momentum_mode"], MOMENTUM_MODES, first)
    _check_choice("solver", group["solver"], SOLVERS, first)
    if not callable(group["update_scale"]):
        _check_choice("update_scale", group["update_scale"], UPDATE_SCALES, first)
    if group["tolerance"] is not None and not 0 < group["tolerance"] < 1:
        raise ValueError(f"tolerance of {first!r} must lie in (0, 1), not {group['tolerance']!r}")
    columns = [values_of(group, key) for key in PER_PARAMETER[:3]]
    for name, parameter, layout, alpha, damping, mode in zip(names, group["params"], layouts_of(group), *columns):
        check_exponent(alpha, f"alpha of {name!r}")
        check_damping(damping, f"damping of {name!r}")
        _check_choice("damping_mode", mode, DAMPING_MODES, name)
        layout.check(name, parameter.shape)
