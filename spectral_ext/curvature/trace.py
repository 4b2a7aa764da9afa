"""One pass of model and loss as a graph of aten operations, with the boundary between model and loss marked.

The *loss operations* are those that depend on the weights through the model's output only: every path from a parameter
to them passes an output of the model. (A Hugging Face model that computes its own loss returns the logits too, so that
its loss operations are found just the same.) Their curvature, carried back by the Jacobian of the output, is the
Gauss–Newton part of h.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensor, dispatch_functionalize
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, get_proxy_mode, get_proxy_slot, make_fx
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from spectral_ext.curvature.normal_form import bring_to_normal_form
from spectral_ext.curvature.objective import call_with
from spectral_ext.measurement.batches import Batch, LossFunction, batch_loss, split_batch


class UntraceableError(RuntimeError):
    """Model or loss cannot be traced; the message says why."""


@dataclass
class Program:
    """A traced objective, for the shapes it was traced with."""

    module: fx.GraphModule
    nodes: list[fx.Node]
    """What the loss depends on, in execution order."""
    parameters: dict[str, fx.Node]
    placeholders: list[fx.Node]
    loss: fx.Node
    outputs: list[fx.Node]
    """The model's floating-point outputs that the loss is computed from."""
    loss_operations: set[fx.Node] = field(default_factory=set)
    sites: dict[fx.Node, Any] = field(default_factory=dict)
    """Weight → where its directions enter, see :mod:`.sites`."""
    passing: list[fx.Node] = field(default_factory=list)
    """The nodes through which a tangent can pass, in order; filled with the first site."""
    of_one_batch: bool = False
    """Control flow or shapes depended on the batch's values: the trace serves no other batch."""
    raised: bool = False
    """Whether the arithmetic is raised to float64, see :mod:`.precision`."""

    @property
    def precision(self) -> torch.dtype:
        """The coarsest floating-point format among the results: a model in float64 may compute its loss in float32."""
        values = (value for node in self.nodes for value in pytree.tree_leaves(node.meta.get("val")))
        kinds = {value.dtype for value in values if isinstance(value, Tensor)}
        inexact = {kind for kind in kinds if kind.is_floating_point or kind.is_complex}
        return torch.float64 if inexact <= {torch.float64, torch.complex128} else torch.float32

    def arguments(self, model: nn.Module, batch: Batch) -> list[Tensor]:
        """The value of each placeholder."""
        tensors = [p.detach() for p in model.parameters()] + [b.detach() for b in model.buffers()]
        return tensors + [leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)]


def trace(model: nn.Module, loss_fn: LossFunction, batch: Batch) -> Program:
    """Trace ``loss_fn(model(·), target)`` on one batch, mutations removed, fused norms in one form on every device.

    Control flow may depend on the batch, for example on a mask; then the trace is ``of_one_batch``.

    Raises:
        UntraceableError: data-dependent control flow, or anything else that make_fx refuses.
    """
    leaves, tree = pytree.tree_flatten(batch)
    where = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    parameters = dict(model.named_parameters())
    held = [*parameters.values(), *model.buffers()]
    reads = _Reads(len(parameters))

    def evaluate(state: list[Tensor], tensors: list[Tensor]) -> tuple:
        full = list(leaves)
        for i, tensor in zip(where, tensors, strict=True):
            full[i] = tensor
        replaced = {id(old): new for old, new in zip(held, state, strict=True)}
        with reads:
            return call_with(
                model, replaced, lambda: _loss_and_outputs(model, loss_fn, pytree.tree_unflatten(full, tree))
            )

    state = [p.detach() for p in parameters.values()] + [b.detach().clone() for b in model.buffers()]
    # One mode for the shapes of all nodes: make_fx would make one per node, which takes half of the tracing time.
    shapes = tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True)))
    try:
        with torch.no_grad(), shapes, _owners_recorded(model) as owners:
            module = make_fx(dispatch_functionalize(evaluate))(state, [leaves[i] for i in where])
    except Exception as error:
        raise UntraceableError(
            f"the model or loss cannot be traced ({type(error).__name__}: {first_line(error)})"
        ) from error
    owners.annotate(module.graph)
    bring_to_normal_form(module.graph)
    nodes = list(module.graph.nodes)
    placeholders = [node for node in nodes if node.op == "placeholder"]
    loss, *outputs = (node for node in nodes[-1].args[0] if isinstance(node, fx.Node))
    program = Program(
        module=module,
        nodes=_ancestors(nodes, loss),
        parameters=dict(zip(parameters, placeholders, strict=False)),
        placeholders=placeholders,
        loss=loss,
        outputs=[],
        of_one_batch=reads.data,
    )
    needed = set(program.nodes)
    program.outputs = [node for node in dict.fromkeys(outputs) if node in needed and node is not loss]
    program.loss_operations = _dominated(program)
    return program


