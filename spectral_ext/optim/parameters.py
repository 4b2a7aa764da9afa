"""Which parameters of a model are matrices for the spectral map and which are left to AdamW, by module type."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from spectral_ext.optim.layout import Split
from spectral_ext.optim.names import matches, names_in, near

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
KNOWN = (nn.Linear, nn.Bilinear, nn.MultiheadAttention, nn.RNNBase, *CONVOLUTIONS)
NOT_A_MAP = re.compile(r"embed|token|position|^pos|^wpe$|^wte$|bias|_log$")
"""Names of bare parameters that are tables of vectors, biases or rates (A_log), not linear maps."""


def _patterns(value: str | Iterable[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _is_linear_map(module: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is a matrix by its shape, its module's type and, in other modules, its name."""
    if parameter.dim() < 2 or "Norm" in type(module).__name__:
        return False
    if isinstance(module, CONVOLUTIONS):
        return module.groups == 1 or not (parameter.shape[1] == 1 or parameter.shape[0] == module.groups)
    own = name.rpartition(".")[2]
    if isinstance(module, KNOWN):
        return "bias" not in own
    return sum(size > 1 for size in parameter.shape) > 1 and parameter.shape[0] > 1 and not NOT_A_MAP.search(own)


def _batch_dims(module: nn.Module, parameter: nn.Parameter) -> int:
    """1 for bare parameters (E, m, n), the weights of experts or heads; 0 for all others."""
    return int(parameter.dim() == 3 and not isinstance(module, KNOWN))


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
    ones of ``nn.MultiheadAttention``, weights of recurrent layers, and any other parameter of two or more dimensions,
    one matrix an index of the first where there are three (``batch_dims`` 1: experts (E, m, n)).
    AdamW: embeddings and what is tied to them, the module types of normalisation, one-dimensional parameters, bare
    parameters that stand for one vector (first dimension 1, or only one above 1) or for a table or a bias by their name
    (token, pos, embed, bias, _log), depthwise convolutions, and the output head: the last module with parameters, if it
    is a Linear and a matrix stands before it. Frozen parameters are left out.

    Settings of ``SpectralNewton`` may be added to each group. What is found here of ``split`` and ``batch_dims`` holds
    except for the parameters that a mapping given to the optimizer names.

    Args:
        model: any module.
        adamw: shell patterns of parameter or layer names that AdamW takes as well.
        matrices: patterns of names that are matrices whatever their module (two dimensions or more).
        head: False treats that last Linear like any other; for a part of a model, which has no head.

    Raises:
        KeyError: a pattern matches no parameter.
        ValueError: the model has no trainable parameter, or a lazy one without shape.
    """
    adamw, matrices = _patterns(adamw), _patterns(matrices)
    modules = dict(model.named_modules())
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    embedded = {id(p) for m in modules.values() if isinstance(m, EMBEDDINGS) for p in m.parameters(recurse=False)}
    groups: dict[bool, list[Any]] = {False: [], True: []}
    split: list[Split] = []
    batch_dims: list[int] = []
    last = [module for module in modules.values() if list(module.parameters(recurse=False))][-1:]
    output = id(last[0].weight) if head and last and isinstance(last[0], nn.Linear) else None
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if is_lazy(parameter):
            raise ValueError(f"{name!r} has no shape yet: run a batch through the model before you make the optimizer")
        module = modules[name.rpartition(".")[0]]
        rest = id(parameter) in embedded or not _is_linear_map(module, name, parameter)
        rest |= id(parameter) == output and bool(groups[False])
        rest |= any(matches(known, pattern) for pattern in adamw for known in names[id(parameter)])
        rest &= not any(matches(known, pattern) for pattern in matrices for known in names[id(parameter)])
        groups[rest].append((name, parameter))
        if not rest:
            split.append(_fused(module, name))
            batch_dims.append(_batch_dims(module, parameter))
    every = names_in(model)
    for pattern in (*adamw, *matrices):
        if not any(matches(name, pattern) for name in every):
            raise KeyError(f"no parameter matches {pattern!r}; near names: {near(pattern, every)}")
    if not (groups[False] or groups[True]):
        raise ValueError("the model has no parameter that requires a gradient")
    result: list[dict[str, Any]] = []
    if groups[False]:
        result.append({"params": groups[False], "use_adamw": False, "split": split, "batch_dims": batch_dims})
    if groups[True]:
        result.append({"params": groups[True], "use_adamw": True})
    return result
