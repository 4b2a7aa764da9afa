"""First pass over the data: gradient and Kronecker factors of every layer.

One file: what a layer's factors are, and the one pass that sums them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spectral_ext.capture.recording import Call, Calls, pass_over, recording
from spectral_ext.factors.second_moment import FactorTooLargeError, SecondMoment
from spectral_ext.layers import Layer
from spectral_ext.measurement.batches import Batch, LossFunction
from spectral_ext.measurement.gradients import GradientPass
from spectral_ext.measurement.masks import row_mask
from spectral_ext.measurement.ranks import all_sum, gathered, union
from spectral_ext.ops import input_factor, output_factor

SMALLEST, LARGEST = 1e-150, 1e150
"""Traces of factors within these bounds have products that float64 can hold."""


@dataclass
class LayerFactors:
    """Kronecker factors of one layer over the data."""

    C_A: SecondMoment
    """Σ a aᵀ/(B·S), (n, n), over the rows that count."""
    C_delta: SecondMoment
    """Σ d dᵀ/B, (m, m)."""
    samples: int
    positions: float
    """S: rows of x (patches of a convolution) per sample that count."""
    C_delta_out: SecondMoment | None = None
    """The same of the error at the output of the residual block around the layer, where it has as many channels."""
    block: str = ""
    is_head: bool = False
    """Whether no other module with a weight matrix is called after it."""
    norm: nn.Module | None = None
    """The LayerNorm or RMSNorm whose output x is."""
    input_mean: Tensor | None = None
    """Σ a/(B·S), (n,), float64; None for a layer with a kernel."""
    notes: list[str] = field(default_factory=list)

    @property
    def centred(self) -> bool:
        """Whether the norm subtracts the mean (LayerNorm), so that Ĉ has the constant vector as a null vector."""
        return type(self.norm).__name__.endswith("LayerNorm")

    def normalized(self) -> SecondMoment | None:
        """Ĉ (n, n): C_A of the norm's output before its weight γ and bias β, a = γ⊙x̂ + β, in float64.

        None behind no norm, where γ has a zero or another shape than the input, and where C_A, rounded to its dtype,
        does not resolve Ĉ behind such γ and β.
        """
        mean, norm = self.input_mean, self.norm
        if mean is None or norm is None:
            return None
        weight, bias = (getattr(norm, name, None) for name in ("weight", "bias"))
        if any(isinstance(one, Tensor) and one.shape != mean.shape for one in (weight, bias)):
            return None
        gamma = weight.detach().double() if isinstance(weight, Tensor) else torch.ones_like(mean)
        beta = bias.detach().double() if isinstance(bias, Tensor) else torch.zeros_like(mean)
        if bool((gamma == 0).any()):
            return None
        eps = torch.finfo(self.C_A.dtype).eps
        if self.C_A.matrix is None:
            found = self.C_A.mapped(-beta, 1 / gamma)
            rounding = float((eps * torch.cat(self.C_A.rows).abs().amax(0) / gamma.abs()).max())
            return found if rounding <= 1e-3 * (found.trace() / len(mean)) ** 0.5 else None
        C = self.C_A.dense().double()
        rounding = float((eps * C.diagonal() / gamma.square()).max())
        cross = torch.outer(mean, beta)
        C = (C - cross - cross.mT + torch.outer(beta, beta)) / torch.outer(gamma, gamma)
        return SecondMoment.of(C) if rounding <= 1e-3 * float(C.diagonal().mean()) else None


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
    """Sums over batches for one layer."""

    gradient: Tensor | None = None
    input: SecondMoment | None = None
    output: SecondMoment | None = None
    block_output: SecondMoment | None = None
    rows: int = 0
    rows_left_out: int = 0
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
    """Σ count · loss."""
    samples: int
    count: float
    """Σ count, the number that the loss is a mean over."""
    missing: dict[str, str]

    def reduced(self, group: Any = None) -> Capture:
        """The gradients and factors over the batches of all ranks of a process group, each of which must call this."""
        device = next(iter(self.layers.values())).weight.device
        counts = torch.tensor([float(self.samples), self.count, self.loss], dtype=torch.float64, device=device)
        total, count, loss = all_sum(counts, group).tolist()
        samples = round(total)
        missing = union(self.missing, group)
        gradients, own = {}, {}
        for name, layer in self.layers.items():
            summed = self.sums[name].gradient
            own[name] = None if summed is None else summed / self.count
            gradients[name] = all_sum(torch.zeros_like(layer.weight) if summed is None else summed, group)
            gradients[name] = layer.matrices(gradients[name] / count)
            if len(gradients[name]) == 1:
                gradients[name] = gradients[name][0]
        factors = {}
        for name in self.layers:
            if name not in missing:
                found = _factors(self.sums[name], samples, samples / count, group)
                reason = _out_of_range(found) if bool(gradients[name].any()) else None
                if reason is None:
                    factors[name] = found
                else:
                    missing[name] = reason
        local = GradientPass(self.loss / self.count, round(self.count), own)
        return Capture(loss / count, samples, gradients, factors, missing, local)


def capture_factors(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: list[Batch],
    layers: Mapping[str, Layer],
    *,
    on_batch: Callable[[], None] = lambda: None,
) -> Capture:
    """G, C_A and C_δ of each layer by one forward and backward pass per batch; batches weigh by their count.

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
    total, count, loss_sum = 0, 0.0, 0.0
    for index, batch in enumerate(batches):
        own: dict[str, Tensor] = {}
        visit = partial(_add_factors, layers, sums, own if index == 0 else None, {}, missing)
        with recording(model, seen, batch, row_mask(batch, loss_fn), visit) as calls:
            loss, gradients = pass_over(model, loss_fn, batch, f"batch {index}", layers, calls)
        total, count = total + batch.samples, count + batch.count
        loss_sum += batch.count * loss
        for name, gradient in gradients.items():
            _add_gradient(sums[name], name, gradient, batch.count, index)
            if name not in seen:
                continue
            reason = calls.problem(name, gradient)
            if reason is None and gradient is not None and name in own:
                reason = _used_elsewhere(layers[name].matrices(gradient)[0], own[name] / batch.count)
            if reason is not None:
                missing.setdefault(name, reason)
        _add_surroundings(sums, calls, seen)
        on_batch()
    return FactorSums(layers, sums, loss_sum, total, count, missing)


