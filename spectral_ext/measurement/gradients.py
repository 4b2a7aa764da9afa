"""One pass over the data: the mean loss and the mean gradient of each layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spectral_ext.layers import Layer
from spectral_ext.measurement.batches import Batch, LossFunction, batch_loss
from spectral_ext.measurement.checks import check_loss


@dataclass
class Piece:
    """A batch, or some of its samples. The objective is Σ weight · loss / Σ weight over all pieces."""

    batch: Batch
    weight: float
    """Its count: the number of samples or tokens that its loss is a mean over."""
    label: str


@dataclass
class GradientPass:
    """What one pass over the data gives: means over all its samples."""

    loss: float
    samples: int
    """The sum of the weights of the pieces."""
    gradients: dict[str, Tensor | None]
    """Layer → the gradient of the mean loss in the layer's weight, in the weight's shape or flattened to (m, n), in the
    weight's dtype; None where the loss does not depend on the weight."""


def pieces_of(batches: list[Batch]) -> list[Piece]:
    """One piece per batch, weighted by its count."""
    return [Piece(batch, batch.count, f"batch {i}") for i, batch in enumerate(batches)]


def gradient_pass(
    model: nn.Module, loss_fn: LossFunction, pieces: list[Piece], layers: Mapping[str, Layer]
) -> GradientPass:
    """The mean loss and the mean gradients over this process's pieces, each by its weight.

    Raises:
        ValueError: a loss is not a finite scalar or has no gradient.
    """
    loss, samples = 0.0, sum(piece.weight for piece in pieces)
    means: dict[str, Tensor | None] = dict.fromkeys(layers)
    weights = [layer.weight for layer in layers.values()]
    for piece in pieces:
        share = piece.weight / samples
        value = batch_loss(model, loss_fn, piece.batch)
        check_loss(model, value, piece.batch, piece.label)
        loss += share * value.item()
        for name, g in zip(layers, torch.autograd.grad(value, weights, allow_unused=True), strict=True):
            if g is not None:
                held = means[name]
                means[name] = share * g if held is None else held.add_(g, alpha=share)
    return GradientPass(loss, round(samples), means)
