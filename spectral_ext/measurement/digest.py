"""Digests of nested structures: whether two runs, or two ranks, have the same model, data and options."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from spectral_ext.measurement.batches import Batch


def digest(tree: Any) -> str:
    """SHA-256 of types, shapes and bytes of the tensors in a nested structure, and of the repr of other values."""
    sha = hashlib.sha256()

    def feed(item: Any) -> None:
        if isinstance(item, Tensor):
            sha.update(f"{item.dtype}{tuple(item.shape)}".encode())
            sha.update(item.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(item, Batch):
            feed((item.args, item.kwargs, item.target, item.samples))
            if item.count != item.samples or item.mask is not None:
                feed((item.count, item.mask))
        elif isinstance(item, Mapping):
            for key, value in item.items():
                sha.update(f"{key}:".encode())
                feed(value)
        elif isinstance(item, (list, tuple)):
            sha.update(f"{len(item)}[".encode())
            for value in item:
                feed(value)
        else:
            sha.update(repr(item).encode())

    feed(tree)
    return sha.hexdigest()


def state_digest(model: nn.Module) -> str:
    """Of parameters, buffers (those too that are not saved) and training flags."""
    return digest(
        [
            dict(model.named_parameters()),
            dict(model.named_buffers()),
            [module.training for module in model.modules()],
        ]
    )
