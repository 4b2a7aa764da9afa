"""How model, loss and batch fit together.

The caller gives *batches*, each of them

* a pair ``(inputs, target)``: ``output = model(inputs)``, ``loss = loss_fn(output, target)``. A tuple of inputs means
  several arguments, ``model(*inputs)``. A list, which is what a ``DataLoader`` makes of a tuple, means several
  arguments too where ``model.forward`` requires more than one, and one argument that is a list otherwise;
* a mapping or a dataclass (Hugging Face's ``BatchEncoding`` and ``ModelOutput`` included): ``output = model(**batch)``,
  ``loss = loss_fn(output, batch)``, for example ``lambda output, batch: output.loss``.

:func:`as_batches` brings them into one form, :class:`Batch`, on the model's device, and counts the samples.

``loss_fn`` must be a *mean* over the samples of the batch. The loss of all data is the mean of the batches' losses,
each weighted by its number of samples, and per-sample errors are gradients times that number.

One file: each part of a batch (arguments, samples, count, mask) is read from the same forms of input.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

LossFunction = Callable[..., Tensor]
BatchSize = int | Callable[[Any], int]
Count = Callable[[Any], Any]
Mask = str | Callable[[Any], Tensor]
TARGET_NAMES = ("labels", "label", "targets", "target", "y")
"""Entries of a mapping that are compared with the inputs as a target is."""


class NamedTensors(dict):
    """Keyword arguments whose items are attributes too: a loss may read ``batch["labels"]`` or ``batch.labels``."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


@dataclasses.dataclass
class Batch:
    """One batch in the form that all measurements take: the model is called as ``model(*args, **kwargs)``."""

    args: tuple[Any, ...]
    kwargs: NamedTensors
    target: Any
    """None where the batch was a mapping: then the loss takes ``kwargs``."""
    samples: int
    """How many samples it holds."""
    count: float = 0.0
    """What its loss is a mean over, and what it weighs among the batches; 0 takes ``samples``."""
    mask: Tensor | None = None
    """(B, S), bool: which rows (tokens) count in the Kronecker factors, as the caller gave it; None: not given."""

    def __post_init__(self) -> None:
        self.count = self.count or float(self.samples)

    def take(self, samples: list[int] | range) -> Batch:
        """Some of the samples: every tensor that has the samples in a dimension is indexed there.

        Samples are looked for in dimension 0, then in dimension 1 (sequence first), then as consecutive rows of
        dimension 0 (flattened tokens). Tensors without such a dimension, and lists of another length, stay whole.
        """
        index = torch.tensor(list(samples))
        first = first_tensor(self.args) if self.args else first_tensor(self.kwargs)
        sequence_first = first is not None and first.dim() > 1 and first.shape[0] != self.samples
        args, kwargs, target = (
            _take(tree, index, self.samples, sequence_first) for tree in (self.args, self.kwargs, self.target)
        )
        mask = None if self.mask is None else self.mask[index.to(self.mask.device)]
        return Batch(args, kwargs, target, len(index), self.count * len(index) / max(self.samples, 1), mask)


def _unflattened(parts: Iterable[Any], samples: int) -> Batch:
    args, kwargs, target = parts
    return Batch(args, kwargs, target, samples)


pytree.register_pytree_node(
    NamedTensors,
    lambda named: (list(named.values()), tuple(named)),
    lambda values, names: NamedTensors(zip(names, values, strict=True)),
    serialized_type_name="spectral_ext.measurement.batches.NamedTensors",
)
pytree.register_pytree_node(
    Batch,
    lambda batch: ([batch.args, batch.kwargs, batch.target], batch.samples),
    _unflattened,
    serialized_type_name="spectral_ext.measurement.batches.Batch",
)


def as_batches(
    batches: Iterable[Any],
    model: nn.Module | None = None,
    *,
    batch_size: BatchSize | None = None,
    count: Count | None = None,
    mask: Mask | None = None,
    device: torch.device | None = None,
) -> list[Batch]:
    """The batches as a list of :class:`Batch`, so that they can be read several times; see the head of this module.

    Args:
        batches: any iterable; it is read once.
        model: tells one argument from several, and whether the names of a mapping are arguments of ``model.forward``.
        batch_size: the number of samples of each batch, or a function that tells it of a batch as the caller gave it.
            None compares the inputs with the target, see :func:`count_samples`.
        count: what the loss of a batch is a mean over, as a function of the batch as the caller gave it: the number of
            labelled tokens for a token mean. The batches weigh by it. None: by their samples.
        mask: which rows (tokens) count in the Kronecker factors: a function of the batch as the caller gave it that
            returns a tensor (B, S), true or non-zero where a row counts, or the name of such an entry of a mapping.
            None: see :func:`spectral_ext.measurement.masks.row_mask`.
        device: where the tensors are moved to.

    Raises:
        TypeError: ``batches`` or a batch has another form; the message names the batch and the form.
        ValueError: there is no batch, a batch has no samples, or their number cannot be told.
    """
    if isinstance(batches, (Batch, Tensor, Mapping)) or dataclasses.is_dataclass(batches):
        raise TypeError("batches must be an iterable of batches; for a single batch pass [batch]")
    try:
        found = list(batches)
    except TypeError as error:
        raise TypeError(f"batches must be an iterable of batches, not {type(batches).__name__}: {error}") from error
    if not found:
        raise ValueError("batches is empty: pass at least one batch, and a list rather than an iterator already used")
    if len(found) == 2 and isinstance(found[1], Tensor):
        raise TypeError("batches must be an iterable of batches, and this looks like one pair: pass [(inputs, target)]")
    made = [_as_batch(batch, f"batch {i}", model, batch_size, device) for i, batch in enumerate(found)]
    for index, (batch, raw) in enumerate(zip(made, found, strict=True)):
        if isinstance(raw, Batch):
            continue
        if count is not None:
            batch.count = _given_count(count, raw, f"batch {index}")
        if mask is not None:
            batch.mask = _given_mask(mask, raw, batch.samples, f"batch {index}").to(device)
    return made


