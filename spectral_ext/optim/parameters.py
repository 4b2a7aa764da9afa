"""Which parameters of a model are matrices for the spectral map and which are left to AdamW, by module type."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from typing import Any

from torch import nn

from spectral_ext.optim.matrices import Split

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
KNOWN = (nn.Linear, nn.Bilinear, nn.MultiheadAttention, nn.RNNBase, *CONVOLUTIONS)
TABLE = re.compile(r"embed|token|position|^pos|^wpe$|^wte$")
"""Names of bare parameters that are tables of vectors, not linear maps."""


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


def _is_linear_map(module: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is a matrix by its shape, its module's type and, in other modules, its name."""
    if parameter.dim() < 2 or "Norm" in type(module).__name__:
        return False
    if isinstance(module, CONVOLUTIONS):
        return module.groups == 1 or not (parameter.shape[1] == 1 or parameter.shape[0] == module.groups)
    return isinstance(module, KNOWN) or (parameter.shape[0] > 1 and not TABLE.search(name.rpartition(".")[2]))


def _fused(module: nn.Module, name: str) -> int:
    """How many matrices are stacked in the rows of a parameter."""
    if isinstance(module, CONVOLUTIONS):
        return module.groups
    if isinstance(module, nn.MultiheadAttention) and name.endswith("in_proj_weight"):
        return 3
    if isinstance(module, nn.RNNBase) and "weight_hr" not in name:
        return {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
    return 1


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
    AdamW: embeddings and what is tied to them, the module types of normalisation, one-dimensional parameters, bare
    parameters that stand for one vector (first dimension 1) or a table by their name (token, pos, embed), depthwise
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
        if not parameter.requires_grad:
            continue
        module = modules[name.rpartition(".")[0]]
        rest = id(parameter) in embedded or not _is_linear_map(module, name, parameter)
        rest |= id(parameter) == output and bool(groups[False])
        rest |= any(matches(name, pattern) for pattern in adamw)
        rest &= not any(matches(name, pattern) for pattern in matrices)
        groups[rest].append((name, parameter))
        if not rest:
            split.append(_fused(module, name))
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
