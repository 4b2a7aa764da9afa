"""Which layers of a model are measured, which are not, and why."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

from torch import nn

from spectral_ext.layers.kinds import MEASURABLE_TYPES, Layer

NOT_ASKED = "not asked for"


def find_layers(
    model: nn.Module, layers: str | Iterable[str] | None = None, *, grouped: bool = False, shared: bool = False
) -> tuple[dict[str, Layer], dict[str, str]]:
    """The measurable layers of a model by name, and the other parameters' owners with the reason why not.

    Args:
        model: any module.
        layers: names or shell patterns (``"blocks.*.attn"``) to choose from; None takes all.
        grouped: choose grouped convolutions too.
        shared: choose layers too whose weight other modules share.

    Returns:
        ``(chosen, skipped)``: ``skipped`` maps a module name to a reason, one entry for every module that owns a
        parameter and is not in ``chosen``.

    Raises:
        KeyError: a pattern matches no module that owns parameters.
        TypeError: ``model`` is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, not {type(model).__name__}")
    patterns = [layers] if isinstance(layers, str) else None if layers is None else list(layers)
    owners: dict[int, list[str]] = {}
    chosen: dict[str, Layer] = {}
    skipped: dict[str, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if not own:
            continue
        if patterns is not None and not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            skipped[name] = NOT_ASKED
        elif not isinstance(module, MEASURABLE_TYPES):
            skipped[name] = f"{type(module).__name__} has no weight matrix that is measured"
        elif not module.weight.requires_grad:
            skipped[name] = "its weight does not require a gradient"
        elif id(module.weight) not in owners:
            skipped[name] = "its weight is computed from other parameters (parametrization, weight norm): remove that"
        elif len(owners[id(module.weight)]) > 1 and not shared:
            others = ", ".join(other or "(model)" for other in owners[id(module.weight)] if other != name)
            skipped[name] = f"its weight is shared with {others}"
        elif getattr(module, "padding_mode", "zeros") != "zeros":
            skipped[name] = f"padding_mode={module.padding_mode!r} is not measured"
        elif getattr(module, "groups", 1) != 1 and not grouped:
            skipped[name] = f"grouped convolution (groups={module.groups}): each group is a matrix of its own"
        else:
            chosen[name] = Layer(name, module)
    for pattern in patterns or ():
        if not any(fnmatch.fnmatchcase(name, pattern) for name in (*chosen, *skipped)):
            known = ", ".join([*chosen, *skipped][:8])
            raise KeyError(f"layers: no module with parameters matches {pattern!r}; there are {known}, …")
    return chosen, skipped


def why_no_layer(skipped: dict[str, str]) -> str:
    """What to say where no layer is chosen: the first reasons, without the modules that nobody asked for."""
    reasons = [f"{name or '(model)'}: {why}" for name, why in skipped.items() if why != NOT_ASKED]
    more = f"; and {len(reasons) - 5} more" if len(reasons) > 5 else ""
    return "no layer can be measured: " + ("; ".join(reasons[:5]) + more if reasons else "the model has no parameters")
