"""From a param group as the user writes it to groups of one kind and one rate: all matrices, or all AdamW's."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from spectral_ext.optim import settings
from spectral_ext.optim.landscape import alphas_of, row_of
from spectral_ext.optim.layout import Layout
from spectral_ext.optim.names import aliases, check_patterns, is_catch_all
from spectral_ext.optim.parameters import Route, layouts_of_routes

OTHER_OPTIMIZERS = {
    "betas": "adamw_betas",
    "eps": "adamw_eps",
    "use_muon": "use_adamw, its opposite",
    "adjust_lr_fn": "update_scale",
    "ns_steps": "tolerance",
    "ns_coefficients": "tolerance",
}
"""Settings of AdamW and of Muon that would be ignored in a group, and what stands for them here."""

RATES = (*settings.RATES, *(f"adamw_{key}" for key in settings.RATES))
"""Settings that may be a mapping from names, for which the group is cut by value."""

TABLE_NAME = re.compile(r"embed\w*\.weight$|(^|\.)(wte|wpe|lm_head)\.weight$")
"""Names of embeddings and of heads of language models, where nothing is known of the modules."""


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


def with_known_names(params: Any, model: nn.Module | None) -> Any:
    """The entries of a group, named where they are a model's parameters without names."""
    if model is None or isinstance(params, (set, frozenset)):
        return params
    names = {id(p): name for name, p in model.named_parameters()}
    entries = [params] if isinstance(params, Tensor) else list(params)
    known = entries and all(isinstance(p, Tensor) and id(p) in names for p in entries)
    return [(names[id(p)], p) for p in entries] if known else entries


def name_alike(group: dict[str, Any], names: list[str], others: Sequence[dict[str, Any]]) -> None:
    """torch wants names of all groups or of none: where the new group or the others have names, the rest gets those
    that errors call them by."""
    if isinstance(group["params"][0], tuple):
        for number, other in enumerate(others):
            other["param_names"] = settings.names_of(other, number)
    elif any("param_names" in other for other in others):
        group["params"] = list(zip(names, group["params"]))


def _check_keys(given: Mapping[str, Any], defaults: Mapping[str, Any], number: int) -> None:
    """Raise for settings that would be ignored."""
    for key, ours in OTHER_OPTIMIZERS.items():
        if key in given:
            raise ValueError(f"param group {number}: SpectralNewton has no {key!r}; see {ours}")
    for key in settings.GLOBAL_SETTINGS:
        if given.get(key, defaults[key]) != defaults[key]:
            raise ValueError(f"param group {number}: {key} holds for all groups; pass it to SpectralNewton(…)")
    choice = given.get("use_adamw", defaults["use_adamw"])
    if choice is not None and not isinstance(choice, bool):
        raise ValueError(f"param group {number}: use_adamw must be None, False or True, not {choice!r}")


def _shared(values: list[Any]) -> Any:
    """A list of values as one value if all are the same."""
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


def resolve_group(
    given: Mapping[str, Any],
    defaults: Mapping[str, Any],
    number: int,
    landscape: Mapping[str, Any] | None,
    skipped: Mapping[str, str],
    default_alpha: float | None,
    routes: Mapping[str, Route],
) -> Iterator[tuple[dict[str, Any], dict[str, str]]]:
    """Groups of one kind and one rate, each with why its parameters are there by name; every setting is resolved and
    checked.

    Settings that may differ per parameter become lists or single values. A group of AdamW's has None for the settings
    of matrices, and AdamW's own learning rate and weight decay in ``lr`` and ``weight_decay``. ``routes``: what is
    known by name of a model's parameters; it decides where the group itself says nothing.
    """
    _check_keys(given, defaults, number)
    group = {**defaults, **given}
    entries, parameters, names, named = _entries(group, number)
    settings.check_parameters(parameters, names)
    choice = group["use_adamw"]
    mappings = [key for key in (*settings.PER_PARAMETER, *RATES) if isinstance(group[key], Mapping)]
    for key in mappings:
        if not named and not all(map(is_catch_all, group[key])):
            raise ValueError(
                f"{key} is a mapping from names, but {names[0]!r} has none: pass the model or model.named_parameters()"
            )
        if isinstance(given.get(key), Mapping):
            check_patterns(key, given[key], names)
    if all(name in routes for name in names):
        for key, values in layouts_of_routes([routes[name] for name in names]).items():
            # A number for the whole optimizer goes before what is known of the model, a mapping over it.
            if key not in given and (isinstance(defaults[key], Mapping) or defaults[key] == getattr(Layout, key)):
                given = {**given, key: values}
                group[key] = values
    for key in settings.PER_PARAMETER:
        if not choice or key in given:
            _per_parameter(key, given, group, defaults, names)
    batch_dims = settings.by_name("batch_dims", group["batch_dims"], names)
    rest, reasons = [], {}
    for name, parameter, count in zip(names, parameters, batch_dims if not choice else [0] * len(names)):
        use_adamw, reasons[name] = _route(name, parameter, count, choice, routes, named)
        rest.append(use_adamw)
    columns = {key: _rates(key, given, group, names, rest) for key in settings.RATES}
    cuts: dict[tuple[Any, ...], list[int]] = {}
    for i, use_adamw in enumerate(rest):
        row = [column[i] for column in columns.values()]
        cut = (use_adamw, *(value if isinstance(value, float) else id(value) for value in row))
        cuts.setdefault(cut, []).append(i)
    for (use_adamw, *_), chosen in sorted(cuts.items(), key=lambda cut: cut[0][0]):
        own = [names[i] for i in chosen]
        one = {**group, "params": [entries[i] for i in chosen], "use_adamw": use_adamw}
        one |= {key: columns[key][chosen[0]] for key in settings.RATES}
        one |= {f"adamw_{key}": None for key in settings.RATES}
        if use_adamw:
            one |= dict.fromkeys(settings.PER_PARAMETER)
        for key in settings.PER_PARAMETER if not use_adamw else ():
            one[key] = _shared(_column(key, one[key], chosen, own, landscape, skipped, default_alpha))
        settings.check({**one, "params": [parameters[i] for i in chosen]}, own)
        one |= {key: float(one[key]) for key in settings.NUMBERS if not isinstance(one[key], Tensor)}
        yield one, {name: reasons[name] for name in own}


