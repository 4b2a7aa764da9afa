"""Where each layer's directions enter the graph, and which nodes they reach.

A weight that is used once, by a product with an input, is *seeded* at that product's output: ż_k = D_k a, which for
u_k v_kᵀ costs one product with K columns. Any other weight (tied, reused, reshaped) gets its tangent D_k itself, dense.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from spectral_ext.curvature.directions import Directions
from spectral_ext.curvature.rules import CONSTANT, GENERIC, RULES, Rule, operands
from spectral_ext.curvature.trace import Program
from spectral_ext.layers import Layer

aten = torch.ops.aten


@dataclass
class Site:
    """Where a layer's tangents start."""

    weight: fx.Node
    seed_node: fx.Node
    """The node whose tangent is seeded: the layer's output, or its weight where ``input`` is None."""
    input: fx.Node | None
    transposed: bool
    """The weight is stored (n, m): y = x W + b."""
    schedule: list[fx.Node]
    """The nodes that its tangents pass, in order, without ``seed_node``."""
    last_use: dict[fx.Node, list[fx.Node]]
    """Node → those whose tangents nobody needs after it."""

    @property
    def dense(self) -> bool:
        return self.input is None


def site_of(program: Program, model: nn.Module, layer: Layer) -> Site:
    """The site of a layer's weight."""
    weight = next(program.parameters[name] for name, p in model.named_parameters() if p is layer.weight)
    if weight not in program.sites:
        program.sites[weight] = _find(weight, program)
    return program.sites[weight]


def _find(weight: fx.Node, program: Program) -> Site:
    nodes = program.nodes
    if not program.passing:
        program.passing.extend(node for node in nodes if node.target not in CONSTANT and floating(node))
    start, other, transposed = _product(weight, set(nodes))
    reached, schedule = {start}, []
    for node in program.passing:
        if node is not start and not reached.isdisjoint(operands(node)):
            reached.add(node)
            schedule.append(node)
    last: dict[fx.Node, fx.Node] = {start: start}
    for node in schedule:
        last[node] = node
        for i in operands(node):
            if i in reached:
                last[i] = node
    last_use: dict[fx.Node, list[fx.Node]] = {}
    for node, user in last.items():
        if user is not nodes[-1]:
            last_use.setdefault(user, []).append(node)
    return Site(weight, start, other, transposed, schedule, last_use)


def _product(weight: fx.Node, nodes: set[fx.Node]) -> tuple[fx.Node, fx.Node | None, bool]:
    """The product that a weight enters, its other operand, and whether the weight enters as it is, not transposed."""
    users = [user for user in weight.users if user in nodes]
    if len(users) == 1 and users[0].target is aten.convolution.default:
        (user,) = users
        if user.args[1] is weight and user.args[0] is not weight and not user.args[6]:
            return user, user.args[0], False  # type: ignore[return-value]
    factor = weight
    if len(users) == 1 and users[0].target is aten.t.default:
        factor = users[0]
        users = [user for user in factor.users if user in nodes]
    position: dict[Any, int] = {aten.addmm.default: 1, aten.mm.default: 0}
    if len(users) == 1 and users[0].target in position:
        (user,) = users
        x, right = user.args[position[user.target] :][:2]
        if right is factor and x is not factor and user.kwargs.get("alpha", 1) == 1:
            return user, x, factor is weight  # type: ignore[return-value]
    return weight, None, False


def floating(node: fx.Node) -> bool:
    """Whether a tangent can pass: some output is a floating-point or complex tensor."""
    value = node.meta.get("val", node.meta.get("tensor_meta"))
    values = value if isinstance(value, (list, tuple)) else [value]
    kinds = [getattr(v, "dtype", torch.float32) for v in values]
    return value is None or any(kind.is_floating_point or kind.is_complex for kind in kinds)


def _complex(node: fx.Node) -> bool:
    """Whether the result or an operand is complex."""
    values = [leaf for one in (node, *operands(node)) for leaf in pytree.tree_leaves(one.meta.get("val"))]
    return any(isinstance(value, Tensor) and value.is_complex() for value in values)


def rule_of(node: fx.Node, reached: set[fx.Node]) -> Rule:
    """The rule for the operands among ``reached``; the generic one where the table has none that applies."""
    rule = RULES.get(node.target, GENERIC)
    if rule.real_only and _complex(node):
        return GENERIC
    allowed = rule.differentiable_operands
    if allowed is not None and any(i in reached and at not in allowed for at, i in enumerate(operands(node))):
        return GENERIC
    return rule


def has_second_derivative(node: fx.Node, reached: set[fx.Node]) -> bool:
    """Whether f″ can add to h where the tangents of ``reached`` arrive."""
    rule = rule_of(node, reached)
    if rule.mechanism is None:
        return False
    return not rule.bilinear or sum(i in reached for i in operands(node)) > 1


def mechanism(node: fx.Node, loss_operations: set[fx.Node]) -> str:
    if node in loss_operations:
        return "gauss_newton"
    return "norm" if node.meta.get("norm") else RULES.get(node.target, GENERIC).mechanism or "other"


def seed(site: Site, values: dict[fx.Node, Tensor], directions: Directions) -> Tensor:
    """The tangents (K, …) at the site's ``seed_node``."""
    if site.input is None:
        return directions.weight_tangents()
    x, start, directions = values[site.input], site.seed_node, directions.stored
    if start.target is aten.convolution.default:
        geometry = start.args[3:]
        return directions.convolution_output(lambda w: aten.convolution(x, w, None, *geometry), start.args[8])  # type: ignore[arg-type]
    return (directions.transposed if site.transposed else directions).linear_output(x)
