"""First pass over the data: gradient and Kronecker factors of every layer."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spectral_ext.capture.recording import Calls, pass_over, recording
from spectral_ext.factors.accumulator import RunningSum
from spectral_ext.layers import Layer
from spectral_ext.measurement.batches import Batch, LossFunction
from spectral_ext.measurement.gradients import GradientPass
from spectral_ext.measurement.ranks import all_sum, gathered, union
from spectral_ext.ops import input_factor, output_factor


@dataclass
class LayerFactors:
    """Kronecker factors of one layer over the data."""

    C_A: Tensor
    """Σ a aᵀ/(B·S), (n, n)."""
    C_delta: Tensor
    """Σ d dᵀ/B, (m, m)."""
    samples: int
    positions: float
    """S: rows of x (patches of a convolution) per sample."""
    C_delta_out: Tensor | None = None
    """The same of the error at the output of the block around the layer, where it has as many channels."""
    block: str = ""
    is_head: bool = False
    """Whether no other module with a weight matrix is called after it."""
    behind_norm: bool = False
    """Whether x is the output of a LayerNorm or RMSNorm."""
    notes: list[str] = field(default_factory=list)


@dataclass
class Capture:
    """What the first pass found. Over a process group, ``loss``, ``gradients``, ``layers`` and ``missing`` are of all
    ranks together, and ``local`` of this rank.
    """

    loss: float
    """The mean over all samples."""
    samples: int
    gradients: dict[str, Tensor]
    """Layer → G (m, n), of the mean loss; zero where the loss does not depend on the weight."""
    layers: dict[str, LayerFactors]
    missing: dict[str, str]
    """Layer → why it has no factors."""
    local: GradientPass


@dataclass
class _LayerSums:
    """Sums over batches for one layer; a :class:`RunningSum` counts the samples and rows that went in."""

    gradient: Tensor | None = None
    input: RunningSum = field(default_factory=RunningSum)
    output: RunningSum = field(default_factory=RunningSum)
    block_output: RunningSum = field(default_factory=RunningSum)
    block: str = ""
    rows_without_error: int = 0
    is_head: bool = False
    behind_norm: bool = False
    notes: list[str] = field(default_factory=list)


def capture_factors(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: list[Batch],
    layers: Mapping[str, Layer],
    *,
    group: Any = None,
    on_batch: Callable[[], None] = lambda: None,
) -> Capture:
    """G, C_A and C_δ of each layer by one forward and backward pass per batch; batches weigh by their samples.

    Args:
        group: a process group whose ranks each bring their own batches, after :func:`.ranks.agree`.

    Raises:
        ValueError: a loss or a gradient is not finite (batch and layer are named), the loss is no scalar or has no
            gradient, or the squares of a layer's errors or inputs leave the range of their dtype.
        RuntimeError: reentrant activation checkpointing.
    """
    sums = {name: _LayerSums() for name in layers}
    missing: dict[str, str] = {}
    total, loss_sum = 0, 0.0
    for index, batch in enumerate(batches):
        own: dict[str, Tensor] = {}
        visit = partial(_add_factors, layers, sums, own if index == 0 else None, {})
        with recording(model, layers, batch.samples, visit) as calls:
            loss, gradients = pass_over(model, loss_fn, batch, f"batch {index}", layers, calls)
        total += batch.samples
        loss_sum += batch.samples * loss
        for name, gradient in gradients.items():
            _add_gradient(sums[name], name, gradient, batch.samples, index)
            reason = calls.problem(name, layers[name].weight.new_zeros(()) if gradient is None else gradient)
            if reason is None and gradient is not None and name in own:
                reason = _used_elsewhere(gradient, own[name] / batch.samples)
            if reason is not None:
                missing.setdefault(name, reason)
        _add_surroundings(sums, calls, layers)
        on_batch()
    means = {name: None if s.gradient is None else s.gradient / total for name, s in sums.items()}
    local = GradientPass(loss_sum / total, total, means)
    missing = union(missing, group)
    count, summed = all_sum(torch.tensor([float(total), loss_sum], dtype=torch.float64, device=_device(layers)), group)
    everyone = round(count.item())
    mean_gradients = {}
    for name, layer in layers.items():
        own_sum = sums[name].gradient
        own_sum = torch.zeros_like(layer.weight) if own_sum is None else own_sum
        mean_gradients[name] = all_sum(own_sum, group).flatten(1) / everyone
    factors = {name: _factors(name, sums[name], everyone, group) for name in layers if name not in missing}
    return Capture(summed.item() / everyone, everyone, mean_gradients, factors, missing, local)


def _device(layers: Mapping[str, Layer]) -> torch.device:
    return next(iter(layers.values())).weight.device


def _add_gradient(held: _LayerSums, name: str, gradient: Tensor | None, samples: int, index: int) -> None:
    if gradient is None:
        return
    if not bool(gradient.isfinite().all()):
        raise ValueError(
            f"the gradient of layer {name!r} holds NaN or Inf on batch {index}: check data, weights and the scale of "
            "the loss"
        )
    if held.gradient is None:
        held.gradient = gradient.detach() * samples
    else:
        held.gradient.add_(gradient.detach(), alpha=samples)


def _add_factors(
    layers: Mapping[str, Layer],
    sums: dict[str, _LayerSums],
    own: dict[str, Tensor] | None,
    shared: dict[Hashable, Tensor],
    name: str,
    x: Tensor,
    d: Tensor,
    source: Hashable,
) -> None:
    """Add one call's factors; layers fed by the same x share Σ a aᵀ, and ``own`` takes Σ d aᵀ."""
    layer: Any = layers[name]
    held = sums[name]
    rows = layer.rows(d)
    key = source, *layer.geometry.values()
    if key not in shared:
        shared[key] = input_factor(x, **layer.geometry, scale="sum")
    held.input.add(shared[key], d.shape[0], rows)
    held.output.add(output_factor(d, convolution=layer.is_convolution, scale="sum"), d.shape[0], rows)
    held.rows_without_error += layer.rows_without_error(d)
    if own is not None:
        own[name] = layer.weight_gradient(x, d)