def _route(
    name: str, parameter: Tensor, batch_dims: int, choice: bool | None, routes: Mapping[str, Route], named: bool
) -> tuple[bool, str]:
    """Whether AdamW takes a parameter, and why: as the group says, as the model's module says, by name and shape."""
    route = routes.get(name)
    if route is not None and choice in (None, route.use_adamw):
        return route.use_adamw, route.reason
    if choice is not None:
        return choice, f"use_adamw={choice}"
    if not settings.is_matrix(parameter, batch_dims):
        return True, f"{parameter.dim()} dimensions"
    if named and any(TABLE_NAME.search(alias) for alias in aliases(name)):
        return True, "embedding or head, by its name"
    return False, f"{parameter.dim()} dimensions"


def _rates(
    key: str, given: Mapping[str, Any], group: Mapping[str, Any], names: list[str], rest: Sequence[bool]
) -> list[Any]:
    """Learning rates or weight decays, one per parameter. Of AdamW's: what the group says of it (``adamw_lr``); where
    AdamW has the group to itself, the group's own ``lr``; else the optimizer's. A mapping of ``adamw_lr`` leaves ``lr``
    to the names that it does not fit."""
    for source in (key, f"adamw_{key}"):
        if settings.is_list(source, group[source]):
            raise TypeError(f"{source} of {names[0]!r} must be a number or a mapping from names, not a list")
    matching = settings.by_name(key, group[key], names)
    own = group[f"adamw_{key}"]
    if own is not None and (f"adamw_{key}" in given or not (all(rest) and key in given)):
        own = settings.by_name(f"adamw_{key}", own, names, matching)
    else:
        own = matching
    values = [theirs if is_rest else ours for is_rest, theirs, ours in zip(rest, own, matching)]
    return [v if isinstance(v, Tensor) else settings.number(v, f"{key} of {n!r}") for v, n in zip(values, names)]


def _column(
    key: str,
    value: Any,
    chosen: Sequence[int],
    names: list[str],
    landscape: Mapping[str, Any] | None,
    skipped: Mapping[str, str],
    default_alpha: float | None,
) -> list[Any]:
    """The values of a setting for the chosen parameters, of these names."""
    if settings.is_list(key, value):
        values = [value[i] for i in chosen]
    elif key == "alpha" and isinstance(value, str):
        if value != "landscape" or landscape is None:
            raise ValueError(
                f"alpha of {names[0]!r}: {value!r} is neither a number nor 'landscape' where there is one "
                "(copies of an optimizer have none)"
            )
        values = list(alphas_of(landscape, names, default_alpha, skipped))
    else:
        values = settings.by_name(key, value, names)
    if key in ("alpha", "damping"):
        values = [settings.number(v, f"{key} of {name!r}") for v, name in zip(values, names)]
    return values


def check_names(
    groups: Sequence[Mapping[str, Any]],
    defaults: Mapping[str, Any],
    model: nn.Module | None,
    landscape: Mapping[str, Any] | None,
) -> str:
    """What to warn of where parameters have no names, "" if nothing.

    Raises:
        ValueError: a pattern of the optimizer's own settings fits nothing, or no layer of a landscape was used.
    """
    names = [name for i, group in enumerate(groups) for name in settings.names_of(group, i)]
    known = names
    if model is not None:
        # The second name of a tied matrix would pass here and then not be found.
        matrices = {id(p) for group in groups if not group["use_adamw"] for p in group["params"]}
        every = model.named_parameters(remove_duplicate=False)
        known = names + [name for name, p in every if id(p) not in matrices]
    for key in (*settings.PER_PARAMETER, *RATES):
        if isinstance(defaults[key], Mapping):
            check_patterns(key, defaults[key], known)
    if landscape and model is None and all(row_of(landscape, name) is None for name in names):
        raise ValueError(
            f"the landscape has no layer of these parameters: it has {', '.join(list(landscape)[:4])}, …, "
            f"they are {', '.join(names[:4])}, …"
        )
    kinds = {group["use_adamw"] for group in groups if "param_names" not in group}
    if model is not None or defaults["use_adamw"] is not None or kinds != {False, True}:
        return ""
    return (
        "SpectralNewton was given parameters without names: it cannot tell embeddings and heads from matrices and "
        "takes all of two dimensions or more for matrices. Pass the model (in the Hugging Face Trainer: "
        'optimizer_cls_and_kwargs=(SpectralNewton, {"model": model, …})), or model.named_parameters(); '
        "optimizer.routing() shows what goes where"
    )
