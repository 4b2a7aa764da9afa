"""How model, loss and batch fit together.

A *batch* is a pair ``(inputs, target)`` or a mapping:

* ``(inputs, target)``: ``output = model(inputs)`` (``model(*inputs)`` if ``inputs`` is a tuple), ``loss =
  loss_fn(output, target)``;
* a mapping (Hugging Face style): ``output = model(**batch)``, ``loss = loss_fn(output, batch)``, for example
  ``lambda output, batch: output.loss``.

``loss_fn`` must be a *mean* over the samples of the batch (dimension 0); the analysis rescales per-sample errors by B.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Batch = Any
LossFunction = Callable[..., Tensor]


def first_tensor(tree: Any) -> Tensor | None:
    """The first tensor of a nested structure, depth first, or None."""
    if isinstance(tree, Tensor):
        return tree
    if isinstance(tree, Mapping):
        tree = list(tree.values())
    if isinstance(tree, (list, tuple)):
        for item in tree:
            found = first_tensor(item)
            if found is not None:
                return found
    return None


def split_batch(batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """``(args, kwargs, target)`` of a batch: the model is called as ``model(*args, **kwargs)``."""
    if isinstance(batch, Mapping):
        return (), dict(batch), batch
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        inputs, target = batch
        return (tuple(inputs) if isinstance(inputs, tuple) else (inputs,)), {}, target
    raise TypeError(
        f"a batch must be a pair (inputs, target) or a mapping of keyword arguments, not {type(batch).__name__}"
        + (f" of length {len(batch)}" if isinstance(batch, (tuple, list)) else "")
    )


def batch_size(batch: Batch) -> int:
    """Number of samples: the first dimension of the first tensor of the inputs."""
    args, kwargs, _ = split_batch(batch)
    tensor = first_tensor(args) if args else first_tensor(kwargs)
    if tensor is None or tensor.dim() == 0:
        raise ValueError("cannot tell the batch size: the inputs of the batch hold no tensor with a batch dimension")
    return tensor.shape[0]


def batch_loss(model: nn.Module, loss_fn: LossFunction, batch: Batch) -> Tensor:
    """The scalar loss on a batch.

    Raises:
        TypeError: ``loss_fn`` is not callable, or the loss is not a tensor.
        ValueError: the loss is not a scalar, or declared to be a sum over samples.
    """
    if not callable(loss_fn):
        raise TypeError(f"loss_fn must be callable as loss_fn(output, target), not {type(loss_fn).__name__}")
    if getattr(loss_fn, "reduction", None) == "sum":
        raise ValueError("loss_fn has reduction='sum': use reduction='mean', the mean over the samples of a batch")
    args, kwargs, target = split_batch(batch)
    loss = loss_fn(model(*args, **kwargs), target)
    if not isinstance(loss, Tensor):
        raise TypeError(f"loss_fn returned {type(loss).__name__}, not a tensor")
    if loss.numel() != 1:
        raise ValueError(
            f"loss_fn returned shape {tuple(loss.shape)}, not a scalar: use reduction='mean' (a mean over the batch)"
        )
    return loss.reshape(())


def as_batches(batches: Iterable[Batch]) -> list[Batch]:
    """The batches as a list, so that they can be read twice.

    Raises:
        ValueError: there is no batch (an exhausted iterator, perhaps).
    """
    if isinstance(batches, (Tensor, Mapping)):
        raise TypeError("batches must be an iterable of batches; for a single batch pass [batch]")
    found = list(batches)
    if not found:
        raise ValueError("batches is empty: pass at least one batch, and a list rather than an iterator already used")
    if len(found) == 2 and all(isinstance(item, Tensor) for item in found):
        raise TypeError("batches must be an iterable of batches, and this looks like one pair: pass [(inputs, target)]")
    return found


def to_device(tree: Any, device: torch.device) -> Any:
    """A nested structure with its tensors moved to ``device``."""
    if isinstance(tree, Tensor):
        return tree.to(device)
    if isinstance(tree, Mapping):
        return {key: to_device(value, device) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        items = [to_device(item, device) for item in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    return tree