def _add_gradient(held: _LayerSums, name: str, gradient: Tensor | None, count: float, index: int) -> None:
    if gradient is None:
        return
    if not bool(gradient.isfinite().all()):
        raise ValueError(
            f"the gradient of layer {name!r} holds NaN or Inf on batch {index}: check data, weights and the scale of "
            "the loss"
        )
    if held.gradient is None:
        held.gradient = gradient.detach() * count
    else:
        held.gradient.add_(gradient.detach(), alpha=count)


def _add_factors(
    layers: Mapping[str, Layer],
    sums: dict[str, _LayerSums],
    own: dict[str, Tensor] | None,
    shared: dict[Hashable, Tensor],
    missing: dict[str, str],
    name: str,
    call: Call,
) -> None:
    """Add one call's factors; layers fed by the same x share its rows or Σ a aᵀ, and ``own`` takes Σ d aᵀ."""
    layer: Any = layers[name]
    held, x, d = sums[name], call.x, call.d
    if held.input is None or held.output is None:
        m, n = layer.matrix_shape
        held.input, held.output = SecondMoment(n), SecondMoment(m)
    key = call.source, *layer.geometry.values()
    if own is not None:
        own[name] = layer.weight_gradient(x, d)
    try:
        if layer.is_convolution:
            if key not in shared:
                shared[key] = input_factor(x, **layer.geometry, scale="sum")
            held.input.add_matrix(shared[key])
            held.output.add_matrix(output_factor(d, convolution=True, scale="sum"))
        elif name not in missing:
            if key not in shared:
                shared[key] = call.kept(x)
            held.input.add_rows(shared[key])
            held.output.add_rows(call.kept(d))
            total = shared[key].sum(0, dtype=torch.float64)
            held.input_sum = total if held.input_sum is None else held.input_sum + total
    except FactorTooLargeError as error:
        missing[name] = str(error)
    rows = layer.rows(d)
    held.rows += rows - call.left_out
    held.rows_left_out += call.left_out
    held.rows_without_error += layer.rows_without_error(d) - call.left_out