def _add_surroundings(sums: dict[str, _LayerSums], calls: Calls, layers: Mapping[str, Layer]) -> None:
    for name, held in sums.items():
        held.is_head, held.behind_norm = name == calls.last, name in calls.behind_norm
        held.notes += [note for note in calls.notes.get(name, []) if note not in held.notes]
    for name, (block, total, count) in calls.block_factors(layers).items():
        sums[name].block = block
        sums[name].block_output.add(total, count, count)


def _factors(name: str, held: _LayerSums, samples: int, group: Any) -> LayerFactors:
    A, delta, rows = (all_sum(value, group) for value in _totals(held))
    bare = held.rows_without_error
    has_block = held.block_output.total is not None
    if group is not None:
        everyone = gathered((has_block, bare), group)
        has_block, bare = all(has for has, _ in everyone), sum(count for _, count in everyone)
    out = None
    if has_block:
        assert held.block_output.total is not None
        out = all_sum(held.block_output.total, group) / samples
    total_rows = rows.item()
    C_A, C_delta = A / total_rows, delta / samples
    _check_range(name, "inputs", "C_A", C_A)
    _check_range(name, "errors", "C_δ", C_delta)
    notes = list(held.notes)
    if bare:
        notes.append(
            f"{bare} of {round(total_rows)} rows carry no error (padding or masked tokens, perhaps), and yet count in "
            "C_A, S and the concentration ratio"
        )
    return LayerFactors(
        C_A,
        C_delta,
        samples,
        total_rows / samples,
        C_delta_out=out,
        block=held.block if has_block else "",
        is_head=held.is_head,
        behind_norm=held.behind_norm,
        notes=notes,
    )


def _totals(held: _LayerSums) -> tuple[Tensor, Tensor, Tensor]:
    assert held.input.total is not None and held.output.total is not None
    rows = torch.tensor(held.input.rows, dtype=torch.float64, device=held.input.total.device)
    return held.input.total, held.output.total, rows


def _check_range(name: str, what: str, factor: str, C: Tensor) -> None:
    """Squares of the entries of a factor must be representable too: ranks and ratios are made of them."""
    trace = float(C.diagonal().double().sum())
    limits = torch.finfo(C.dtype)
    if trace != 0 and not limits.tiny**0.5 < trace < limits.max**0.5:
        remedy = "divide the loss by a constant" if what == "errors" else "rescale the data"
        raise ValueError(
            f"the {what} of layer {name!r} leave the range of {C.dtype}: the trace of {factor} is {trace:.3g}; {remedy}"
            " (α, β, γ, φ and s do not depend on it), or measure in float64"
        )


def _used_elsewhere(gradient: Tensor, own: Tensor) -> str | None:
    if own.shape == gradient.flatten(1).shape:
        gap = float((gradient.flatten(1) - own).norm())
        tolerance = 1e-2 if gradient.dtype in (torch.float16, torch.bfloat16) else 1e-3
        if gap <= tolerance * float(gradient.norm()) + torch.finfo(gradient.dtype).tiny:
            return None
    return (
        "its gradient is not Σ d aᵀ of its own call: its weight is used outside that call too, or not as x Wᵀ"
    )
