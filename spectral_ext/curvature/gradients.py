"""First pass over the data: the mean loss and the mean gradient of each layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spectral_ext.layers import Layer
from spectral_ext.measurement.batches import Batch, LossFunction, batch_loss, batch_size


@dataclass
class Piece:
    """A batch, or some of its samples. The objective is Σ_pieces weight · loss / Σ_pieces weight, over all ranks."""

    batch: Batch
    weight: float
    """Its number of samples."""
    label: str


def pieces_of(batches: list[Batch]) -> list[Piece]:
    """One piece a batch."""
    pieces = [Piece(batch, float(batch_size(batch)), f"batch {i}") for i, batch in enumerate(batches)]
    for piece in pieces:
        if piece.weight == 0:
            raise ValueError(f"{piece.label} has no samples")
    return pieces


def summed_gradients(
    model: nn.Module, loss_fn: LossFunction, pieces: list[Piece], layers: Mapping[str, Layer]
) -> tuple[float, dict[str, Tensor | None]]:
    """Σ weight · loss and Σ weight · gradient over this rank's pieces; None where the loss does not depend on a layer.

    Raises:
        ValueError: a loss is not a finite scalar, or batch norm in train mode sees one
            value a channel.
    """
    loss = 0.0
    gradients: dict[str, Tensor | None] = dict.fromkeys(layers)
    weights = [layer.weight for layer in layers.values()]
    for piece in pieces:
        value = batch_loss(model, loss_fn, piece.batch)
        if not bool(value.isfinite()):
            raise ValueError(f"the loss on {piece.label} is {value.item()}: check the data and the weights")
        if not value.requires_grad:
            raise ValueError(
                f"the loss on {piece.label} has no gradient: the model or loss_fn runs under no_grad, or detaches"
            )
        loss += piece.weight * value.item()
        for name, g in zip(layers, torch.autograd.grad(value, weights, allow_unused=True), strict=True):
            if g is not None:
                held = gradients[name]
                gradients[name] = piece.weight * g if held is None else held.add_(g, alpha=piece.weight)
    return loss, gradients
