"""Matrices whose singular directions are measured instead of the gradient's: an optimizer's momentum, or tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from spectral_ext.layers import Layer

MOMENTA = ("momentum_buffer", "exp_avg")
"""Entries of an optimizer's state that hold its momentum; the first one found is taken."""


def direction_matrices(source: Any, layers: Mapping[str, Layer]) -> dict[str, Tensor]:
    """Layer → matrix (m, n), for the layers that the source knows.

    Args:
        source: an optimizer (its momentum), or a mapping from a layer's or its weight's name (``"fc"``,
            ``"fc.weight"``) to a tensor of the weight's shape or (m, n), such as a state dict of gradients.

    Raises:
        TypeError: another kind of source, or an entry that is not a tensor.
        ValueError: the source knows none of the layers, or a tensor has another shape or holds NaN or Inf.
    """
    if isinstance(source, torch.optim.Optimizer):
        found = {name: _momentum(source.state.get(layer.weight, {})) for name, layer in layers.items()}
        given = {name: tensor for name, tensor in found.items() if tensor is not None}
        remedy = "take an optimizer of this model that has a momentum and has made a step"
    elif isinstance(source, Mapping):
        pairs = {name: source.get(name, source.get(f"{name}.weight")) for name in layers}
        given = {name: tensor for name, tensor in pairs.items() if tensor is not None}
        remedy = f"its keys must be names of layers or weights, such as {next(iter(layers))!r}"
    else:
        raise TypeError(
            f"directions must be an optimizer or a mapping from layer to tensor, not {type(source).__name__}"
        )
    if not given:
        raise ValueError(f"directions holds nothing for any of the {len(layers)} measured layers: {remedy}")
    return {name: _matrix(name, tensor, layers[name]) for name, tensor in given.items()}


def is_matrix(tensor: Tensor, layer: Layer) -> bool:
    """Whether the tensor has the shape of the layer's weight or of its matrix (m, n), not of K directions."""
    return tuple(tensor.shape) in (layer.matrix_shape, tuple(layer.weight.shape))


def _momentum(state: Mapping[str, Any]) -> Tensor | None:
    return next((state[key] for key in MOMENTA if isinstance(state.get(key), Tensor)), None)


def _matrix(name: str, tensor: Any, layer: Layer) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"directions[{name!r}] must be a tensor, not {type(tensor).__name__}")
    if not is_matrix(tensor, layer):
        raise ValueError(
            f"directions[{name!r}] has shape {tuple(tensor.shape)}, and the weight {tuple(layer.weight.shape)}: they "
            "belong to another model"
        )
    matrix = tensor.detach().to(layer.weight)
    if matrix.shape == layer.weight.shape:
        matrix = layer.matrix(matrix)
    if not bool(matrix.isfinite().all()):
        raise ValueError(f"directions[{name!r}] holds NaN or Inf")
    return matrix
