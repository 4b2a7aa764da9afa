"""Which parameters of a model are matrices for the spectral map and which are left to AdamW, by module type."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from typing import Any

from torch import nn

from spectral_ext.optim.matrices import Split

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


WRAPPERS = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}


def known_as(parameter_name: str) -> tuple[str, ...]:
    """The names a parameter answers to: its own and its layer's, also without what compilation and wrappers put in.

    ``module._orig_mod.blocks.0.qkv.weight`` answers to ``blocks.0.qkv.weight`` and ``blocks.0.qkv`` as well.
    """
    parts = [part for part in parameter_name.split(".") if part not in WRAPPERS]
    unwrapped = ".".join(parts)
    names = [parameter_name, unwrapped]
    if parts[0] == "module":
        names.append(unwrapped.removeprefix("module."))
    return tuple(dict.fromkeys([*names, *(name.rpartition(".")[0] for name in names)]))


def matches(name: str, pattern: str) -> bool:
    """Whether a shell pattern fits a parameter's name or the name of its layer."""
    return any(fnmatch.fnmatchcase(known, pattern) for known in known_as(name))


def _patterns(value: str | Iterable[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def parameter_groups(
    model: nn.Module,
    *,
    adamw: str | Iterable[str] = (),
    matrices: str | Iterable[str] = (),
    head: bool = True,
) -> list[dict[str, Any]]:
    """Two param groups, of named parameters: the matrices (``use_adamw=False``) and the rest (``use_adamw=True``).

    Matrices: weights of linear layers and convolutions (one matrix a group of a grouped convolution), the three fused
    ones of ``nn.MultiheadAttention``, weights of recurrent layers, and any other parameter of two or more dimensions.
    AdamW: embeddings and what is tied to them, the module types of normalisation, one-dimensional parameters, depthwise
    convolutions, and the output head: the last module with parameters, if it is a Linear and a matrix stands before it.
    Frozen parameters are left out.

    Args:
        model: any module.
        adamw: shell patterns of parameter or layer names that AdamW takes as well.
        matrices: patterns of names that are matrices whatever their module (two dimensions or more).
        head: False treats that last Linear like any other.

    Raises:
        KeyError: a pattern matches no parameter.
        ValueError: the model has no trainable parameter.
    """
    adamw, matrices = _patterns(adamw), _patterns(matrices)
    modules = dict(model.named_modules())
    names = {id(p): name for name, p in model.named_parameters()}
    embedded = {id(p) for m in modules.values() if isinstance(m, EMBEDDINGS) for p in m.parameters(recurse=False)}
    groups: dict[bool, list[Any]] = {False: [], True: []}
    split: list[Split] = []
    last = [module for module in modules.values() if list(module.parameters(recurse=False))][-1:]
    output = id(last[0].weight) if head and last and isinstance(last[0], nn.Linear) else None
    for name, parameter in model.named_parameters():
        module = modules[name.rpartition(".")[0]]
        rest = parameter.dim() < 2 or id(parameter) in embedded or "Norm" in type(module).__name__
        parts = 1
        if isinstance(module, CONVOLUTIONS) and parameter.dim() > 2:
            parts = module.groups
            rest |= parts > 1 and (parameter.shape[1] == 1 or parameter.shape[0] == parts)
        elif isinstance(module, nn.MultiheadAttention) and name.endswith("in_proj_weight"):
            parts = 3
        elif isinstance(module, nn.RNNBase) and parameter.dim() == 2:
            parts = {"LSTM": 4, "GRU": 3}.get(module.mode, 1) if "weight_hr" not in name else 1
        forced = any(matches(name, pattern) for pattern in matrices)
        rest |= id(parameter) == output and bool(groups[False])
        rest = (rest or any(matches(name, pattern) for pattern in adamw)) and not forced
        if not parameter.requires_grad:
            continue
        groups[rest].append((name, parameter))
        if not rest:
            split.append(parts)
    for pattern in (*adamw, *matrices):
        if not any(matches(name, pattern) for name in names.values()):
            raise KeyError(f"no parameter matches {pattern!r}; there are {', '.join(list(names.values())[:8])}, …")
    if not (groups[False] or groups[True]):
        raise ValueError("the model has no parameter that requires a gradient")
    result: list[dict[str, Any]] = []
    if groups[False]:
        result.append({"params": groups[False], "use_adamw": False, "split": split})
    if groups[True]:
        result.append({"params": groups[True], "use_adamw": True})
    return result