def _as_batch(
    raw: Any, label: str, model: nn.Module | None, batch_size: BatchSize | None, device: torch.device | None
) -> Batch:
    if isinstance(raw, Batch):
        return raw if device is None else to_device(raw, device)
    args, kwargs, target = split_batch(raw, label)
    if model is not None:
        if isinstance(raw, (tuple, list)) and isinstance(raw[0], list) and _required_arguments(model) > 1:
            args = tuple(raw[0])
        _check_call(model, args, kwargs, label)
    samples = (
        _given_size(batch_size, raw, label) if batch_size is not None else count_samples(args, kwargs, target, label)
    )
    if samples == 0:
        raise ValueError(f"{label} has no samples: leave it out")
    if device is not None:
        args, kwargs, target = (to_device(tree, device) for tree in (args, kwargs, target))
    return Batch(args, NamedTensors(kwargs), target, samples)


def split_batch(batch: Any, label: str = "a batch") -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """``(args, kwargs, target)`` of a batch: the model is called as ``model(*args, **kwargs)``."""
    if isinstance(batch, Batch):
        return batch.args, batch.kwargs, batch.target
    if isinstance(batch, Mapping):
        return (), dict(batch), None
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return (), {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}, None
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        inputs, target = batch
        return (tuple(inputs) if isinstance(inputs, tuple) else (inputs,)), {}, target
    if isinstance(batch, (tuple, list)):
        raise TypeError(
            f"{label} is a {type(batch).__name__} of length {len(batch)}, and must be a pair (inputs, target): for "
            "several inputs pass ((input_1, input_2), target)"
        )
    raise TypeError(
        f"{label} must be a pair (inputs, target), or a mapping or dataclass of keyword arguments, not "
        f"{type(batch).__name__}"
    )


def count_samples(args: tuple[Any, ...], kwargs: Mapping[str, Any], target: Any, label: str = "the batch") -> int:
    """The number of samples: dimension 0 of the first input, compared with the target.

    Where the target is a tensor of another length, the samples are looked for in dimension 1 of the input (sequence
    first), and a target of B·S rows is taken as S rows for each of B samples. A single argument that is a list holds
    one sample per item.

    Raises:
        ValueError: there is no dimension to count, or input and target disagree; the remedy is ``batch_size=``.
    """
    if len(args) == 1 and isinstance(args[0], list):
        return len(args[0])
    first = first_tensor(args) if args else first_tensor(kwargs)
    if first is None or first.dim() == 0:
        raise ValueError(
            f"{label}: the inputs hold no tensor with a dimension for the samples, so that their number is unknown: "
            "pass batch_size="
        )
    if not args:
        target = next((kwargs[name] for name in TARGET_NAMES if isinstance(kwargs.get(name), Tensor)), None)
    samples = first.shape[0]
    if not isinstance(target, Tensor) or target.dim() == 0 or target.shape[0] in (1, samples):
        return samples
    rows = target.shape[0]
    if first.dim() > 1 and first.shape[1] == rows and first.shape[0] != rows:
        return rows
    if samples and rows % samples == 0:
        return samples
    raise ValueError(
        f"{label}: the input of shape {tuple(first.shape)} and the target of shape {tuple(target.shape)} do not tell "
        "the number of samples: pass batch_size=, a number or a function of the batch"
    )


def _given_size(batch_size: BatchSize, raw: Any, label: str) -> int:
    size = batch_size(raw) if callable(batch_size) else batch_size
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ValueError(f"batch_size must be a number of samples, or a function that returns it; {label}: {size!r}")
    return size


def _given_count(count: Count, raw: Any, label: str) -> float:
    if not callable(count):
        raise TypeError(f"count must be a function of a batch that returns a number, not {count!r}")
    found = count(raw)
    value = float(found) if isinstance(found, (int, float, Tensor)) and not isinstance(found, bool) else math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"count must return what the loss is a mean over, a positive number; {label}: {found!r}")
    return value


