"""The loss of a batch as a function of the model's tensors, with the model itself left as it is.

Tensors are put in the model's place for the time of one call (``torch.func.functional_call``). Weights that the loss
function reads from the model are replaced with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


class _Call(nn.Module):
    """A module that holds the model and runs ``call``, so that the replaced tensors are in place during the call."""

    def __init__(self, model: nn.Module, call: Callable[[], Any]) -> None:
        super().__init__()
        self.model = model
        self.call = call

    def forward(self) -> Any:
        return self.call()


def owned_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """``(name, tensor)`` for each parameter and buffer of each module; a module with two names is visited once.

    A parameter that two modules share is named twice.
    """
    for path, module in model.named_modules():
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, tensor in own:
            yield (f"{path}.{name}" if path else name), tensor


def call_with(model: nn.Module, replaced: dict[int, Tensor], call: Callable[[], Any]) -> Any:
    """``call()`` while each tensor of the model whose ``id`` is in ``replaced`` is replaced by the value there."""
    names = {f"model.{name}": replaced[id(tensor)] for name, tensor in owned_tensors(model) if id(tensor) in replaced}
    # tie_weights would replace a module with two names twice, and would then restore it wrongly.
    return torch.func.functional_call(_Call(model, call), names, (), tie_weights=False)


def in_float64(model: nn.Module) -> dict[int, Tensor]:
    """Float64 copies of the model's floating-point parameters and buffers, for :func:`call_with`."""
    copies: dict[int, Tensor] = {}
    for _, tensor in owned_tensors(model):
        if id(tensor) not in copies and tensor.is_floating_point():
            copy = tensor.detach().double()
            copy = copy.clone() if copy.dtype == tensor.dtype else copy
            copies[id(tensor)] = copy.requires_grad_(tensor.requires_grad)
    return copies


def batch_in_float64(batch: Any) -> Any:
    """The batch with its floating-point tensors in float64."""

    def convert(leaf: Any) -> Any:
        return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    return pytree.tree_map(convert, batch)
