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

SMALLEST, LARGEST = 1e-150, 1e150
"""Traces of factors within these bounds have products that float64 can hold."""


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
    """The same of the error at the output of the residual block around the layer, where it has as many channels."""
    block: str = ""
    is_head: bool = False
    """Whether no other module with a weight matrix is called after it."""
    behind_norm: bool = False
    """Whether x is the output of a LayerNorm or RMSNorm."""
    C_normalized: Tensor | None = None
    """Ĉ (n, n), float64: C_A of that norm's output before its weight γ and bias β. None behind no norm, where the norm
    is over other dimensions, and where γ has a zero.
    """
    centred: bool = False
    """Whether that norm subtracts the mean (LayerNorm), so that Ĉ has the constant vector as a null vector."""
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
    """Layer → G (m, n), or (E, m, n) of E diagonal blocks, of the mean loss; zero where the loss does not depend on the
    weight.
    """
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
    norm: nn.Module | None = None
    """The norm whose output the layer reads."""
    input_sum: Tensor | None = None
    """Σ a over all rows of a layer without a kernel, in float64."""
    notes: list[str] = field(default_factory=list)


@dataclass
class FactorSums:
    """What this process has summed over its batches; :meth:`reduced` makes factors of it."""

    layers: Mapping[str, Layer]
    sums: dict[str, _LayerSums]
    loss: float
    """Σ samples · loss."""
    samples: int
    missing: dict[str, str]

    def reduced(self, group: Any = None) -> Capture:
        """The gradients and factors over the batches of all ranks of a process group, each of which must call this."""
        device = next(iter(self.layers.values())).weight.device
        counts = torch.tensor([float(self.samples), self.loss], dtype=torch.float64, device=device)
        total, loss = all_sum(counts, group).tolist()
        samples = round(total)
        missing = union(self.missing, group)
        gradients, own = {}, {}
        for name, layer in self.layers.items():
            summed = self.sums[name].gradient
            own[name] = None if summed is None else summed / self.samples
            gradients[name] = all_sum(torch.zeros_like(layer.weight) if summed is None else summed, group)
            gradients[name] = layer.matrices(gradients[name] / samples)
            if len(gradients[name]) == 1:
                gradients[name] = gradients[name][0]
        factors = {}
        for name in self.layers:
            if name not in missing:
                found = _factors(self.sums[name], samples, group)
                reason = _out_of_range(found) if bool(gradients[name].any()) else None
                if reason is None:
                    factors[name] = found
                else:
                    missing[name] = reason
        local = GradientPass(self.loss / self.samples, self.samples, own)
        return Capture(loss / samples, samples, gradients, factors, missing, local)


def capture_factors(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: list[Batch],
    layers: Mapping[str, Layer],
    *,
    on_batch: Callable[[], None] = lambda: None,
) -> Capture:
    """G, C_A and C_δ of each layer by one forward and backward pass per batch; batches weigh by their samples.

    Raises:
        ValueError: a loss or a gradient is not finite (batch and layer are named), or the loss has no gradient.
        RuntimeError: reentrant activation checkpointing.
    """
    return sum_factors(model, loss_fn, batches, layers, on_batch=on_batch).reduced()


def sum_factors(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: list[Batch],
    layers: Mapping[str, Layer],
    *,
    on_batch: Callable[[], None] = lambda: None,
) -> FactorSums:
    """The part of :func:`capture_factors` that does not communicate; errors as there."""
    sums = {name: _LayerSums() for name in layers}
    seen = {name: layer for name, layer in layers.items() if not layer.no_factors}
    missing = {name: layer.no_factors for name, layer in layers.items() if layer.no_factors}
    total, loss_sum = 0, 0.0
    for index, batch in enumerate(batches):
        own: dict[str, Tensor] = {}
        visit = partial(_add_factors, layers, sums, own if index == 0 else None, {})
        with recording(model, seen, batch.samples, visit) as calls:
            loss, gradients = pass_over(model, loss_fn, batch, f"batch {index}", layers, calls)
        total += batch.samples
        loss_sum += batch.samples * loss
        for name, gradient in gradients.items():
            _add_gradient(sums[name], name, gradient, batch.samples, index)
            if name not in seen:
                continue
            reason = calls.problem(name, gradient)
            if reason is None and gradient is not None and name in own:
                reason = _used_elsewhere(layers[name].matrices(gradient)[0], own[name] / batch.samples)
            if reason is not None:
                missing.setdefault(name, reason)
        _add_surroundings(sums, calls, seen)
        on_batch()
    return FactorSums(layers, sums, loss_sum, total, missing)


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
    if not layer.is_convolution:
        total = x.flatten(0, -2).sum(0, dtype=torch.float64)
        held.input_sum = total if held.input_sum is None else held.input_sum + total
    held.output.add(output_factor(d, convolution=layer.is_convolution, scale="sum"), d.shape[0], rows)
    held.rows_without_error += layer.rows_without_error(d)
    if own is not None:
        own[name] = layer.weight_gradient(x, d)


