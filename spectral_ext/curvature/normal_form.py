"""One form for what devices and code paths spell differently, so that one set of rules serves all.

In place → out of place; every batch, layer, group and RMS norm → the functions below; division by a tensor →
multiplication by its reciprocal; baddbmm → bmm, mul, add; a copy into a tensor → the source in the tensor's shape and
dtype; uninitialised memory → NaN, so that a graph that reads it cannot give a number.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

aten = torch.ops.aten


def fixed_norm(x: Tensor, weight: Any, bias: Any, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    """Batch norm in eval mode: affine in x, and written so, which makes its backward pass one product."""
    scale, shift = fixed_norm_coefficients(x, weight, bias, mean, var, eps)
    return torch.addcmul(shift, x, scale)


def fixed_norm_coefficients(x: Tensor, weight: Any, bias: Any, mean: Tensor, var: Tensor, eps: float):
    """(scale, shift), shaped to broadcast over x."""
    scale = (var + eps).rsqrt() if weight is None else weight * (var + eps).rsqrt()
    shift = -mean * scale if bias is None else bias - mean * scale
    shape = (-1, *(1,) * (x.dim() - 2))
    return scale.view(shape), shift.view(shape)


def batch_norm(x: Tensor, weight: Any, bias: Any, eps: float) -> Tensor:
    """Batch norm in train mode: statistics of x over all but dimension 1."""
    return F.batch_norm(x, None, None, weight, bias, True, 0.0, eps)


def layer_norm(x: Tensor, shape: list[int], weight: Any, bias: Any, eps: float) -> Tensor:
    return F.layer_norm(x, shape, weight, bias, eps)


def group_norm(x: Tensor, groups: int, weight: Any, bias: Any, eps: float) -> Tensor:
    return F.group_norm(x, groups, weight, bias, eps)


def rms_norm(x: Tensor, shape: list[int], weight: Any, eps: float | None) -> Tensor:
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    y = x * (x.square().mean(list(range(-len(shape), 0)), keepdim=True) + eps).rsqrt()
    return y if weight is None else y * weight


def _batch_norm_args(x: Any, w: Any, b: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float, *_: Any):
    return (batch_norm, (x, w, b, eps)) if training else (fixed_norm, (x, w, b, mean, var, eps))


_NORMS: dict[str, Callable] = {
    "native_batch_norm": _batch_norm_args,
    "cudnn_batch_norm": _batch_norm_args,
    "miopen_batch_norm": _batch_norm_args,
    "_native_batch_norm_legit": _batch_norm_args,
    "_native_batch_norm_legit.no_stats": lambda x, w, b, training, momentum, eps: (batch_norm, (x, w, b, eps)),
    "_native_batch_norm_legit_no_training": lambda x, w, b, m, v, momentum, eps: (fixed_norm, (x, w, b, m, v, eps)),
    "_native_batch_norm_legit_functional": _batch_norm_args,
    "_batch_norm_with_update": lambda x, w, b, m, v, momentum, eps: (batch_norm, (x, w, b, eps)),
    "_batch_norm_with_update_functional": lambda x, w, b, m, v, momentum, eps: (batch_norm, (x, w, b, eps)),
    "_batch_norm_no_update": lambda x, w, b, m, v, momentum, eps: (fixed_norm, (x, w, b, m, v, eps)),
    "native_layer_norm": lambda x, shape, w, b, eps: (layer_norm, (x, shape, w, b, eps)),
    "native_group_norm": lambda x, w, b, N, C, HxW, groups, eps: (group_norm, (x, groups, w, b, eps)),
    "_fused_rms_norm": lambda x, shape, w, eps: (rms_norm, (x, shape, w, eps)),
}


def bring_to_normal_form(graph: fx.Graph) -> None:
    _out_of_place(graph)
    for node in list(graph.nodes):
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        name = str(node.target).removeprefix("aten.").removesuffix(".default")
        if node.target in _UNINITIALISED:
            _fill(graph, node)
        elif node.target in (aten.copy.default, aten.fill.Tensor):
            _replace(graph, node, _copied(graph, node))
        elif name in _NORMS:
            _replace_norm(graph, node, *_NORMS[name](*node.args))
        elif node.target is aten.div.Tensor and isinstance(node.args[1], fx.Node):
            inverse = _insert(graph, node, aten.reciprocal.default, (node.args[1],), node.args[1].meta.get("val"))
            _replace(graph, node, _insert(graph, node, aten.mul.Tensor, (node.args[0], inverse)))
        elif node.target is aten.baddbmm.default:
            product = _insert(graph, node, aten.bmm.default, node.args[1:3])
            product = _insert(graph, node, aten.mul.Tensor, (product, node.kwargs.get("alpha", 1)))
            held = _insert(graph, node, aten.mul.Tensor, (node.args[0], node.kwargs.get("beta", 1)))
            _replace(graph, node, _insert(graph, node, aten.add.Tensor, (held, product)))
    graph.lint()


_UNINITIALISED = {
    aten.empty.memory_format, aten.empty_strided.default, aten.empty_like.default, aten.new_empty.default,
    aten.new_empty_strided.default, aten.empty_permuted.default,
}  # fmt: skip


def _fill(graph: fx.Graph, node: fx.Node) -> None:
    """Behind memory that is not initialised, a fill with NaN, or with the largest integer."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or value.dtype == torch.bool:
        return
    real = value.is_floating_point() or value.is_complex()
    filler = float("nan") if real else torch.iinfo(value.dtype).max
    with graph.inserting_after(node):
        filled = graph.call_function(aten.fill.Scalar, (node, filler))
    filled.meta = dict(node.meta)
    node.replace_all_uses_with(filled, delete_user_cb=lambda user: user is not filled)


