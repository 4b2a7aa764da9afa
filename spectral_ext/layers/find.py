"""Which layers of a model are measured, which are not, and why."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

import torch
from torch import nn

from spectral_ext.layers.kinds import Layer, layer_of

NOT_ASKED = "not asked for"


def find_layers(
    model: nn.Module, layers: str | Iterable[str] | None = None, *, grouped: bool = False, shared: bool = False
) -> tuple[dict[str, Layer], dict[str, str]]:
    """The measurable layers of a model by name, and the other parameters' owners with the reason why not.

    Args:
        model: any module. No weight is computed: a parametrized module is known by its parameters.
        layers: names or shell patterns (``"blocks.*.attn"``) to choose from; None takes all.
        grouped: choose grouped convolutions too.
        shared: choose layers too whose weight other modules share.

    Returns:
        ``(chosen, skipped)``: ``skipped`` has an entry for every module that owns a parameter and is not in
        ``chosen``, by the module's name, and for every matrix beside the weight of a chosen module, by the
        parameter's name; its value is the reason.

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
            owners.setdefault(id(parameter), []).append(layer_name(name))
    for path, module in model.named_modules():
        name = layer_name(path)
        own = dict(module.named_parameters(recurse=False))
        if not own and not _computed(module):
            continue
        if patterns is not None and not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            skipped[name] = NOT_ASKED
            continue
        layer = layer_of(name, module)
        reason = _why_not(module, own, owners, layer, grouped=grouped, shared=shared)
        if reason is not None or layer is None:
            skipped[name] = reason or _no_matrix(module)
            continue
        chosen[name] = layer
        for other, parameter in own.items():
            if other not in ("weight", "bias") and parameter.dim() > 1:
                skipped[f"{name}.{other}" if name else other] = (
                    f"{type(module).__name__} holds it beside the weight that is measured: move it into a module of "
                    "its own to measure it"
                )
    for pattern in patterns or ():
        if not any(fnmatch.fnmatchcase(name, pattern) for name in (*chosen, *skipped)):
            known = ", ".join([*chosen, *skipped][:8])
            raise KeyError(f"layers: no module with parameters matches {pattern!r}; there are {known}, …")
    return chosen, skipped


WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module")
"""Names under which torch.compile and CheckpointWrapper hold the module that they wrap; layers are named without."""


def layer_name(path: str) -> str:
    """The name of the layer at a module's path."""
    return ".".join(part for part in path.split(".") if part not in WRAPPERS)


def _computed(module: nn.Module) -> bool:
    """Whether the module's weight is computed from other parameters."""
    return nn.utils.parametrize.is_parametrized(module, "weight")


def _no_matrix(module: nn.Module) -> str:
    if isinstance(module, torch.jit.ScriptModule):
        return "it is a TorchScript module: measure the Python module that it was made of"
    return f"{type(module).__name__} has no weight matrix that is measured"


def _why_not(
    module: nn.Module,
    own: dict[str, nn.Parameter],
    owners: dict[int, list[str]],
    layer: Layer | None,
    *,
    grouped: bool,
    shared: bool,
) -> str | None:
    if layer is None:
        return None
    weight = own.get("weight")
    if weight is None:
        return (
            "its weight is computed from other parameters: remove the parametrization "
            "(torch.nn.utils.parametrize.remove_parametrizations) or the weight or spectral norm in a copy of the model"
        )
    if not weight.requires_grad:
        return "its weight does not require a gradient"
    if weight.numel() == 0:
        return f"its weight has no entries, shape {tuple(weight.shape)}"
    if len(owners[id(weight)]) > 1 and not shared:
        here = next(iter(owners[id(weight)]))
        others = ", ".join(other or "(model)" for other in owners[id(weight)] if other != layer.name)
        return f"its weight is shared with {others or here}"
    if getattr(module, "padding_mode", "zeros") != "zeros":
        return f"padding_mode={module.padding_mode!r} is not measured"
    if layer.groups != 1 and not grouped:
        return f"grouped convolution (groups={layer.groups}): each group is a matrix of its own"
    return None


def why_no_layer(skipped: dict[str, str]) -> str:
    """What to say where no layer is chosen: the first reasons, without the modules that nobody asked for."""
    reasons = [f"{name or '(model)'}: {why}" for name, why in skipped.items() if why != NOT_ASKED]
    more = f"; and {len(reasons) - 5} more" if len(reasons) > 5 else ""
    return "no layer can be measured: " + ("; ".join(reasons[:5]) + more if reasons else "the model has no parameters")
