"""Which matrices of a model are measured, which are not, and why."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

import torch
from torch import nn

from spectral_ext.layers.kinds import AttentionLayer, AttentionPart, Layer, layer_of

NOT_ASKED = "not asked for"
WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module")
"""Names under which torch.compile and CheckpointWrapper hold the module that they wrap; layers are named without."""


def find_layers(
    model: nn.Module, layers: str | Iterable[str] | None = None, *, named: Iterable[str] = ()
) -> tuple[dict[str, Layer], dict[str, str]]:
    """The layers of a model by name, and what is left out with the reason.

    A layer is a parameter that a kind of :mod:`.kinds` claims. It is named by its module's path where the parameter is
    called ``weight``, and by its own path otherwise. Embeddings, what is tied to them, biases and gains with several
    dimensions, the q, k and v of ``in_proj_weight``, and the further names of a shared weight are measured only on
    request: by their exact name, or by a pattern that fits no other layer.

    Args:
        model: any module. No weight is computed: a parametrized module is known by its parameters.
        layers: names or shell patterns (``"blocks.*.attn"``) to choose from; None takes all but those on request.
        named: exact names that are chosen too.

    Returns:
        ``(chosen, skipped)``: ``skipped`` has the reason for every matrix that is not chosen, by its name, and for
        every module that owns parameters but no matrix.

    Raises:
        KeyError: a pattern matches no module or parameter.
        TypeError: ``model`` is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, not {type(model).__name__}")
    found, unusable = _survey(model)
    usual = [name for name, (_, request) in found.items() if not request]
    if layers is None:
        asked = dict.fromkeys(usual)
    else:
        asked = {}
        for pattern in [layers] if isinstance(layers, str) else list(layers):
            asked |= dict.fromkeys(_matching(pattern, found, usual, unusable))
    asked |= dict.fromkeys(name for name in named if name in found)
    chosen, skipped = {}, dict(unusable)
    for name, (layer, request) in found.items():
        if name in asked:
            chosen[name] = layer
        elif not isinstance(layer, AttentionPart):
            skipped[name] = f"{request}: name it in layers= to measure it" if request else NOT_ASKED
    if layers is not None:
        patterns = [layers] if isinstance(layers, str) else list(layers)
        for name in unusable:
            if not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
                skipped[name] = NOT_ASKED
    return chosen, skipped


def all_layers(model: nn.Module) -> list[str]:
    """The names of all matrices of a model that could be measured, also those on request, in order of definition."""
    return list(_survey(model)[0])


def _matching(
    pattern: str, found: dict[str, tuple[Layer, str]], usual: list[str], unusable: dict[str, str]
) -> list[str]:
    if pattern in found:
        return [pattern]
    fits = [name for name in usual if fnmatch.fnmatchcase(name, pattern)]
    fits = fits or [name for name in found if fnmatch.fnmatchcase(name, pattern)]
    if not fits and not any(fnmatch.fnmatchcase(name, pattern) for name in unusable):
        known = ", ".join([*usual, *unusable][:8])
        raise KeyError(f"layers: no module with parameters matches {pattern!r}; there are {known}, …")
    return fits


def _survey(model: nn.Module) -> tuple[dict[str, tuple[Layer, str]], dict[str, str]]:
    """Every layer with the reason why it is measured on request only, "" if it is measured always; and what cannot be
    measured at all, with the reason.
    """
    found: dict[str, tuple[Layer, str]] = {}
    unusable: dict[str, str] = {}
    owners: dict[int, list[Layer]] = {}
    for path, module in model.named_modules():
        base = layer_name(path)
        own = dict(module.named_parameters(recurse=False))
        matrices = 0
        for parameter_name, parameter in own.items():
            layer = layer_of(_name(base, parameter_name), module, parameter_name)
            if layer is None or isinstance(module, torch.jit.ScriptModule):
                if parameter.dim() > 1 and parameter_name != "weight":
                    unusable[_name(base, parameter_name)] = "one vector, by its shape"
                continue
            if reason := _why_not(layer):
                unusable[layer.name] = reason
            elif layer.on_request and "Norm" in type(module).__name__:
                continue
            else:
                owners.setdefault(id(parameter), []).append(layer)
                found[layer.name] = layer, ""
                if type(layer) is AttentionLayer and parameter_name == "in_proj_weight":
                    for index, letter in enumerate("qkv"):
                        part = AttentionPart(f"{layer.name}.{letter}", module, parameter_name, index)
                        found[part.name] = part, part.on_request
            matrices += 1
        if nn.utils.parametrize.is_parametrized(module, "weight") or {"weight_g", "weight_v"} <= own.keys():
            unusable[base] = (
                "its weight is computed from other parameters, which have rows of their own; for the row of the weight "
                "remove the parametrization in a copy of the model (torch.nn.utils.parametrize.remove_parametrizations)"
            )
        elif own and not matrices and base not in found:
            unusable[base] = _no_matrix(module)
    for same in owners.values():
        table = next((layer.on_request for layer in same if layer.on_request), "")
        for layer in same:
            others = ", ".join(other.name or "(model)" for other in same if other is not layer)
            if table:
                found[layer.name] = layer, table + (f" ({others})" if others else "")
            elif layer is not same[0]:
                found[layer.name] = layer, f"its weight is shared with {others}, whose row is that of {same[0].name!r}"
    return found, unusable


def _name(base: str, parameter: str) -> str:
    if parameter == "weight":
        return base
    return f"{base}.{parameter}" if base else parameter


def layer_name(path: str) -> str:
    """The name of the layer at a module's path."""
    return ".".join(part for part in path.split(".") if part not in WRAPPERS)


def _no_matrix(module: nn.Module) -> str:
    if isinstance(module, torch.jit.ScriptModule):
        return "it is a TorchScript module: measure the Python module that it was made of"
    return f"{type(module).__name__} has no weight matrix that is measured"


def _why_not(layer: Layer) -> str | None:
    if not layer.weight.requires_grad:
        return "its weight does not require a gradient"
    if layer.weight.numel() == 0:
        return f"its weight has no entries, shape {tuple(layer.weight.shape)}"
    return None


def why_no_layer(skipped: dict[str, str]) -> str:
    """What to say where no layer is chosen: the first reasons, without the modules that nobody asked for."""
    reasons = [f"{name or '(model)'}: {why}" for name, why in skipped.items() if why != NOT_ASKED]
    more = f"; and {len(reasons) - 5} more" if len(reasons) > 5 else ""
    return "no layer can be measured: " + ("; ".join(reasons[:5]) + more if reasons else "the model has no parameters")