def _add_surroundings(sums: dict[str, _LayerSums], calls: Calls, layers: Mapping[str, Layer]) -> None:
    for name in layers:
        held = sums[name]
        held.is_head, held.norm = name == calls.last, calls.behind_norm.get(name)
        held.notes += [note for note in calls.notes.get(name, []) if note not in held.notes]
    for name, (block, error) in calls.block_factors(layers).items():
        held = sums[name]
        held.block = block
        if held.block_output is None:
            held.block_output = SecondMoment(layers[name].matrix_shape[0])
        if layers[name].is_convolution:
            held.block_output.add_matrix(error)
        else:
            held.block_output.add_rows(error)


def _factors(held: _LayerSums, samples: int, unit: float, group: Any) -> LayerFactors:
    """``unit``: samples per count, by which each error is too small."""
    assert held.input is not None and held.output is not None
    everyone = gathered(
        (held.rows, held.rows_without_error, held.block_output is not None, held.notes, held.rows_left_out), group
    )
    rows, bare, left_out = (sum(one[at] for one in everyone) for at in (0, 1, 4))
    has_block = all(one[2] for one in everyone)
    notes = list(dict.fromkeys(note for one in everyone for note in one[3]))
    if left_out:
        notes.append(
            f"{left_out} of {rows + left_out} rows do not count (masked or ignored tokens): they are left out of C_A, "
            "S and the concentration ratio"
        )
    if bare:
        notes.append(
            f"{bare} of {rows} rows carry no error (padding or masked tokens, perhaps), and yet count in C_A, S "
            "and the concentration ratio: if they should not, pass mask="
        )
    mean = None if held.input_sum is None else all_sum(held.input_sum, group) / max(rows, 1)
    out = _reduced(held.block_output, unit**2 / samples, group) if has_block and held.block_output else None
    return LayerFactors(
        C_A=_reduced(held.input, 1 / max(rows, 1), group),
        C_delta=_reduced(held.output, unit**2 / samples, group),
        samples=samples,
        positions=rows / samples,
        C_delta_out=out,
        block="" if out is None else held.block,
        is_head=held.is_head,
        norm=held.norm,
        input_mean=mean,
        notes=notes,
    )


def _reduced(moment: SecondMoment, scale: float, group: Any) -> SecondMoment:
    """The second moment over the rows of all ranks: rows side by side, or the sum of matrices."""
    if group is not None:
        counts = gathered(None if moment.matrix is not None else moment.count, group)
        if None in counts or sum(counts) >= moment.size:
            moment.to_matrix()
            assert moment.matrix is not None
            moment.matrix = all_sum(moment.matrix, group)
        else:
            start = sum(counts[: torch.distributed.get_rank(group)])
            rows = moment.rows[0].new_zeros(sum(counts), moment.size)
            torch.cat(moment.rows, out=rows[start : start + moment.count])
            moment.rows = [all_sum(rows, group)]
    moment.scale = scale
    return moment


def _out_of_range(factors: LayerFactors) -> str | None:
    """Why products of the factors' eigenvalues would overflow or vanish, or None."""
    for what, name, C in (("inputs", "C_A", factors.C_A), ("errors", "C_δ", factors.C_delta)):
        trace, limits = C.trace(), torch.finfo(C.dtype)
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
