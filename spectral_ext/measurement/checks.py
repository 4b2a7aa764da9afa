"""Questions asked before a measurement: is the loss a mean over samples, and the same twice?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from spectral_ext.measurement.batches import Batch, LossFunction, batch_loss, batch_size

TOLERANCE = 1e-3


def check_deterministic(model: nn.Module, loss_fn: LossFunction, batch: Batch) -> None:
    """The loss of one batch, twice.

    Raises:
        ValueError: the two differ.
    """
    with torch.no_grad():
        first, second = (batch_loss(model, loss_fn, batch).item() for _ in range(2))
    if math.isfinite(first) and abs(first - second) > 1e-5 * abs(first) + 1e-12:
        raise ValueError(
            f"the loss of the same batch is {first:.6g} and then {second:.6g}: the model is random (dropout in "
            f"a train-mode "
            "forward, perhaps), so that curvature is not defined; call model.eval() or fix its seed"
        )


def check_reduction(model: nn.Module, loss_fn: LossFunction, batch: Batch) -> str:
    """Whether the loss is a mean over samples: the loss of a few samples against those of its two halves, in eval mode.

    Returns:
        ``"mean"``, ``"unknown"`` (neither mean nor sum: masked tokens, contrastive terms) or ``"unchecked"`` (one
        sample, or a batch that cannot be cut). Call it under ``preserved(model)``: it changes the mode.

    Raises:
        ValueError: it is a sum, or ``loss_fn.reduction`` says so.
    """
    declared = getattr(loss_fn, "reduction", None)
    if declared in ("sum", "none"):
        raise ValueError(
            f"loss_fn has reduction={declared!r}: use reduction='mean', the mean over the samples of a batch"
        )
    samples = batch_size(batch)
    half = min(samples // 2, 8)
    if half == 0:
        return "unchecked"
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            pieces = [_cut(batch, samples, part) for part in (slice(2 * half), slice(half), slice(half, 2 * half))]
            whole, left, right = (batch_loss(model, loss_fn, piece).item() for piece in pieces)
    except Exception:  # a model may refuse a cut batch for any reason of its own; then nothing is known
        return "unchecked"
    finally:
        for module, mode in modes:
            module.training = mode
    scale = TOLERANCE * max(abs(left), abs(right), abs(whole))
    if abs(whole - (left + right) / 2) <= scale:
        return "mean"
    if abs(whole - (left + right)) <= scale:
        raise ValueError(
            "loss_fn is a sum over samples (the loss of a batch is the sum of its halves'): divide by the batch "
            "size, or use "
            "reduction='mean'"
        )
    return "unknown"


def _cut(tree: Any, samples: int, part: slice) -> Any:
    """The tree with every tensor that has the samples in dimension 0 cut."""
    if isinstance(tree, Tensor):
        return tree[part] if tree.dim() and tree.shape[0] == samples else tree
    if isinstance(tree, Mapping):
        return {key: _cut(value, samples, part) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        items = [_cut(item, samples, part) for item in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    return tree


def batch_norm_mode(model: nn.Module) -> str:
    """``train``, ``eval``, ``mixed`` or ``none``: under train-mode batch norm h is the curvature of another
    function.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    modes = {m.training or not m.track_running_stats for m in norms}
    return "none" if not norms else "mixed" if len(modes) == 2 else "train" if modes == {True} else "eval"
