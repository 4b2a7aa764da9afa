"""Hooks on output tensors for one batch: which layer saw which input and which per-sample error."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spectral_ext.capture.skips import has_skip
from spectral_ext.layers import Layer, layer_name
from spectral_ext.measurement.batches import Batch, LossFunction, batch_loss, first_tensor
from spectral_ext.measurement.checks import check_loss
from spectral_ext.measurement.masks import RowMask
from spectral_ext.ops import output_factor


@dataclass
class Call:
    """One call of a layer: input and error with the samples first, zero in rows that do not count."""

    x: Tensor
    d: Tensor
    source: Hashable
    """Layers with the same source were called with the same x, and the same rows count."""
    keep: Tensor | None = None
    """(B, S), bool: the rows that count; None where all do."""

    @property
    def left_out(self) -> int:
        return 0 if self.keep is None else self.keep.numel() - int(self.keep.sum())

    def kept(self, tensor: Tensor) -> Tensor:
        """The rows of x or d that count, (N, n)."""
        return tensor.reshape(-1, tensor.shape[-1]) if self.keep is None else tensor[self.keep]


Visitor = Callable[[str, Call], None]


class Calls:
    """What the forward pass of one batch did with each layer."""

    def __init__(self, model: nn.Module, layers: Mapping[str, Layer], batch: Batch, mask: RowMask | None) -> None:
        self.samples, self.error_scale, self.mask = batch.samples, batch.count, mask
        self.count = dict.fromkeys(layers, 0)
        self.last = ""
        """The last module with a weight of two or more dimensions that was called, hooked as a layer or not."""
        self.forward_is_over = False
        """From then on calls repeat earlier ones: activation checkpointing calls modules again in the backward pass."""
        self.reached: set[str] = set()
        self.notes: dict[str, list[str]] = {}
        self.behind_norm: dict[str, nn.Module] = {}
        """Layer → the norm whose output it reads."""
        self.norm_outputs: dict[tuple[int, torch.Size], tuple[Tensor, nn.Module]] = {}
        """Kept for the time of the pass, so that no other tensor takes the same memory."""
        self.block_errors: dict[str, Tensor] = {}
        self.blocks = {name: _enclosing_blocks(model, name) for name in layers}

    def problem(self, name: str, gradient: Tensor | None) -> str | None:
        """Why the layer has no factors on this batch, or None."""
        if self.count[name] == 0:
            used = gradient is not None and bool(gradient.any())
            return "the forward pass does not call it" + (", but uses its weight elsewhere" if used else "")
        if self.count[name] > 1:
            return f"it is called {self.count[name]} times in a forward pass, so that its weight is used more than once"
        if name not in self.reached:
            return "the loss does not depend on its output"
        return None

    def block_factors(self, layers: Mapping[str, Layer]) -> dict[str, tuple[str, Tensor]]:
        """Of the nearest block with as many channels: (block, the rows d at its output), or of a convolution Σ d dᵀ."""
        found = {}
        factors: dict[tuple[str, bool], Tensor] = {}
        for name, layer in layers.items():
            if self.count[name] != 1 or name not in self.reached:
                continue
            for block in self.blocks[name]:
                error = self.block_errors.get(block)
                if error is None or error.dim() != (layer.weight.dim() if layer.is_convolution else error.dim()):
                    continue
                if error.shape[1 if layer.is_convolution else -1] != layer.matrix_shape[0] or error.dim() < 2:
                    continue
                key = block, layer.is_convolution
                if key not in factors and layer.is_convolution:
                    factors[key] = output_factor(error, convolution=True, scale="sum")
                elif key not in factors:
                    factors[key] = error.reshape(-1, error.shape[-1])
                found[name] = block, factors[key]
                break
        return found


def _enclosing_blocks(model: nn.Module, name: str) -> list[str]:
    """Modules around the layer that are items of a ModuleList or Sequential, nearest first: residual blocks usually."""
    parts = name.split(".")
    blocks = []
    for end in range(len(parts) - 1, 0, -1):
        if not isinstance(model.get_submodule(".".join(parts[: end - 1])), (nn.ModuleList, nn.Sequential)):
            continue
        path = ".".join(parts[:end])
        if not isinstance(model.get_submodule(path), (nn.ModuleList, nn.Sequential)):
            blocks.append(path)
    return blocks


@contextlib.contextmanager
def recording(
    model: nn.Module, layers: Mapping[str, Layer], batch: Batch, mask: RowMask | None, visit: Visitor
) -> Iterator[Calls]:
    """Hooks for one forward and backward pass, which :func:`pass_over` runs."""
    calls = Calls(model, layers, batch, mask)

    def layer_hook(name: str, layer: Layer) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
            if calls.forward_is_over:
                return None
            calls.count[name] += 1
            x = first_tensor(args) if args else first_tensor(kwargs)
            if calls.count[name] > 1 or x is None or not isinstance(output, Tensor) or not output.requires_grad:
                return None
            output_of_norm, norm = calls.norm_outputs.get((x.data_ptr(), x.shape), (None, None))
            if norm is not None and output_of_norm is not None and output_of_norm._version == x._version:
                calls.behind_norm[name] = norm
            held = x.detach()
            source = x.data_ptr(), x.shape, x.stride(), x._version

            def on_gradient(gradient: Tensor) -> None:
                calls.reached.add(name)
                _visit(calls, visit, name, layer, held, gradient, source)

            output.register_hook(on_gradient)
            return output.clone()  # an operation in place behind the layer would take the hook with it

        return hook

    def norm_hook(module: nn.Module, args: tuple, output: Any) -> None:
        if isinstance(output, Tensor) and not calls.forward_is_over:
            calls.norm_outputs[output.data_ptr(), output.shape] = output.detach(), module

    def block_hook(block: str) -> Callable:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            tensor = first_tensor(output)
            if calls.forward_is_over or block in calls.block_errors:
                return
            if tensor is None or not tensor.requires_grad or tensor.dim() < 2:
                return
            if has_skip(first_tensor(args), tensor):
                tensor.register_hook(
                    lambda gradient: calls.block_errors.__setitem__(block, _error(gradient, batch.count))
                )

        return hook

    def order_hook(name: str) -> Callable:
        def hook(*_: Any) -> None:
            if not calls.forward_is_over:
                calls.last = name

        return hook

    blocks = {block for found in calls.blocks.values() for block in found}
    handles = []
    try:
        for name, module in model.named_modules():
            if type(module).__name__.endswith(("LayerNorm", "RMSNorm")):
                handles.append(module.register_forward_hook(norm_hook))
            if _has_matrix(module):
                handles.append(module.register_forward_hook(order_hook(layer_name(name))))
        for name in blocks:
            handles.append(model.get_submodule(name).register_forward_hook(block_hook(name)))
        for name, layer in layers.items():  # before hooks of the user's, which may change the output
            handles.append(layer.module.register_forward_hook(layer_hook(name, layer), with_kwargs=True, prepend=True))
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _has_matrix(module: nn.Module) -> bool:
    return nn.utils.parametrize.is_parametrized(module) or any(
        parameter is not None and parameter.dim() > 1 for parameter in module._parameters.values()
    )


def pass_over(
    model: nn.Module, loss_fn: LossFunction, batch: Batch, label: str, layers: Mapping[str, Layer], calls: Calls
) -> tuple[float, dict[str, Tensor | None]]:
    """The loss of a batch and its gradient in each layer's weight, None where it does not depend on the weight.

    Raises:
        RuntimeError: the model uses reentrant activation checkpointing.
        ValueError: the loss is no finite scalar or has no gradient.
    """
    loss = batch_loss(model, loss_fn, batch)
    calls.forward_is_over = True
    check_loss(model, loss, batch, label)
    weights = [layer.weight for layer in layers.values()]
    try:
        found = torch.autograd.grad(loss, weights, allow_unused=True)
    except RuntimeError as error:
        if "use_reentrant" in str(error) or "Checkpointing is not compatible" in str(error):
            raise RuntimeError(
                "the model uses reentrant activation checkpointing, through which torch.autograd.grad cannot pass: "
                "call torch.utils.checkpoint.checkpoint(…, use_reentrant=False), or switch checkpointing off "
                "(gradient_checkpointing_disable() of a Hugging Face model)"
            ) from error
        raise
    return loss.item(), dict(zip(layers, found, strict=True))


def _error(gradient: Tensor, count: float) -> Tensor:
    wide = gradient.float() if gradient.dtype in (torch.float16, torch.bfloat16) else gradient
    return wide.detach() * count


def _visit(
    calls: Calls, visit: Visitor, name: str, layer: Layer, x: Tensor, gradient: Tensor, source: Hashable
) -> None:
    """Bring (x, d) to the ops' form: samples first, at least single precision."""
    d = _error(gradient, calls.error_scale)
    x = x.to(d.dtype)
    if layer.is_convolution:
        if x.dim() < layer.weight.dim():
            x, d = x.unsqueeze(0), d.unsqueeze(0)
    elif x.dim() == 1:
        x, d = x.unsqueeze(0), d.unsqueeze(0)
    if d.shape[0] != calls.samples:
        x, d = _samples_first(calls, name, layer, x, d)
    with torch.no_grad():
        keep = None if calls.mask is None or layer.is_convolution else calls.mask.rows_that_count(x, d)
        if keep is not None:
            x, d = x * keep.unsqueeze(-1), d * keep.unsqueeze(-1)
            source = source, keep.cpu().numpy().tobytes()
        visit(name, Call(x, d, source, keep))


def _samples_first(calls: Calls, name: str, layer: Layer, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    samples, notes = calls.samples, calls.notes.setdefault(name, [])
    if not layer.is_convolution and x.dim() == 3 and x.shape[1] == samples:
        notes.append("its input has the samples in dimension 1 (sequence first)")
        return x.transpose(0, 1), d.transpose(0, 1)
    if not layer.is_convolution and x.shape[0] % samples == 0:
        notes.append(
            f"its input has {x.shape[0]} leading rows for {samples} samples: consecutive rows are taken as a sample"
        )
        return x.reshape(samples, -1, x.shape[-1]), d.reshape(samples, -1, d.shape[-1])
    notes.append(
        f"its input has {x.shape[0]} leading rows for {samples} samples: which belong together is unknown, so that the "
        "per-sample Gauss–Newton form is left out"
    )
    return x, d
