"""A traced program with its arithmetic in float64: for h_k whose terms cancel beyond what float32 resolves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from spectral_ext.curvature.trace import Program

_RAISED = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}


def raised(value: Any) -> Any:
    """A tensor of a coarser floating-point format in float64 or complex128; anything else as it is."""
    return value.to(_RAISED[value.dtype]) if isinstance(value, Tensor) and value.dtype in _RAISED else value


def in_float64(program: Program) -> Program:
    """The same operations, every floating-point number in float64 or complex128, also where the model casts.

    :func:`.evaluate.evaluate` converts parameters, buffers, data and constants as it meets them.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.graph_copy(program.module.graph, copies)
    for node in copies.values():
        node.meta.pop("operands", None)  # they name the nodes of the other graph
        if "val" in node.meta:
            node.meta["val"] = pytree.tree_map(raised, node.meta["val"])
        if node.op == "call_function":
            node.args = _with_raised_dtypes(node.args)
            node.kwargs = _with_raised_dtypes(node.kwargs)
            _name_the_dtype(node)
    return replace(
        program,
        nodes=[copies[node] for node in program.nodes],
        parameters={name: copies[node] for name, node in program.parameters.items()},
        placeholders=[copies[node] for node in program.placeholders],
        loss=copies[program.loss],
        outputs=[copies[node] for node in program.outputs],
        loss_operations={copies[node] for node in program.loss_operations},
        sites={},
        passing=[],
        raised=True,
    )


def _with_raised_dtypes(arguments: Any) -> Any:
    return pytree.tree_map(lambda leaf: _RAISED.get(leaf, leaf) if isinstance(leaf, torch.dtype) else leaf, arguments)


def _name_the_dtype(node: fx.Node) -> None:
    """An operation that makes numbers out of nothing makes them in the default dtype where it is given none."""
    value = node.meta.get("val")
    schema = getattr(node.target, "_schema", None)
    if schema is None or not isinstance(value, Tensor) or value.dtype not in (torch.float64, torch.complex128):
        return
    reads = any(isinstance(argument.type, torch.TensorType) for argument in schema.arguments)
    takes_dtype = any(argument.name == "dtype" for argument in schema.arguments)
    if takes_dtype and not reads and node.kwargs.get("dtype") is None:
        node.kwargs = {**node.kwargs, "dtype": value.dtype}
