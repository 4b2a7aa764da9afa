"""h_k by double backward: the reference, and the way out where a faster method does not apply.

In the output z of a layer whose weight is used once, z = W a + b with a fixed, so that

    h_k = ⟨ż_k, ∂²L/∂z² ż_k⟩,  ż_k = D_k a,

and one graph of ∂L/∂z serves every direction and layer. In the weight, h_k = ⟨D_k, ∂²L/∂W² D_k⟩, which always holds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from spectral_ext.curvature.directions import Directions
from spectral_ext.layers import CONVOLUTIONS, MEASURABLE_TYPES, Layer
from spectral_ext.measurement.batches import Batch, LossFunction, batch_loss


class NotApplicableError(Exception):
    """A method does not apply to a layer; the message says why."""


@contextlib.contextmanager
def layer_outputs(layers: Mapping[str, Layer]) -> Iterator[tuple[dict[str, list], dict[str, list]]]:
    """Lists of inputs and outputs of each layer's calls, filled by a forward pass."""
    inputs: dict[str, list] = {name: [] for name in layers}
    outputs: dict[str, list] = {name: [] for name in layers}

    def record(name: str):
        def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
            output = output if output.requires_grad else output.detach().requires_grad_()
            inputs[name].append(args[0].detach())
            outputs[name].append(output)
            return output.clone()  # an in-place activation downstream must not overwrite z

        return hook

    handles = [layer.module.register_forward_hook(record(name)) for name, layer in layers.items()]
    try:
        yield inputs, outputs
    finally:
        for handle in handles:
            handle.remove()


def output_tangents(layer: Layer, directions: Directions, x: Tensor) -> Tensor:
    """ż_k = D_k a, (K, *z.shape), from the layer's input."""
    module = layer.module
    if not isinstance(module, CONVOLUTIONS):
        return directions.linear_output(x)
    functional = {1: nn.functional.conv1d, 2: nn.functional.conv2d, 3: nn.functional.conv3d}[layer.weight.dim() - 2]
    batched = x if x.dim() == layer.weight.dim() else x.unsqueeze(0)

    def convolve(weight: Tensor) -> Tensor:
        return functional(batched, weight, None, module.stride, module.padding, module.dilation, module.groups)

    z = directions.convolution_output(convolve, layer.groups)
    return z if batched is x else z.squeeze(1)


def double_backward_output(
    model: nn.Module,
    loss_fn: LossFunction,
    batch: Batch,
    layers: Mapping[str, Layer],
    directions: Mapping[str, Directions],
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """h_k on one batch by double backward in the layers' outputs, from one graph; and the layers where that is not h.

    Returns:
        ``({name: h (K,)}, {name: reason})``: refused are modules that are not called exactly once, weights that act
        otherwise too, and modules other than Linear and convolutions.
    """
    others = [layer for layer in layers.values() if not isinstance(layer.module, MEASURABLE_TYPES)]
    refused = {layer.name: f"a {layer.kind} is no Linear or convolution" for layer in others}
    usual = {name: layer for name, layer in layers.items() if name not in refused}
    with layer_outputs(usual) as (inputs, outputs):
        loss = batch_loss(model, loss_fn, batch)
    for name, calls in outputs.items():
        if len(calls) != 1:
            refused[name] = f"{name!r} is called {len(calls)} times in a forward pass"
    usual = {name: layer for name, layer in layers.items() if name not in refused}
    if not usual:
        return {}, refused
    z_of = [outputs[name][0] for name in usual]
    by_weight = grad_or_zeros(loss, [layer.weight for layer in usual.values()], retain_graph=True)
    gradients = grad_or_zeros(loss, z_of, create_graph=True)
    found = {}
    for name, gradient, z, whole in zip(usual, gradients, z_of, by_weight, strict=True):
        forms = []
        for k in range(len(directions[name])):
            one = directions[name][[k]]
            (tangent,) = output_tangents(layers[name], one, inputs[name][0])
            slope = (tangent * gradient.detach()).sum()
            noise = 100 * torch.finfo(z.dtype).eps * tangent.norm() * gradient.detach().norm()
            if bool((slope - one.along(whole)).abs() > noise):
                refused[name] = f"the loss depends on the weight of {name!r} otherwise than through the layer's output"
                break
            forms.append(_quadratic_form(gradient, z, tangent))
        else:
            found[name] = torch.stack(forms)
    return found, refused


def double_backward_weight(
    model: nn.Module,
    loss_fn: LossFunction,
    batch: Batch,
    layers: Mapping[str, Layer],
    directions: Mapping[str, Directions],
) -> dict[str, Tensor]:
    """h_k of each layer on one batch, by double backward in the layers' weights."""
    loss = batch_loss(model, loss_fn, batch)
    weights = [layer.weight for layer in layers.values()]
    gradients = grad_or_zeros(loss, weights, create_graph=True)
    return {
        name: torch.stack(
            [
                _quadratic_form(gradient, weight, directions[name][[k]].weight_tangents()[0])
                for k in range(len(directions[name]))
            ]
        )
        for name, weight, gradient in zip(layers, weights, gradients, strict=True)
    }


def grad_or_zeros(loss: Tensor, inputs: list[Tensor], **options: bool) -> tuple[Tensor, ...]:
    if not loss.requires_grad:
        return tuple(torch.zeros_like(tensor) for tensor in inputs)
    found = torch.autograd.grad(loss, inputs, allow_unused=True, **options)  # type: ignore[call-overload]
    return tuple(torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True))


def _quadratic_form(gradient: Tensor, at: Tensor, tangent: Tensor) -> Tensor:
    """⟨t, ∂(gradient)/∂(at) t⟩."""
    if not gradient.requires_grad:
        return tangent.new_zeros(())
    (product,) = torch.autograd.grad(gradient, at, tangent, retain_graph=True, allow_unused=True)
    return tangent.new_zeros(()) if product is None else (product * tangent).sum().detach()
