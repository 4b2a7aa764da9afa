"""h_k by double backward: the reference, and the method where a faster one does not apply.

In the output z of a layer whose weight is used once, z = W a + b with a fixed, so that

    h_k = ⟨ż_k, ∂²L/∂z² ż_k⟩,  ż_k = D_k a,

and one graph of ∂L/∂z serves every direction and layer. In the weight, h_k = ⟨D_k, ∂²L/∂W² D_k⟩, which always holds.

The inner products are summed in float64 (:mod:`.sums`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from spectral_ext.curvature.directions import Directions
from spectral_ext.curvature.sums import inner_products
from spectral_ext.layers import CONVOLUTIONS, Layer
from spectral_ext.measurement.batches import Batch, LossFunction, batch_loss


class NoSecondDerivativeError(RuntimeError):
    """An operation of the model has no second derivative; the message names it."""


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
    module, directions = layer.module, directions.stored
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
) -> tuple[dict[str, Tensor], dict[str, set[str]], dict[str, str]]:
    """h_k on one batch by double backward in the layers' outputs, from one graph; and the layers where that is not h.

    Returns:
        ``({name: h (K,) float64}, {name: custom functions}, {name: reason})``: the custom autograd functions behind
        each layer, see :func:`custom_functions`; refused are modules that are not called exactly once, weights that act
        otherwise too, and modules other than Linear and convolutions.
    """
    refused = {
        name: f"{name!r} is not the weight of a Linear or a convolution"
        for name, layer in layers.items()
        if not layer.has_output
    }
    usual = {name: layer for name, layer in layers.items() if name not in refused}
    with layer_outputs(usual) as (inputs, outputs):
        loss = batch_loss(model, loss_fn, batch)
    for name, calls in outputs.items():
        if len(calls) != 1:
            refused[name] = f"{name!r} is called {len(calls)} times in a forward pass"
    usual = {name: layer for name, layer in layers.items() if name not in refused}
    if not usual:
        return {}, {}, refused
    z_of = [outputs[name][0] for name in usual]
    custom = dict(zip(usual, custom_functions(loss, z_of), strict=True))
    by_weight = grad_or_zeros(loss, [layer.weight for layer in usual.values()], retain_graph=True)
    gradients = grad_or_zeros(loss, z_of, create_graph=True)
    refuse_once_differentiable(gradients, custom.values())
    found = {}
    for name, gradient, z, whole in zip(usual, gradients, z_of, by_weight, strict=True):
        forms = []
        for k in range(len(directions[name])):
            one = directions[name][[k]]
            tangents = output_tangents(layers[name], one, inputs[name][0])
            slope = inner_products(tangents, gradient.detach())
            noise = 100 * torch.finfo(z.dtype).eps * tangents.double().norm() * gradient.detach().double().norm()
            if bool((slope - one.along(whole)).abs() > noise):
                refused[name] = f"the loss depends on the weight of {name!r} otherwise than through the layer's output"
                break
            forms.append(_quadratic_form(gradient, z, tangents))
        else:
            found[name] = torch.cat(forms)
    return found, custom, refused


def double_backward_weight(
    model: nn.Module,
    loss_fn: LossFunction,
    batch: Batch,
    layers: Mapping[str, Layer],
    directions: Mapping[str, Directions],
) -> tuple[dict[str, Tensor], dict[str, set[str]]]:
    """h_k of each layer on one batch, by double backward in the layers' weights; and the custom functions behind it."""
    loss = batch_loss(model, loss_fn, batch)
    weights = [layer.weight for layer in layers.values()]
    custom = dict(zip(layers, custom_functions(loss, weights), strict=True))
    gradients = grad_or_zeros(loss, weights, create_graph=True)
    refuse_once_differentiable(gradients, custom.values())
    found = {}
    for name, weight, gradient in zip(layers, weights, gradients, strict=True):
        along = directions[name]
        forms = [_quadratic_form(gradient, weight, along[[k]].weight_tangents()) for k in range(len(along))]
        found[name] = torch.cat(forms)
    return found, custom


