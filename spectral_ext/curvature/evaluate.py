"""Run a traced program on values, recorded by autograd from the measured weights on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from spectral_ext.curvature.precision import raised
from spectral_ext.curvature.trace import Program, UntraceableError

aten = torch.ops.aten

Environment = dict[fx.Node, Any]


def evaluate(program: Program, arguments: list[Tensor], weights: set[fx.Node]) -> Environment:
    """The value of every node; the ``weights`` require gradients.

    Raises:
        UntraceableError: the loss of the graph is not finite, although the model's is.
    """
    needed = set(program.nodes)
    env: Environment = {}
    for node, value in zip(program.placeholders, arguments, strict=True):
        if node in needed:
            held = _held(program, value)
            env[node] = held.requires_grad_() if node in weights else held
    run(program, program.nodes, env)
    if not bool(env[program.loss].isfinite()):
        empty = [str(node.meta.get("owner", "the loss")) for node in program.nodes if node.target is aten.fill.Scalar]
        why = f", because memory that was never written reaches it (in {', '.join(dict.fromkeys(empty))})"
        raise UntraceableError("the loss of the traced graph is not finite" + (why if empty else ""))
    return env


def run(program: Program, nodes: list[fx.Node], env: Environment) -> None:
    """Evaluate ``nodes`` in order into ``env``, which holds what they depend on."""
    with torch.enable_grad():
        for node in nodes:
            if node.op == "get_attr":
                env[node] = _held(program, _attribute(program.module, str(node.target)))
            elif node.op == "call_function":
                args, kwargs = arguments_of(node, env)
                env[node] = node.target(*args, **kwargs)  # type: ignore[operator]
            elif node.op != "placeholder":
                raise UntraceableError(f"the graph holds a {node.op} node")


def arguments_of(node: fx.Node, env: Environment) -> tuple[tuple, dict[str, Any]]:
    return fx.map_arg((node.args, node.kwargs), env.__getitem__)  # type: ignore[return-value]


def detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, dict):
        return {key: detached(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(detached(item) for item in value)
    return value


def _held(program: Program, value: Any) -> Any:
    """A value that the program is given, detached, in the program's precision."""
    return detached(raised(value) if program.raised else value)


def _attribute(module: nn.Module, path: str) -> Any:
    value: Any = module
    for part in path.split("."):
        value = getattr(value, part)
    return value