def _add_surroundings(sums: dict[str, _LayerSums], calls: Calls, layers: Mapping[str, Layer]) -> None:
    for name in layers:
        held = sums[name]
        held.is_head, held.norm = name == calls.last, calls.behind_norm.get(name)
        held.notes += [note for note in calls.notes.get(name, []) if note not in held.notes]
    for name, (block, total, count) in calls.block_factors(layers).items():
        sums[name].block = block
        sums[name].block_output.add(total, count, count)


def _factors(held: _LayerSums, samples: int, group: Any) -> LayerFactors:
    A, delta, out = held.input.total, held.output.total, held.block_output.total
    assert A is not None and delta is not None
    everyone = gathered((held.input.rows, held.rows_without_error, out is not None, held.notes), group)
    rows, bare = sum(one[0] for one in everyone), sum(one[1] for one in everyone)
    if not all(has_block for _, _, has_block, _ in everyone):
        out = None
    notes = list(dict.fromkeys(note for one in everyone for note in one[3]))
    if bare:
        notes.append(
            f"{bare} of {round(rows)} rows carry no error (padding or masked tokens, perhaps), and yet count in C_A, S "
            "and the concentration ratio"
        )
    C_A = all_sum(A, group) / rows
    mean = None if held.input_sum is None else all_sum(held.input_sum, group) / rows
    return LayerFactors(
        C_A=C_A,
        C_delta=all_sum(delta, group) / samples,
        samples=samples,
        positions=rows / samples,
        C_delta_out=None if out is None else all_sum(out, group) / samples,
        block="" if out is None else held.block,
        is_head=held.is_head,
        behind_norm=held.norm is not None,
        C_normalized=None if held.norm is None or mean is None else _without_affine(C_A, mean, held.norm),
        centred=type(held.norm).__name__.endswith("LayerNorm"),
        notes=notes,
    )


def _without_affine(C_A: Tensor, mean: Tensor, norm: nn.Module) -> Tensor | None:
    """Ĉ = Γ⁻¹(C_A − μβᵀ − βμᵀ + ββᵀ)Γ⁻¹ with Γ = diag(γ) and μ the mean of a = γ⊙x̂ + β, in float64.

    None where γ has another shape or where C_A, rounded to its dtype, does not resolve Ĉ behind such γ and β.
    """
    weight, bias = (getattr(norm, name, None) for name in ("weight", "bias"))
    if any(isinstance(one, Tensor) and one.shape != mean.shape for one in (weight, bias)) or len(mean) != len(C_A):
        return None
    C = C_A.double()
    rounding = torch.finfo(C_A.dtype).eps * C.diagonal()
    if isinstance(bias, Tensor):
        beta = bias.detach().double()
        cross = torch.outer(mean, beta)
        C = C - cross - cross.mT + torch.outer(beta, beta)
    if isinstance(weight, Tensor):
        gamma = weight.detach().double()
        if bool((gamma == 0).any()):
            return None
        C = C / torch.outer(gamma, gamma)
        rounding = rounding / gamma.square()
    return C if float(rounding.max()) <= 1e-3 * float(C.diagonal().mean()) else None


def _out_of_range(factors: LayerFactors) -> str | None:
    """Why products of the factors' eigenvalues would overflow or vanish, or None."""
    for what, name, C in (("inputs", "C_A", factors.C_A), ("errors", "C_δ", factors.C_delta)):
        trace, limits = float(C.diagonal().double().sum()), torch.finfo(C.dtype)
        if not max(1e8 * limits.tiny, SMALLEST) < trace < min(1e-8 * limits.max, LARGEST):
            remedy = "multiply the loss by a constant" if what == "errors" else "rescale the data"
            return (
                f"its {what} leave the range of {str(C.dtype).removeprefix('torch.')}, the trace of {name} is "
                f"{trace:.3g}: {remedy} (no exponent depends on it), or measure a float64 copy"
            )
    return None


def _used_elsewhere(gradient: Tensor, own: Tensor) -> str | None:
    if own.shape == gradient.shape:
        gap = float((gradient - own).norm())
        tolerance = 1e-2 if gradient.dtype in (torch.float16, torch.bfloat16) else 1e-3
        if gap <= tolerance * float(gradient.norm()) + torch.finfo(gradient.dtype).tiny:
            return None
    return "its gradient is not Σ d aᵀ of its own call: its weight is used outside that call too, or not as x Wᵀ"