def _copied(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """What ``copy(written, source)`` and ``fill(written, source)`` return: the values of ``written`` do not matter."""
    source, value = node.args[1], node.meta["val"]
    assert isinstance(source, fx.Node)
    held = source.meta["val"]
    if held.dtype != value.dtype:
        source = _insert(graph, node, aten._to_copy.default, (source,))
        source.kwargs = {"dtype": value.dtype}
        source.meta["val"] = held.to(value.dtype)
    return _insert(graph, node, aten.expand.default, (source, list(value.shape)), value)


def _out_of_place(graph: fx.Graph) -> None:
    """In-place operations that functionalisation left inside composite kernels → their functional twins."""
    nodes = list(graph.nodes)
    for position, node in enumerate(nodes):
        target = node.target
        if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
            continue
        if not target._schema.is_mutable or not target._opname.endswith("_"):
            continue
        twin = getattr(getattr(aten, target._opname[:-1], None), target._overloadname, None)
        if twin is None or target is aten.copy_.default:
            continue
        node.target = twin
        written = node.args[0]
        assert isinstance(written, fx.Node)
        for later in nodes[position + 1 :]:
            later.replace_input_with(written, node)


def _insert(graph: fx.Graph, before: fx.Node, target: Any, args: tuple, value: Any = None) -> fx.Node:
    with graph.inserting_before(before):
        node = graph.call_function(target, args)
    node.meta = dict(before.meta)
    if value is not None:
        node.meta["val"] = value
    return node


def _replace(graph: fx.Graph, node: fx.Node, by: fx.Node) -> None:
    node.replace_all_uses_with(by)
    graph.erase_node(node)


def _replace_norm(graph: fx.Graph, node: fx.Node, target: Any, args: tuple) -> None:
    value = node.meta.get("val")
    new = _insert(graph, node, target, args, value[0] if isinstance(value, (list, tuple)) else value)
    for user in list(node.users):
        if user.target is operator.getitem and user.args[1] == 0:
            user.replace_all_uses_with(new)
            graph.erase_node(user)
    if not node.users:
        graph.erase_node(node)
