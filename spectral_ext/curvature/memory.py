"""How much memory a measurement takes, counted from the traced shapes before anything is run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from spectral_ext.curvature.rules import RULES, operands
from spectral_ext.curvature.sites import Site, has_second_derivative, site_of
from spectral_ext.curvature.softmax_head import TILE_BYTES, find_heads
from spectral_ext.curvature.trace import Program, trace
from spectral_ext.layers import Layer, find_layers
from spectral_ext.measurement.batches import LossFunction, as_batches
from spectral_ext.measurement.environment import measurement, unwrapped
from spectral_ext.measurement.singular_directions import DOUBLE_BELOW

aten = torch.ops.aten

_VIEWS = {"view", "_unsafe_view", "reshape", "t", "transpose", "permute", "unsqueeze", "squeeze", "expand", "select",
          "slice", "unbind", "split", "split_with_sizes", "alias", "detach"}  # fmt: skip


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes beyond the model, its weights and the data."""

    base: int
    """Held whatever the number of directions at once: values, adjoints and constants of the rules. It grows with the
    samples."""
    per_direction: dict[str, int]
    """Layer → the most that one direction's tangents take at once."""
    samples: int
    self_check: int
    """The self-check's own need, at another time than the rest: a double backward through the whole graph."""
    gradients: int = 0
    """Two gradients of each layer: part of ``base`` and ``self_check``, whatever the number of samples."""
    weights: int = 0
    """With the arithmetic in float64: the weights and buffers in it, another part that does not grow."""
    decomposition: int = 0
    """The singular value decomposition of the largest gradient, with all gradients held, before the rest."""
    float64: int = 0
    """The arithmetic in float64 of directions whose terms cancel, one at a time, after the rest: see
    :mod:`.verification`. A budget cuts its samples apart from the others."""

    def __str__(self) -> str:
        stages = {
            "gradients": self.gradients,
            "their singular value decomposition": self.decomposition,
            "values, adjoints and rules": self.base,
            "each direction at once": max(self.per_direction.values(), default=0),
            "self-check": self.self_check,
            "float64 where terms cancel": self.float64,
        }
        listed = ", ".join(f"{what} {size / 2**20:.0f} MiB" for what, size in stages.items())
        return f"memory for {self.samples} samples: {listed}"

    def total(self, directions_at_once: int = 1) -> int:
        """Peak bytes of the tangents, with ``directions_at_once`` directions at a time."""
        return self.base + directions_at_once * max(self.per_direction.values(), default=0)

    def peak(self, directions_at_once: int = 1) -> int:
        """The most that any stage takes, with the self-check and with float64 arithmetic."""
        return max(self.total(directions_at_once), self.decomposition, self.self_check, self.float64)

    def directions_at_once(self, name: str, budget: int) -> int:
        """How many directions fit beside the base; 0: not one."""
        return max(0, (budget - self.base) // max(self.per_direction[name], 1))


def estimate_memory(
    model: nn.Module, loss_fn: LossFunction, batch: Any, *, layers: str | Iterable[str] | None = None
) -> MemoryEstimate:
    """What the curvature would take on this batch, from a trace of it. Model and batch may be on the meta device.

    Raises:
        UntraceableError: the model or loss cannot be traced.
    """
    model = unwrapped(model)
    with measurement(model, values=False):
        chosen, _ = find_layers(model, layers)
        (one,) = as_batches([batch], model)
        program = trace(model, loss_fn, one)
        return estimate(program, model, chosen, one.samples)


def estimate(
    program: Program, model: nn.Module, layers: Mapping[str, Layer], samples: int, gradients: bool = True
) -> MemoryEstimate:
    """``gradients``: whether the gradients of the layers, the sum and a piece's, are held beside the curvature."""
    sites = {name: site_of(program, model, layer) for name, layer in layers.items()}
    reached = {node for site in sites.values() for node in (site.seed_node, *site.schedule)}
    seeds = {site.seed_node for site in sites.values()}
    heads = find_heads(program, reached, seeds)
    absorbed = {node for head in heads for node in head.absorbed}
    base = weights = sum(2 * _bytes(layer.weight) for layer in layers.values()) if gradients else 0
    copies = _in_float64(program) if program.raised else 0
    base += copies
    values = 0
    sizes = {node: allocated(node) for node in program.nodes}
    for node in program.nodes:
        if node.op != "call_function":
            continue
        size = sizes[node]
        base += size
        values += size
        if node in absorbed:  # of a head: the adjoint and the weighted probabilities
            base += 2 * size if node.target is aten._log_softmax.default else 0
        elif node in reached:
            # The adjoint and two constants of an operation with a second derivative; the slope or mask of any other,
            # unless it is a product.
            base += 3 * size if has_second_derivative(node, reached) else size if _has_slope(node) else 0
    per_direction = {name: _per_direction(site, sizes, absorbed) for name, site in sites.items()}
    for head in heads:  # tiles; the input's adjoint and W p, and with directions in W the input and the gradient
        seeded = head.product in seeds
        base += 2 * min(TILE_BYTES, allocated(head.product)) + (2 + seeded) * _bytes(head.input.meta["val"])
        base += seeded * _bytes(head.weight.meta["val"])
    most = max(per_direction.values(), default=0)
    return MemoryEstimate(
        base, per_direction, samples, self_check=weights + 5 * values, gradients=weights, weights=copies,
        decomposition=weights // 2 + max((_decomposition(layer) for layer in layers.values()), default=0),
        float64=base + most if program.raised else 2 * (base + most) - weights + _in_float64(program),
    )  # fmt: skip


def _decomposition(layer: Layer) -> int:
    """The matrix, U and Vᵀ, and LAPACK's copies and work space, in float64 below ``DOUBLE_BELOW`` entries."""
    m, n = layer.matrix_shape
    short, numbers = min(m, n), layer.weight.numel()
    size = 8 if numbers < DOUBLE_BELOW else layer.weight.element_size()
    return size * (2 * numbers + short * (m + n) + 5 * short**2)


def _in_float64(program: Program) -> int:
    """The weights and buffers in float64."""
    needed = set(program.nodes)
    return sum(
        8 * v.numel() for node in program.placeholders if node in needed and isinstance(v := node.meta["val"], Tensor)
    )


def allocated(node: fx.Node) -> int:
    """Bytes that an operation allocates for its output; a view allocates none."""
    if getattr(node.target, "_opname", getattr(node.target, "__name__", "")) in {*_VIEWS, "getitem"}:
        return 0
    return sum(_bytes(value) for value in _values(node))


def _values(node: fx.Node) -> list[Any]:
    return pytree.tree_leaves(node.meta.get("val"))


def _bytes(value: Any) -> int:
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0


def _has_slope(node: fx.Node) -> bool:
    rule = RULES.get(node.target)
    return rule is not None and rule.build.__name__ == "piecewise_linear"


def _per_direction(site: Site, sizes: Mapping[fx.Node, int], absorbed: set[fx.Node]) -> int:
    """The high-water mark of live tangents, with two temporaries of an operation's own size.

    No tangent passes the ``absorbed`` nodes of a head: its product copies the input's tangents at most.
    """
    start = 0 if site.seed_node in absorbed else sum(_bytes(v) for v in _values(site.seed_node))
    live, total = {site.seed_node: start}, start
    peak = 2 * start
    for node in site.schedule:
        if node in absorbed:
            peak = max(peak, total + 2 * max(live.get(i, 0) for i in operands(node)))
            continue
        size = sizes[node]
        inside = max([size, *(live.get(i, 0) for i in operands(node))])
        peak = max(peak, total + size + 2 * inside)
        done = site.last_use.get(node, ())
        if size == 0:  # a view keeps its source alive: move the bytes to it
            size = sum(live.pop(i, 0) for i in done if i in operands(node))
            total -= size
        live[node] = size
        total += size
        for one in done:
            total -= live.pop(one, 0)
    return peak
