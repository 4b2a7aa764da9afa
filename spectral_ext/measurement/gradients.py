"""One pass over the data: the mean loss and the mean gradient of each layer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from spectral_ext.layers import Layer
from spectral_ext.measurement.batches import Batch, LossFunction, batch_loss, batch_size


@dataclass
class Piece:
    """A batch, or some of its samples. The objective is Σ weight · loss / Σ weight over all pieces."""

    batch: Batch
    weight: float
    """Its number of samples."""
    label: str


@dataclass
class GradientPass:
    """What one pass over the data gives: means over all its samples."""

    loss: float
    samples: int
    gradients: dict[str, Tensor | None]
    """Layer → the gradient of the mean loss in the layer's weight, in the weight's shape or flattened to (m, n), in the
    weight's dtype; None where the loss does not depend on the weight."""


def pieces_of(batches: list[Batch]) -> list[Piece]:
    """One piece per batch, weighted by its samples.

    Raises:
        ValueError: a batch has no samples.
    """
    pieces = [Piece(batch, float(batch_size(batch)), f"batch {i}") for i, batch in enumerate(batches)]
    for piece in pieces:
        if piece.weight == 0:
            raise ValueError(f"{piece.label} has no samples: leave it out")
    return pieces


def gradient_pass(
    model: nn.Module, loss_fn: LossFunction, pieces: list[Piece], layers: Mapping[str, Layer]
) -> GradientPass:
    """The mean loss and the mean gradients over this process's pieces, each weighted by its samples.

    Raises:
        ValueError: a loss is not a finite scalar or has no gradient, or batch norm in train mode sees one value per
            channel.
    """
    loss, samples = 0.0, sum(piece.weight for piece in pieces)
    sums: dict[str, Tensor | None] = dict.fromkeys(layers)
    weights = [layer.weight for layer in layers.values()]
    with batch_norm_needs_samples(model):
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
                    held = sums[name]
                    sums[name] = piece.weight * g if held is None else held.add_(g, alpha=piece.weight)
    gradients = {name: None if total is None else total / samples for name, total in sums.items()}
    return GradientPass(loss / samples, round(samples), gradients)


@contextlib.contextmanager
def batch_norm_needs_samples(model: nn.Module) -> Iterator[None]:
    """Inside the block, batch norm in train mode over one value per channel raises an error that names the module."""

    def check(name: str):
        def hook(module: nn.Module, args: tuple) -> None:
            x = args[0]
            if module.training and x.dim() > 1 and x.numel() == x.shape[1]:
                raise ValueError(
                    f"{name} normalises over one value per channel in train mode, so that its variance is 0: use a "
                    "larger batch, or model.eval()"
                )

        return hook

    norms = {n: m for n, m in model.named_modules() if isinstance(m, _NormBase) and "Instance" not in type(m).__name__}
    handles = [module.register_forward_pre_hook(check(name)) for name, module in norms.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