def _given_mask(mask: Mask, raw: Any, samples: int, label: str) -> Tensor:
    if isinstance(mask, str):
        if not isinstance(raw, Mapping) or mask not in raw:
            raise KeyError(f"mask={mask!r} names an entry of a batch, and {label} has none of that name")
        found = raw[mask]
    elif callable(mask):
        found = mask(raw)
    else:
        raise TypeError(f"mask must be a function of a batch, or the name of an entry of a batch, not {mask!r}")
    if not isinstance(found, Tensor) or found.dim() != 2 or found.shape[0] != samples:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"mask must give a tensor (B, S) with B = {samples} for {label}, not {shape}")
    found = found.detach() != 0
    if not bool(found.any()):
        raise ValueError(f"mask: no row of {label} counts: leave the batch out")
    return found


def _parameters(model: nn.Module) -> list[inspect.Parameter] | None:
    try:
        return list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):  # a forward written in C, or wrapped beyond recognition
        return None


def _required_arguments(model: nn.Module) -> int:
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is p.empty for p in _parameters(model) or [])


def _check_call(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], label: str) -> None:
    if _parameters(model) is None:
        return
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError as error:
        form = "a mapping means keyword arguments, model(**batch); for one argument pass a pair (inputs, target)"
        if args:
            form = "a tuple of inputs means several arguments, model(*inputs), and anything else one argument"
        raise TypeError(f"{label} does not fit {type(model).__name__}.forward: {error}; {form}") from error


def batch_size(batch: Any) -> int:
    """The number of samples of a batch, see :func:`count_samples`."""
    return batch.samples if isinstance(batch, Batch) else count_samples(*split_batch(batch))


def batch_loss(model: nn.Module, loss_fn: LossFunction, batch: Any) -> Tensor:
    """The scalar loss on a batch.

    Raises:
        TypeError: ``loss_fn`` is not callable, or the loss is not a tensor.
        ValueError: the loss is not a scalar, or declared to be a sum over samples.
    """
    check_loss_function(loss_fn)
    args, kwargs, target = split_batch(batch)
    loss = loss_fn(model(*args, **kwargs), target if args else kwargs)
    if not isinstance(loss, Tensor):
        raise TypeError(f"loss_fn returned {type(loss).__name__}, not a tensor")
    if loss.numel() != 1:
        raise ValueError(
            f"loss_fn returned shape {tuple(loss.shape)}, not a scalar: use reduction='mean' (a mean over the batch)"
        )
    return loss.reshape(())


def check_loss_function(loss_fn: Any) -> None:
    """Raises TypeError or ValueError where ``loss_fn`` is not callable or says that it is no mean."""
    if not callable(loss_fn):
        raise TypeError(f"loss_fn must be callable as loss_fn(output, target), not {type(loss_fn).__name__}")
    declared = getattr(loss_fn, "reduction", None)
    if declared in ("sum", "none"):
        raise ValueError(
            f"loss_fn has reduction={declared!r}: use reduction='mean', the mean over the samples of a batch"
        )


def first_tensor(tree: Any) -> Tensor | None:
    """The first tensor of a nested structure, depth first, or None."""
    return next(tensors(tree), None)


def tensors(tree: Any) -> Iterator[Tensor]:
    """The tensors of nested mappings, lists, tuples and dataclasses, depth first."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from tensors(value)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from tensors(value)
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        for field in dataclasses.fields(tree):
            yield from tensors(getattr(tree, field.name))


def map_tensors(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """The structure with every tensor replaced; mappings become dicts, with their items as attributes."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        kind = dict if type(tree) is dict else NamedTensors
        return kind({key: map_tensors(function, value) for key, value in tree.items()})
    if isinstance(tree, (list, tuple)):
        items = [map_tensors(function, item) for item in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        names = [field.name for field in dataclasses.fields(tree) if field.init]
        return dataclasses.replace(tree, **{name: map_tensors(function, getattr(tree, name)) for name in names})
    return tree


def to_device(tree: Any, device: torch.device) -> Any:
    """A nested structure with its tensors moved to ``device``."""

    def move(tensor: Tensor) -> Tensor:
        moved = tensor.to(device)
        return moved.clone() if moved.is_inference() and not torch.is_inference_mode_enabled() else moved

    return map_tensors(move, tree)


def _take(tree: Any, index: Tensor, samples: int, sequence_first: bool) -> Any:
    def take(tensor: Tensor) -> Tensor:
        at = index.to(tensor.device)
        if tensor.dim() and tensor.shape[0] == samples:
            return tensor[at]
        if sequence_first and tensor.dim() > 1 and tensor.shape[1] == samples:
            return tensor[:, at]
        if tensor.dim() and tensor.shape[0] > samples and tensor.shape[0] % samples == 0 and not sequence_first:
            return tensor.unflatten(0, (samples, -1))[at].flatten(0, 1)
        return tensor

    if isinstance(tree, list) and len(tree) == samples and all(isinstance(item, Tensor) for item in tree):
        return [tree[i] for i in index.tolist()]
    if isinstance(tree, tuple):
        return tuple(_take(item, index, samples, sequence_first) for item in tree)
    return map_tensors(take, tree)
