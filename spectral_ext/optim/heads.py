"""The output heads of a model, which AdamW takes: as told, as the model says, or a guess that is said to be one."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import Tensor, nn

from spectral_ext.optim.names import matches, near, plain_name

HEAD_NAME = re.compile(r"((?!multi)\w+_)?heads?\d*|(\w+_)?classifier|(\w+_)?logits|fc_?out|output|out_layer|unembed\w*")
"""Names of modules, or of what holds them (a ModuleDict of heads), that say that they are heads."""
LAST = "the last layer"
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def is_conv1d_of_transformers(module: nn.Module) -> bool:
    """transformers' ``Conv1D``: a linear layer whose weight is stored as (in, out)."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def _sizes(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) of a linear layer or a convolution with a kernel of one; None for anything else."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() < 2:
        return None
    if is_conv1d_of_transformers(module):
        return weight.shape[0], weight.shape[1]
    if isinstance(module, nn.Linear) or (isinstance(module, CONVOLUTIONS) and set(module.kernel_size) == {1}):
        return weight.shape[1], weight.shape[0]
    return None


def find_heads(model: nn.Module, heads: Iterable[str] | None) -> tuple[dict[str, str], str]:
    """The output heads, name of the layer → how that is known, and what to warn of ("" where nothing is a guess).

    ``heads``: patterns of layer or parameter names; None looks, in this order, at ``get_output_embeddings`` of
    transformers, at names such as ``head`` and ``classifier``, and at the place: the last layer, if it is linear or a
    convolution with a kernel of one.

    Raises:
        KeyError: a pattern matches no layer.
    """
    modules = {name: module for name, module in model.named_modules() if _sizes(module)}
    if heads is not None:
        patterns, modules = list(heads), dict(model.named_modules())
        found = [name for name in modules if any(matches(f"{name}.weight", pattern) for pattern in patterns)]
        for pattern in patterns:
            if not any(matches(f"{name}.weight", pattern) for name in modules):
                raise KeyError(f"heads: no layer matches {pattern!r}; near names: {near(pattern, modules)}")
        return dict.fromkeys(found, "given by heads="), ""
    output = getattr(model, "get_output_embeddings", lambda: None)
    try:
        said = output()
    except (NotImplementedError, AttributeError):
        said = None
    told = [name for name, module in modules.items() if module is said]
    if told:
        return dict.fromkeys(told, "get_output_embeddings()"), ""
    owners = [plain_name(name).rpartition(".")[0] for name, _ in model.named_parameters()]
    named = _named_heads(model, list(modules))
    ask = "pass heads= (names or patterns, () for none) to decide; optimizer.routing() shows what goes where"
    if named:
        certain = len(named) == 1 and owners[-1] == named[0]
        listed = ", ".join(map(repr, named[:8]))
        guess = "" if certain else f"SpectralNewton takes {listed} for the output heads, by name: {ask}"
        return dict.fromkeys(named, "its name"), guess
    last = owners[-1] if owners else ""
    sizes = {name: size for name, module in modules.items() if (size := _sizes(module))}
    consumed = {size[0] for size in sizes.values()}
    open_ends = [name for name, size in sizes.items() if name != last and size[1] not in consumed]
    if last not in modules:
        guess = f"SpectralNewton finds no output head, as the last layer, {last!r}, is not linear: {ask}"
        return {}, guess if open_ends and len(sizes) > 1 else ""
    beside = [name for name in open_ends if sizes[name][0] == sizes[last][0]]
    guess = ""
    if isinstance(modules[last], CONVOLUTIONS) or beside or (sizes[last][1] in consumed and open_ends):
        guess = f"SpectralNewton takes the last layer, {last!r}, for the output head: {ask}"
    return {last: LAST}, guess


def _named_heads(model: nn.Module, layers: Iterable[str]) -> list[str]:
    """The layers whose names, or whose containers' names, say that they are heads, outside of numbered blocks. Of a
    head of several layers the last one counts, of a ModuleDict or ModuleList of heads the last one of each entry."""
    found: dict[str, str] = {}
    for name in layers:
        parts = name.split(".")
        for end, part in enumerate(parts, 1):
            if part.isdigit():
                break
            if HEAD_NAME.fullmatch(part):
                several = isinstance(model.get_submodule(".".join(parts[:end])), (nn.ModuleDict, nn.ModuleList))
                found[".".join(parts[: end + several])] = name
                break
    return list(found.values())
