"""Which parameters of a model are matrices for the spectral map and which are left to AdamW, by module type."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from spectral_ext.optim.heads import LAST, find_heads, is_conv1d_of_transformers
from spectral_ext.optim.layout import Split
from spectral_ext.optim.names import matches, names_in, near, plain_name
from spectral_ext.optim.settings import LAYOUT

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
KNOWN = (nn.Linear, nn.Bilinear, nn.MultiheadAttention, nn.RNNBase, *CONVOLUTIONS)
NOT_A_MAP = re.compile(r"embed|token|position|^pos|^wpe$|^wte$|bias|_log$")
"""Names of bare parameters that are tables of vectors, biases or rates (A_log), not linear maps."""


@dataclass(frozen=True)
class Route:
    """Where a parameter goes, and why; how it is read as matrices."""

    use_adamw: bool
    reason: str
    split: Split = 1
    split_dim: int = 0
    batch_dims: int = 0


def _patterns(value: str | Iterable[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _why_no_map(module: nn.Module, own: str, parameter: nn.Parameter) -> str:
    """Why a parameter is no linear map, by its shape, its module's type and, in other modules, its name; "" if it is.
    ``own``: its name in the module."""
    kind = type(module).__name__
    if parameter.dim() < 2 or "Norm" in kind:
        return f"{own} of {kind}"
    if "Embedding" in kind and own == "weight" and not isinstance(module, KNOWN):
        return "embedding"
    known = isinstance(module, KNOWN)
    if (sum(size > 1 for size in parameter.shape) < 2 or parameter.shape[0] == 1) and not (known and own == "weight"):
        return "one vector"
    if isinstance(module, CONVOLUTIONS):
        depthwise = module.groups > 1 and (parameter.shape[1] == 1 or parameter.shape[0] == module.groups)
        return "depthwise convolution" if depthwise else ""
    named = ("bias" in own) if known else NOT_A_MAP.search(own)
    return "a table or bias, by its name" if named else ""


def _map(module: nn.Module, layer: str, own: str, parameter: nn.Parameter) -> Route:
    """The layout of a linear map: fused matrices are cut, (E, m, n) outside of known modules are E matrices."""
    kind = type(module).__name__
    if isinstance(module, CONVOLUTIONS):
        return Route(False, kind + (f", {module.groups} groups" if module.groups > 1 else ""), module.groups)
    if is_conv1d_of_transformers(module):
        parts, rest = divmod(parameter.shape[1], parameter.shape[0])
        if layer == "c_attn" and parts > 1 and not rest:
            return Route(False, f"{kind}, {parts} fused by columns", parts, 1)
        return Route(False, kind)
    if isinstance(module, nn.MultiheadAttention) and own == "in_proj_weight":
        return Route(False, f"{kind}, 3 fused", 3)
    if isinstance(module, nn.RNNBase) and "weight_hr" not in own:
        gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
        return Route(False, f"{kind}, {gates} gates", gates)
    if parameter.dim() == 3 and not isinstance(module, KNOWN):
        return Route(False, f"{parameter.shape[0]} matrices of {kind}", batch_dims=1)
    return Route(False, kind)


def routes_of(
    model: nn.Module,
    *,
    adamw: str | Iterable[str] = (),
    matrices: str | Iterable[str] = (),
    heads: str | Iterable[str] | None = None,
) -> dict[str, Route]:
    """The route of every parameter by name, frozen ones included; for the arguments see ``parameter_groups``.

    Warns:
        UserWarning: which layer is the head is a guess.
    """
    adamw, matrices = _patterns(adamw), _patterns(matrices)
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise ValueError(f"{name!r} has no shape yet: run a batch through the model before you make the optimizer")
    output, guess = find_heads(model, None if heads is None else _patterns(heads))
    modules = dict(model.named_modules(remove_duplicate=False))
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    every = names_in(model)
    for pattern in (*adamw, *matrices):
        if not any(matches(name, pattern) for name in every):
            raise KeyError(f"no parameter matches {pattern!r}; near names: {near(pattern, every)}")
    routes: dict[str, Route] = {}
    for name, parameter in model.named_parameters():
        owner, _, own = plain_name(name).rpartition(".")
        known = names[id(parameter)]
        owners = [plain_name(n).rpartition(".")[0] for n in known]
        why = _why_no_map(modules[owner], own, parameter)
        if any(matches(n, pattern) for pattern in matrices for n in known):
            why = ""
        elif any(matches(n, pattern) for pattern in adamw for n in known):
            why = "given by adamw="
        elif any(isinstance(modules[o], EMBEDDINGS) for o in owners):
            why = "embedding" if len(known) == 1 else "embedding, tied"
        elif not why:
            head = next((output[o] for o in owners if o in output), "")
            alone = head == LAST and all(route.use_adamw for route in routes.values())
            why = f"output head, {head}" if head and not alone else ""
        layer = owner.rpartition(".")[2]
        routes[name] = Route(True, why) if why else _map(modules[owner], layer, own, parameter)
    if guess and not all(route.use_adamw for route in routes.values()):
        warnings.warn(guess, UserWarning, stacklevel=4)
    return routes


def parameter_groups(
    model: nn.Module,
    *,
    adamw: str | Iterable[str] = (),
    matrices: str | Iterable[str] = (),
    heads: str | Iterable[str] | None = None,
) -> list[dict[str, Any]]:
    """Two param groups, of named parameters: the matrices (``use_adamw=False``) and the rest (``use_adamw=True``).

    Matrices: weights of linear layers and convolutions (one matrix per group of a grouped convolution), the three fused
    ones of ``nn.MultiheadAttention`` and of transformers' ``Conv1D`` named c_attn (by columns), weights of recurrent
    layers, and any other parameter of two or more dimensions, one matrix per index of the first where there are three
    (``batch_dims`` 1: experts (E, m, n)).
    AdamW: embeddings and what is tied to them, the module types of normalisation, one-dimensional parameters, bare
    parameters that stand for one vector (first dimension 1, or only one above 1) or for a table or a bias by their name
    (token, pos, embed, bias, _log), depthwise convolutions, and the output heads. Frozen parameters are left out.

    Settings of ``SpectralNewton`` may be added to each group. What is found here of ``split``, ``split_dim`` and
    ``batch_dims`` holds except for the parameters that a mapping given to the optimizer names.

    Args:
        model: any module.
        adamw: shell patterns of parameter or layer names that AdamW takes as well.
        matrices: patterns of names that are matrices whatever their module (two dimensions or more).
        heads: patterns of the output heads; () for a part of a model, which has none. None looks for them: at
            transformers' ``get_output_embeddings``, at names (head, classifier, …), and at the last layer, if it is
            linear and a matrix stands before it.

    Raises:
        KeyError: a pattern matches no parameter.
        ValueError: the model has no trainable parameter, or a lazy one without shape.

    Warns:
        UserWarning: which layer is the head is a guess.
    """
    routes = routes_of(model, adamw=adamw, matrices=matrices, heads=heads)
    groups = groups_of(model, routes)
    for group in groups:
        if not group["use_adamw"]:
            group |= layouts_of_routes([routes[name] for name, _ in group["params"]])
    return groups


def groups_of(model: nn.Module, routes: Mapping[str, Route]) -> list[dict[str, Any]]:
    """The groups of ``parameter_groups`` from the routes, without the settings of the layout."""
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError("the model has no parameter that requires a gradient")
    result: list[dict[str, Any]] = []
    for use_adamw in (False, True):
        own = [(name, parameter) for name, parameter in trainable if routes[name].use_adamw == use_adamw]
        if own:
            result.append({"params": own, "use_adamw": use_adamw})
    return result


def layouts_of_routes(routes: Iterable[Route]) -> dict[str, list[Any]]:
    """The settings of the layout, a list each."""
    routes = list(routes)
    return {key: [getattr(route, key) for route in routes] for key in LAYOUT}
