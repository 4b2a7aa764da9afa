"""First pass over the data: gradient and Kronecker factors of every layer."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spectral_ext.capture.geometry import geometry, row_count, weight_gradient
from spectral_ext.capture.recording import layer_gradients, recording
from spectral_ext.layers import Layer
from spectral_ext.measurement.batches import Batch, LossFunction, batch_loss, batch_size, split_batch
from spectral_ext.ops import input_factor, output_factor


@dataclass
class LayerFactors:
    """First pass over the data for one layer."""

    gradient: Tensor
    """G (m, n), of the mean loss over all samples."""
    C_A: Tensor
    """Σ a aᵀ/(B·S), (n, n)."""
    C_delta: Tensor
    """Σ d dᵀ/B, (m, m)."""
    samples: int
    positions: float
    """S: rows of x (patches of a convolution) a sample."""
    C_delta_out: Tensor | None = None
    """The same of the error at the output of the block around the layer, where it has as many channels."""
    block: str = ""
    is_head: bool = False
    """Whether no measured layer is called after it."""
    behind_norm: bool = False
    """Whether x is the output of a LayerNorm or RMSNorm."""
    notes: list[str] = field(default_factory=list)


@dataclass
class Capture:
    """What the first pass found: the mean loss, factors by layer, and why a layer has none."""

    loss: float
    samples: int
    layers: dict[str, LayerFactors]
    missing: dict[str, str]


def capture_factors(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: list[Batch],
    layers: Mapping[str, Layer],
    *,
    on_batch: Callable[[], None] = lambda: None,
) -> Capture:
    """G, C_A and C_δ of each layer by one forward and backward pass a batch; batches weigh by their samples.

    Raises:
        ValueError: a batch, a loss or a gradient is not finite (named), or the loss is no scalar or has no gradient.
    """
    sums: dict[str, dict[str, Any]] = {}
    missing: dict[str, str] = {}
    total, loss_sum = 0, 0.0
    for index, batch in enumerate(batches):
        samples = batch_size(batch)
        errors: dict[str, Tensor] | None = {} if index == 0 else None
        visit = partial(_add_factors, layers, sums, errors, {})
        with recording(model, layers, samples, visit) as calls:
            loss = batch_loss(model, loss_fn, batch)
            _check_loss(loss, index, batch)
            gradients = layer_gradients(loss, layers)
        total += samples
        loss_sum += samples * loss.item()
        for name, gradient in gradients.items():
            if not bool(gradient.isfinite().all()):
                raise ValueError(
                    f"the gradient of layer {name!r} holds NaN or Inf on batch {index}: check data and weights"
                )
            reason = calls.problem(name, gradient)
            if reason is None and errors and name in errors:
                reason = _used_elsewhere(gradient, errors[name] / samples)
            if reason is not None:
                missing.setdefault(name, reason)
                continue
            held = sums[name]
            add(held, "gradient", gradient.flatten(1).detach(), samples)
            held.setdefault("notes", calls.notes.get(name, []))
            held["behind_norm"] = name in calls.behind_norm
            held["is_head"] = name == calls.order[-1]
        for name, (block, factor, count) in calls.block_factors(layers).items():
            add(sums[name], "out", factor, count)
            sums[name]["block"] = block
        on_batch()
    found = {
        name: LayerFactors(
            gradient=sums[name]["gradient"] / total,
            C_A=sums[name]["A"] / sums[name]["rows"],
            C_delta=sums[name]["delta"] / total,
            samples=total,
            positions=sums[name]["rows"] / total,
            C_delta_out=sums[name]["out"] / total if "out" in sums[name] else None,
            block=sums[name].get("block", ""),
            is_head=sums[name]["is_head"],
            behind_norm=sums[name]["behind_norm"],
            notes=sums[name]["notes"],
        )
        for name in layers
        if name not in missing
    }
    return Capture(loss_sum / total, total, found, missing)


def _add_factors(
    layers: Mapping[str, Layer],
    sums: dict[str, dict[str, Any]],
    errors: dict[str, Tensor] | None,
    shared: dict[Hashable, Tensor],
    name: str,
    x: Tensor,
    d: Tensor,
    source: Hashable,
) -> None:
    """Add one call's factors; layers fed by the same x share C_A, and ``errors`` takes Σ d aᵀ."""
    layer, held = layers[name], sums.setdefault(name, {})
    rows, spec = row_count(layer, d), geometry(layer)
    key = source, *spec.values()
    if key not in shared:
        shared[key] = input_factor(x, **spec)
    add(held, "A", shared[key], rows)
    add(held, "delta", output_factor(d, convolution=layer.is_convolution), d.shape[0])
    held["rows"] = held.get("rows", 0) + rows
    if errors is not None:
        errors[name] = weight_gradient(layer, x, d)


def add(held: dict[str, Any], key: str, value: Tensor, weight: int) -> None:
    if key in held:
        held[key].add_(value, alpha=weight)
    else:
        held[key] = value * weight


def _check_loss(loss: Tensor, index: int, batch: Batch) -> None:
    if not bool(loss.isfinite()):
        args, kwargs, target = split_batch(batch)
        bad = [tree for tree in ("inputs", "target") if not _finite({"inputs": (args, kwargs), "target": target}[tree])]
        where = (
            f"the {' and '.join(bad)} of the batch hold NaN or Inf"
            if bad
            else "inputs and target are finite, so look for NaN or Inf in the weights"
        )
        raise ValueError(f"the loss on batch {index} is {loss.item()}: {where}")
    if not loss.requires_grad:
        raise ValueError(
            f"the loss on batch {index} has no gradient: the model or loss_fn detaches its output or runs under no_grad"
        )


def _finite(tree: Any) -> bool:
    if isinstance(tree, Tensor):
        return bool(tree.isfinite().all()) if tree.is_floating_point() else True
    if isinstance(tree, Mapping):
        tree = list(tree.values())
    return all(_finite(item) for item in tree) if isinstance(tree, (list, tuple)) else True


def _used_elsewhere(gradient: Tensor, own: Tensor) -> str | None:
    gap = float((gradient.flatten(1) - own).norm())
    tolerance = 1e-2 if gradient.dtype in (torch.float16, torch.bfloat16) else 1e-3
    if gap <= tolerance * float(gradient.norm()) + torch.finfo(gradient.dtype).tiny:
        return None
    return (
        "its weight is used outside the layer's own call (its gradient is not Σ d aᵀ of that call), so that C_A "
        "and C_δ do not "
        "describe it: give the second use its own parameter, or leave the layer out"
    )