def _loss_and_outputs(model: nn.Module, loss_fn: LossFunction, batch: Batch) -> tuple[Tensor, ...]:
    outputs: list[Tensor] = []

    def recorded(*args: Any, **kwargs: Any) -> Any:
        output = model(*args, **kwargs)
        outputs.extend(t for t in _tensors(output) if t.is_floating_point() or t.is_complex())
        return output

    loss = batch_loss(recorded, loss_fn, batch)  # type: ignore[arg-type]
    return (loss, *outputs)


class _Reads(TorchDispatchMode):
    """Lets Python read values that do not depend on the weights, which make_fx alone refuses."""

    def __init__(self, parameters: int) -> None:
        super().__init__()
        self.parameters = parameters
        self.data = False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if torch.Tag.dynamic_output_shape in func.tags:
            self.data = True
        mode = get_proxy_mode()
        if torch.Tag.data_dependent_output in func.tags and mode is not None:
            args = pytree.tree_map_only(FunctionalTensor, FunctionalTensor.from_functional, args)
            proxies = [get_proxy_slot(x, mode.tracer, None) for x in pytree.tree_leaves(args) if isinstance(x, Tensor)]
            if not any(self._depends_on_weights(p.proxy.node) for p in proxies if p is not None):
                self.data = True
                with disable_proxy_modes_tracing():
                    return func(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _depends_on_weights(self, node: fx.Node) -> bool:
        weights = {n for i, n in enumerate(node.graph.nodes) if i < self.parameters}
        seen, stack = set(), [node]
        while stack:
            one = stack.pop()
            if one in weights:
                return True
            if one not in seen:
                seen.add(one)
                stack += one.all_input_nodes
        return False


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from _tensors(value)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from _tensors(value)
    elif hasattr(tree, "__dataclass_fields__"):
        yield from _tensors(list(vars(tree).values()))


@dataclass
class _Owners:
    spans: list[tuple[int, int, str, bool]] = field(default_factory=list)

    def annotate(self, graph: fx.Graph) -> None:
        """meta["owner"]: the innermost module whose forward made the node; meta["norm"]: made inside a norm module."""
        nodes = list(graph.nodes)
        for start, end, name, norm in self.spans:  # inner modules finish first
            for node in nodes[start:end]:
                node.meta.setdefault("owner", name)
                if norm:
                    node.meta["norm"] = True


@contextlib.contextmanager
def _owners_recorded(model: nn.Module) -> Iterator[_Owners]:
    owners, stack = _Owners(), []

    def count() -> int:
        mode = get_proxy_mode()
        return 0 if mode is None else len(mode.tracer.graph.nodes)

    def enter(*_: Any) -> None:
        stack.append(count())

    def leave(name: str, norm: bool) -> Callable:
        return lambda *_: owners.spans.append((stack.pop(), count(), name, norm))

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave(name, "Norm" in type(module).__name__)))
    try:
        yield owners
    finally:
        for handle in handles:
            handle.remove()


def _ancestors(nodes: list[fx.Node], of: fx.Node) -> list[fx.Node]:
    needed = {of}
    for node in reversed(nodes):
        if node in needed:
            needed.update(node.all_input_nodes)
    return [node for node in nodes if node in needed]


def _dominated(program: Program) -> set[fx.Node]:
    """Nodes that a parameter reaches, but only through an output of the model."""
    outputs, free, through = set(program.outputs), set(program.parameters.values()), set()
    for node in program.nodes:
        inputs = node.all_input_nodes
        if any(i in free and i not in outputs for i in inputs):
            free.add(node)
        elif any(i in through or (i in outputs and i in free) for i in inputs):
            through.add(node)
    return through


def first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else ""


def signature(batch: Batch) -> tuple:
    """Two batches of the same signature share a trace."""
    split_batch(batch)
    leaves, tree = pytree.tree_flatten(batch)
    return str(tree), tuple(
        (leaf.shape, leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else repr(leaf) for leaf in leaves
    )
