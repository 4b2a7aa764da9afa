"""From a param group as the user writes it to groups of one kind: all matrices, or all AdamW's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from spectral_ext.optim import settings
from spectral_ext.optim.landscape import alphas_of
from spectral_ext.optim.names import check_patterns, is_catch_all

OTHER_OPTIMIZERS = {
    "betas": "adamw_betas",
    "eps": "adamw_eps",
    "use_muon": "use_adamw, its opposite",
    "adjust_lr_fn": "update_scale",
    "ns_steps": "tolerance",
    "ns_coefficients": "tolerance",
}
"""Settings of AdamW and of Muon that would be ignored in a group, and what stands for them here."""

WHOLE = ("capturable", "nonfinite")
"""Settings that hold for all groups."""


def _entries(group: Mapping[str, Any], number: int) -> tuple[list[Any], list[Tensor], list[str], bool]:
    """Entries as given, parameters, names, and whether the names were given."""
    params = group["params"]
    if isinstance(params, (set, frozenset)):
        raise TypeError(f"param group {number} is a set, whose order changes between runs: pass a list")
    entries: list[Any] = [params] if isinstance(params, Tensor) else list(params)
    if not entries:
        raise ValueError(f"param group {number} is empty: leave it out")
    named = isinstance(entries[0], tuple)
    parameters: list[Any] = [entry[1] if isinstance(entry, tuple) else entry for entry in entries]
    for i, (entry, parameter) in enumerate(zip(entries, parameters)):
        if not isinstance(parameter, Tensor):
            raise TypeError(f"param group {number}, entry {i}: expected a tensor, not {type(parameter).__name__}")
        if isinstance(entry, tuple) != named:
            raise ValueError(f"param group {number}, entry {i}: name all parameters of a group or none")
    names = [entry[0] for entry in entries] if named else settings.names_of({"params": parameters}, number)
    return entries, parameters, names, named


def _check_keys(given: Mapping[str, Any], defaults: Mapping[str, Any], number: int) -> None:
    """Raise for settings that would be ignored."""
    for key, ours in OTHER_OPTIMIZERS.items():
        if key in given:
            raise ValueError(f"param group {number}: SpectralNewton has no {key!r}; see {ours}")
    for key in WHOLE:
        if given.get(key, defaults[key]) != defaults[key]:
            raise ValueError(f"param group {number}: {key} holds for all groups; pass it to SpectralNewton(…)")
    choice = given.get("use_adamw", defaults["use_adamw"])
    if choice is not None and not isinstance(choice, bool):
        raise ValueError(f"param group {number}: use_adamw must be None, False or True, not {choice!r}")


def _shared(values: list[Any]) -> Any:
    """A list of values as one value if they are all the same."""
    return values[0] if all(value == values[0] for value in values) else values


def _per_parameter(
    key: str, given: Mapping[str, Any], group: dict[str, Any], defaults: Mapping[str, Any], names: list[str]
) -> None:
    """Check the length of a list; put the patterns of the optimizer's mapping over the list that a group has."""
    value = group[key]
    if not settings.is_list(key, value):
        return
    if len(value) != len(names):
        raise ValueError(f"{key} has {len(value)} values for the {len(names)} parameters from {names[0]!r} on")
    if key in settings.LAYOUT and key in given and isinstance(defaults[key], Mapping):
        group[key] = settings.by_name(key, defaults[key], names, value)


def expand(
    given: Mapping[str, Any],
    defaults: Mapping[str, Any],
    number: int,
    landscape: Mapping[str, Any] | None,
    skipped: Mapping[str, str],
    default_alpha: float | None,
) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """One or two groups, each with its parameters' names, with every setting resolved and checked.

    Per-parameter settings become lists or single values. A group of AdamW's has None for the settings of matrices, and
    AdamW's own learning rate and weight decay in ``lr`` and ``weight_decay``.
    """
    _check_keys(given, defaults, number)
    group = {**defaults, **given}
    entries, parameters, names, named = _entries(group, number)
    settings.check_parameters(parameters, names)
    choice = group["use_adamw"]
    for key in settings.PER_PARAMETER:
        if isinstance(group[key], Mapping) and not named and not all(map(is_catch_all, group[key])):
            raise ValueError(
                f"{key} is a mapping from names, but {names[0]!r} has none: pass the model or model.named_parameters()"
            )
        if isinstance(given.get(key), Mapping):
            check_patterns(key, given[key], names)
        if not choice or key in given:
            _per_parameter(key, given, group, defaults, names)
    rest = [bool(choice)] * len(names)
    if choice is None:
        batch_dims = settings.by_name("batch_dims", group["batch_dims"], names)
        rest = [not settings.is_matrix(parameter, count) for parameter, count in zip(parameters, batch_dims)]
    for use_adamw in (False, True):
        chosen = [i for i, is_rest in enumerate(rest) if is_rest == use_adamw]
        if not chosen:
            continue
        own = [names[i] for i in chosen]
        one = {**group, "params": [entries[i] for i in chosen], "use_adamw": use_adamw}
        if use_adamw:
            one |= dict.fromkeys(settings.PER_PARAMETER)
            one |= {key: _adamws(key, given, group, all(rest)) for key in ("lr", "weight_decay")}
        else:
            for key in settings.PER_PARAMETER:
                if settings.is_list(key, one[key]):
                    values = [one[key][i] for i in chosen]
                elif key == "alpha" and isinstance(one[key], str):
                    if one[key] != "landscape" or landscape is None:
                        raise ValueError(
                            f"alpha of {own[0]!r}: {one[key]!r} is neither a number nor 'landscape' where there is one "
                            "(copies of an optimizer have none)"
                        )
                    values = list(alphas_of(landscape, own, default_alpha, skipped))
                else:
                    values = settings.by_name(key, one[key], own)
                if key in ("alpha", "damping"):
                    values = [settings.number(v, f"{key} of {name!r}") for v, name in zip(values, own)]
                one[key] = _shared(values)
        settings.check({**one, "params": [parameters[i] for i in chosen]}, own)
        one |= {key: float(one[key]) for key in settings.NUMBERS if not isinstance(one[key], Tensor)}
        yield one, own


def _adamws(key: str, given: Mapping[str, Any], group: Mapping[str, Any], alone: bool) -> Any:
    """AdamW's learning rate or weight decay: what the group says of it; where AdamW has the group to itself, the
    group's own ``lr`` or ``weight_decay``; else the optimizer's."""
    own = group[f"adamw_{key}"]
    stands = own is not None and (f"adamw_{key}" in given or not (alone and key in given))
    return own if stands else group[key]
