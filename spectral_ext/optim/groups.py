"""From a param group as the user writes it to groups of one kind: all matrices, or all AdamW's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from spectral_ext.optim import settings
from spectral_ext.optim.landscape import alphas_of


def _entries(group: Mapping[str, Any], number: int) -> tuple[list[Any], list[Tensor], list[str]]:
    """Entries as given, parameters, names."""
    params = group["params"]
    entries: list[Any] = [params] if isinstance(params, Tensor) else list(params)
    if not entries:
        raise ValueError(f"param group {number} is empty: leave it out")
    named = isinstance(entries[0], tuple)
    parameters: list[Any] = [entry[1] if isinstance(entry, tuple) else entry for entry in entries]
    for i, parameter in enumerate(parameters):
        if not isinstance(parameter, Tensor):
            raise TypeError(f"param group {number}, entry {i}: expected a tensor, not {type(parameter).__name__}")
    names = [entry[0] for entry in entries] if named else settings.names_of({"params": parameters}, number)
    return entries, parameters, names


def _select(values: Any, chosen: list[int]) -> Any:
    """The chosen of a list of per-parameter values, as one value if they are all the same."""
    if not isinstance(values, list):
        return values
    values = [values[i] for i in chosen]
    return values[0] if all(value == values[0] for value in values) else values


def expand(
    given: Mapping[str, Any],
    defaults: Mapping[str, Any],
    number: int,
    landscape: Mapping[str, Any] | None,
    default_alpha: float | None,
) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """One or two groups, each with its parameters' names, with every setting resolved.

    Per-parameter settings become lists or single values. A group of AdamW's has None for the settings of matrices, and
    AdamW's own learning rate and weight decay in ``lr`` and ``weight_decay``.
    """
    group = {**defaults, **given}
    entries, parameters, names = _entries(group, number)
    settings.check_parameters(parameters, names)
    for key in settings.PER_PARAMETER:
        if isinstance(group[key], list) and len(group[key]) != len(names):
            raise ValueError(f"{key} has {len(group[key])} values for the {len(names)} parameters from {names[0]!r} on")
    batch_dims = settings.by_name("batch_dims", group["batch_dims"], names)
    choice = group["use_adamw"]
    rest = [not settings.is_matrix(p, b) if choice is None else choice for p, b in zip(parameters, batch_dims)]
    for use_adamw in (False, True):
        chosen = [i for i, is_rest in enumerate(rest) if is_rest == use_adamw]
        if not chosen:
            continue
        own = [names[i] for i in chosen]
        one = {**group, "params": [entries[i] for i in chosen], "use_adamw": use_adamw}
        if use_adamw:
            one |= dict.fromkeys(settings.PER_PARAMETER)
            if one["adamw_lr"] is not None:
                one["lr"] = one["adamw_lr"]
            if one["adamw_weight_decay"] is not None:
                one["weight_decay"] = one["adamw_weight_decay"]
        else:
            if isinstance(one["alpha"], str):
                if one["alpha"] != "landscape" or landscape is None:
                    raise ValueError(
                        f"alpha of {own[0]!r}: {one['alpha']!r} is neither a number nor 'landscape' with one given"
                    )
                one["alpha"] = alphas_of(landscape, own, default_alpha)
            for key in settings.PER_PARAMETER:
                value = _select(one[key], chosen) if len(chosen) < len(names) or key != "alpha" else one[key]
                one[key] = _select(settings.by_name(key, value, own), list(range(len(own))))
        yield one, own