def custom_functions(loss: Tensor, tensors: list[Tensor]) -> list[set[str]]:
    """For each tensor, the custom autograd functions on the way from it to the loss.

    The operations of torch have a second derivative or raise an error. A function that somebody wrote in Python or
    C++ may have a backward pass that autograd cannot differentiate, and then double backward silently takes its
    derivative for zero.
    """
    if loss.grad_fn is None:
        return [set() for _ in tensors]
    bits: dict[Any, int] = {}  # autograd node → the tensors that its backward pass reaches
    for i, tensor in enumerate(tensors):
        node = tensor.grad_fn if tensor.grad_fn is not None else torch.autograd.graph.get_gradient_edge(tensor).node
        bits[node] = bits.get(node, 0) | 1 << i
    reached: dict[Any, int] = {}
    found: list[set[str]] = [set() for _ in tensors]
    stack = [(loss.grad_fn, False)]
    while stack:
        node, ready = stack.pop()
        inputs = [n for n, _ in node.next_functions if n is not None]
        if not ready:
            if node not in reached:
                reached[node] = 0
                stack.append((node, True))
                stack.extend((n, False) for n in inputs if n not in reached)
            continue
        behind = 0
        for n in inputs:
            behind |= reached[n]
        if behind and _is_custom(node):
            for i in range(len(tensors)):
                if behind >> i & 1:
                    found[i].add(node.name().removesuffix("Backward"))
        reached[node] = behind | bits.get(node, 0)
    return found


def _is_custom(node: Any) -> bool:
    """Nodes of Python functions are instances of a class of their own; those of C++ functions carry a C++ type name.

    Torch puts ``BackwardHookFunction``, an identity in both directions, around a module with full backward hooks.
    """
    if node.name() == "BackwardHookFunctionBackward":
        return False
    return isinstance(node, torch.autograd.function.BackwardCFunction) or "CppNode" in node.name()


def refuse_once_differentiable(gradients: Iterable[Tensor], custom: Iterable[set[str]]) -> None:
    """Raises NoSecondDerivativeError where a backward pass is marked as ``once_differentiable``.

    Its gradients come from a node that raises an error if it is reached, but whose inputs are constants, so that
    autograd does not reach it and takes the second derivative for zero.
    """
    names = set().union(*custom)
    if not names:
        return
    seen: set[Any] = set()
    stack = [gradient.grad_fn for gradient in gradients if gradient.grad_fn is not None]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.name().split("::")[-1] in ("Error", "DelayedError"):
            raise NoSecondDerivativeError(f"{', '.join(sorted(names))}: its backward pass is once_differentiable")
        stack.extend(n for n, _ in node.next_functions if n is not None)


def grad_or_zeros(loss: Tensor, inputs: list[Tensor], **options: bool) -> tuple[Tensor, ...]:
    if not loss.requires_grad:
        return tuple(torch.zeros_like(tensor) for tensor in inputs)
    found = torch.autograd.grad(loss, inputs, allow_unused=True, **options)  # type: ignore[call-overload]
    return tuple(torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True))


def _quadratic_form(gradient: Tensor, at: Tensor, tangents: Tensor) -> Tensor:
    """⟨t, ∂(gradient)/∂(at) t⟩ for tangents (1, *at.shape): (1,) float64.

    A gradient that does not depend on ``at`` gives 0: the loss is linear in it, or a custom function hides the
    dependence, which :func:`custom_functions` reports.
    """
    zero = torch.zeros(1, dtype=torch.float64, device=tangents.device)
    if not gradient.requires_grad:
        return zero
    (product,) = torch.autograd.grad(gradient, at, tangents[0], retain_graph=True, allow_unused=True)
    return zero if product is None else inner_products(tangents, product.detach())
