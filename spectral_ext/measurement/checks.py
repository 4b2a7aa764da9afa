"""Questions asked before a measurement: is the loss finite, the same twice, and a mean over samples?"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from spectral_ext.layers import Layer
from spectral_ext.measurement.batches import Batch, LossFunction, batch_loss, check_loss_function, tensors

REDUCTION_TOLERANCE = 1e-4
DETERMINISM_TOLERANCE = 1e-5
SAMPLES_COMPARED = 16
"""The reduction is judged on at most this many samples of a batch."""

REDUCTION_NOTES = {
    "unknown": "the loss is neither mean nor sum of its samples' losses (masked tokens, class weights or coupled "
    "samples?), and "
    "batches weigh by their number of samples: h and σ are those of that weighted mean and depend on how the data are "
    "cut into batches, and d = B × hook gradient is a per-sample error only up to that coupling; for a mean over "
    "tokens pass count=, the number of labelled tokens of a batch",
    "unchecked": "that the loss is a mean over samples could not be checked on these batches",
}


def check_task(model: nn.Module, loss_fn: LossFunction, batches: list[Batch]) -> str:
    """All questions about model, loss and batches, in the order that gives the truest answer.

    Call it under :func:`.measurement`. It takes two forward passes of the first batch, and of at most
    ``2·SAMPLES_COMPARED`` samples per further batch.

    Returns:
        The reduction, see :func:`check_reduction`.

    Raises:
        RuntimeError: the forward pass enters autocast.
        TypeError, ValueError: the loss is no finite scalar, has no gradient, differs from call to call, or is a sum.
    """
    check_loss_function(loss_fn)
    first = check_first_loss(model, loss_fn, batches[0])
    check_deterministic(model, loss_fn, batches[0], first=first)
    return check_reduction(model, loss_fn, batches)


def check_precision(layers: Mapping[str, Layer]) -> None:
    """Raises TypeError unless all weights are float32 or float64."""
    for name, layer in layers.items():
        if layer.weight.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"the weight of {name!r} is {layer.weight.dtype}: measure a float32 or float64 copy, model.float()"
            )


def check_first_loss(model: nn.Module, loss_fn: LossFunction, batch: Batch, label: str = "batch 0") -> float:
    """The loss by one forward pass: a finite scalar with a gradient, and no autocast inside.

    Raises:
        RuntimeError: the forward pass enters autocast.
        TypeError, ValueError: see :func:`check_loss`.
    """
    with _NoticeAutocast() as noticed:
        try:
            loss = batch_loss(model, loss_fn, batch)
        except RuntimeError as error:
            _name_other_dtype(model, batch, label, error)
            raise
    if noticed.device is not None:
        raise RuntimeError(
            f"the model's forward or the loss enters torch.autocast({noticed.device!r}), and a measurement would mix "
            "precisions: measure without it. Accelerate and the Hugging Face Trainer wrap forward when bf16 or fp16 is "
            "set; accelerate.utils.extract_model_from_parallel(model, keep_fp32_wrapper=False) takes that away"
        )
    check_loss(model, loss, batch, label)
    return float(loss.detach())


def _name_other_dtype(model: nn.Module, batch: Batch, label: str, error: RuntimeError) -> None:
    inputs = {tensor.dtype for tensor in tensors((batch.args, batch.kwargs)) if tensor.is_floating_point()}
    weights = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    if "dtype" in str(error) and inputs and len(weights) == 1 and not inputs <= weights:
        has, needs = (", ".join(str(dtype).removeprefix("torch.") for dtype in kinds) for kinds in (inputs, weights))
        raise TypeError(f"{label} holds {has} inputs, and the weights are {needs}: cast one of them") from error


def check_loss(model: nn.Module, loss: Tensor, batch: Batch, label: str) -> None:
    """Raises ValueError, with the cause where it can be seen, unless the loss is finite and has a gradient."""
    if not bool(loss.isfinite()):
        raise ValueError(f"the loss on {label} is {loss.item()}: {_why_not_finite(model, batch)}")
    if not loss.requires_grad:
        raise ValueError(
            f"the loss on {label} has no gradient: the model or loss_fn detaches its output or runs under no_grad, or "
            "no parameter requires a gradient"
        )


def _why_not_finite(model: nn.Module, batch: Batch) -> str:
    trees = {"inputs": (batch.args, batch.kwargs), "target": batch.target}
    bad = [name for name, tree in trees.items() if not all(_finite(tensor) for tensor in tensors(tree))]
    if bad:
        return f"the {' and '.join(bad)} of the batch hold NaN or Inf"
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not _finite(tensor):
            return f"{name!r} holds NaN or Inf"
    return "inputs, target and weights are finite, so the forward pass or the loss overflows or divides by zero"


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def check_deterministic(
    model: nn.Module, loss_fn: LossFunction, batch: Batch, label: str = "batch 0", *, first: float | None = None
) -> None:
    """The loss of one batch, twice; ``first`` where it is known from the call before.

    Raises:
        ValueError: the two differ; a buffer that the forward pass changes is named.
    """
    with torch.no_grad():
        first = batch_loss(model, loss_fn, batch).item() if first is None else first
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        second = batch_loss(model, loss_fn, batch).item()
    if not math.isfinite(first) or math.isclose(first, second, rel_tol=DETERMINISM_TOLERANCE):
        return
    found = f"the loss of {label} is {first:.9g} once and {second:.9g} again"
    for name, buffer in model.named_buffers():
        if name not in buffers or not torch.equal(buffer, buffers[name]):
            raise ValueError(
                f"{found}: the forward pass changes the buffer {name!r}, and the output depends on it, so that "
                "curvature is not defined; call .eval() on its module, or on the model"
            )
    raise ValueError(
        f"{found}: the model is not deterministic (dropout in a train-mode forward, sampled noise or augmentation), so "
        "that curvature is not defined; call model.eval() or fix its seed"
    )


def check_reduction(model: nn.Module, loss_fn: LossFunction, batches: list[Batch]) -> str:
    """Whether the loss is a mean over samples, in eval mode.

    The loss of some samples of the first batch is compared with the losses of their two halves. The loss of samples of
    the first batch joined with as many of another batch is compared with their two losses, for every other batch whose
    tensors have the same shapes; other batches are compared with their own halves. A token mean over batches with
    different numbers of tokens is seen this way, although it is a mean within each batch.

    Returns:
        ``"mean"``, ``"unknown"`` (neither mean nor sum: masked tokens, class weights, contrastive terms) or
        ``"unchecked"`` (single samples, or batches that cannot be cut or joined). Call it under :func:`.preserved`: it
        changes the mode.

    Raises:
        ValueError: it is a sum.
    """
    found = set()
    with _evaluation_mode(model), torch.no_grad():
        counted = any(batch.count != batch.samples for batch in batches)
        # A part of a batch has an unknown count: where counts are given, whole batches are joined.
        first = batches[0] if counted else _some(batches[0])
        for batch in batches:
            if counted and batch is first:
                continue
            try:
                other = batch if counted else _some(batch)
                found.add(_compare(model, loss_fn, first, other, batch is batches[0], counted))
            except _SumError:
                raise ValueError(
                    "loss_fn is a sum over samples (the loss of a batch is the sum of its parts' losses): divide by "
                    "the batch size, or use reduction='mean'"
                ) from None
            except Exception:  # a model may refuse a cut batch for any reason of its own; then nothing is known
                found.add("unchecked")
    for answer in ("unknown", "mean"):
        if answer in found:
            return answer
    return "unchecked"


class _SumError(Exception):
    pass


def _compare(model: nn.Module, loss_fn: LossFunction, first: Batch, other: Batch, same: bool, counted: bool) -> str:
    whole = None if same else _joined(first, other)
    if whole is None:
        half = other.samples // 2
        if half == 0 or counted:
            return "unchecked"
        whole, parts = other, [other.take(range(half)), other.take(range(half, other.samples))]
    else:
        parts = [first, other]
    together, *apart = (batch_loss(model, loss_fn, batch).item() for batch in (whole, *parts))
    total = sum(part.count for part in parts)
    mean = sum(part.count * loss for part, loss in zip(parts, apart, strict=True)) / total
    scale = REDUCTION_TOLERANCE * max(abs(together), *map(abs, apart))
    if abs(together - mean) <= scale:
        return "mean"
    if abs(together - sum(apart)) <= scale:
        raise _SumError
    return "unknown"


def _some(batch: Batch) -> Batch:
    """An even number of samples, spread over the batch; the batch itself where it has one."""
    count = min(batch.samples // 2 * 2, SAMPLES_COMPARED)
    return batch.take([i * batch.samples // count for i in range(count)]) if count else batch


def _joined(a: Batch, b: Batch) -> Batch | None:
    """The samples of two batches in one, or None where their tensors do not fit together."""
    leaves, others = pytree.tree_leaves(a), pytree.tree_leaves(b)
    spec = pytree.tree_structure(Batch(a.args, a.kwargs, a.target, a.samples + b.samples))
    joined: list[Any] = []
    if len(leaves) != len(others):
        return None
    for x, y in zip(leaves, others, strict=True):
        if not isinstance(x, Tensor) or not isinstance(y, Tensor):
            if x is not y and x != y:
                return None
            joined.append(x)
        elif x.dim() == 0 or y.dim() != x.dim():
            return None
        elif x.shape[0] * b.samples == y.shape[0] * a.samples and x.shape[1:] == y.shape[1:]:
            joined.append(torch.cat([x, y]))
        elif x.dim() > 1 and (x.shape[1], y.shape[1]) == (a.samples, b.samples) and x.shape[0] == y.shape[0]:
            joined.append(torch.cat([x, y], 1))
        else:
            return None
    return pytree.tree_unflatten(joined, spec)


@contextlib.contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


class _NoticeAutocast(TorchFunctionMode):
    """Notes the device whose autocast is on while any operation runs."""

    def __init__(self) -> None:
        super().__init__()
        self.device: str | None = None

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                self.device = device
        return func(*args, **(kwargs or {}))


def task_notes(model: nn.Module, reductions: list[str], autocast: Collection[str] = ()) -> list[str]:
    """What the answers of :func:`check_reduction`, the mode of the batch norms and autocast in the forward pass (the
    devices that it was meant for) mean for the results.
    """
    notes = [REDUCTION_NOTES[answer] for answer in ("unknown", "unchecked") if answer in reductions][:1]
    if batch_norm_mode(model) in ("train", "mixed"):
        notes.append(
            "batch norm uses batch statistics: h and d are those of the batch-coupled loss, not of the eval-mode one"
        )
    if autocast:
        notes.append(
            f"the forward pass or the loss enters torch.autocast({', '.join(sorted(autocast))}), which was off during "
            "the measurement: all numbers are those of the full-precision model"
        )
    return notes


def batch_norm_mode(model: nn.Module) -> str:
    """``train``, ``eval``, ``mixed`` or ``none``: under train-mode batch norm h is the curvature of another
    function.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    modes = {m.training or not m.track_running_stats for m in norms}
    return "none" if not norms else "mixed" if len(modes) == 2 else "train" if modes == {True} else "eval"
