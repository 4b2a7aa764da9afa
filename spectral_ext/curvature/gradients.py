"""First pass over the data: the mean loss and the mean gradient of each layer."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

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
        ValueError: a loss is not a finite scalar or differs from call to call, or batch norm in train mode sees one
            value a channel.
    """
    loss = 0.0
    gradients: dict[str, Tensor | None] = dict.fromkeys(layers)
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
            if piece is pieces[0]:
                refuse_randomness(model, loss_fn, piece, value.item())
            loss += piece.weight * value.item()
            for name, g in zip(layers, torch.autograd.grad(value, weights, allow_unused=True), strict=True):
                if g is not None:
                    held = gradients[name]
                    gradients[name] = piece.weight * g if held is None else held.add_(g, alpha=piece.weight)
    return loss, gradients


def refuse_randomness(model: nn.Module, loss_fn: LossFunction, piece: Piece, once: float) -> None:
    with torch.no_grad():
        again = batch_loss(model, loss_fn, piece.batch).item()
    if not math.isclose(once, again, rel_tol=1e-5):
        raise ValueError(
            f"the model is not deterministic: its loss on {piece.label} is {once:.9g} once and {again:.9g} again; "
            "turn off dropout, sampled noise and random augmentation inside the model"
        )


@contextlib.contextmanager
def batch_norm_needs_samples(model: nn.Module) -> Iterator[None]:
    """Batch norm in train mode over a single value a channel has no variance: name the layer and the remedy."""

    def check(name: str):
        def hook(module: nn.Module, args: tuple) -> None:
            x = args[0]
            if module.training and x.dim() > 1 and x.numel() == x.shape[1]:
                raise ValueError(
                    f"{name} normalises over one value a channel in train mode, so that its variance is 0: use a "
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
