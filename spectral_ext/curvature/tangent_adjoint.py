"""h_k by one tangent per direction and one adjoint for all directions.

Along W + tD every operation y = f(x) of the traced graph obeys y″ = f′x″ + f″[x′, x′], and the loss is linear in the
second-order terms f″[x′, x′]. Hence, exactly,

    h = Σ_operations ⟨ȳ, f″[ẋ, ẋ]⟩,

with the adjoints ȳ = ∂L/∂y of one ordinary backward pass, shared by all layers and directions, and the first tangents
ẋ of one pass through what follows the layer. Sums of these terms by mechanism split h exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from spectral_ext.curvature.directions import Directions
from spectral_ext.curvature.evaluate import Environment, arguments_of, detached, evaluate
from spectral_ext.curvature.rules import Operation, Push, operands
from spectral_ext.curvature.sites import Site, has_second_derivative, mechanism, rule_of, seed, site_of
from spectral_ext.curvature.softmax_head import SoftmaxHead, find_heads
from spectral_ext.curvature.trace import Program
from spectral_ext.layers import Layer
from spectral_ext.measurement.batches import Batch


@dataclass
class Curvature:
    """One layer's h along K directions on one batch, float64."""

    parts: dict[str, Tensor]
    """By mechanism, each (K,): h is their sum."""
    slope: Tensor
    """L̇_k = ⟨∂L/∂W, D_k⟩, (K,)."""
    size: Tensor
    """Σ |term| over the operations, (K,): the rounding error of h is proportional to it."""


class TangentAdjoint:
    """A program at one batch: values and adjoints are held in the rules that need them.

    ``residual_only``: leave out the Gauss–Newton part, and with it all that follows the last operation of the model
    that is curved: the head above all. The slopes are zero then.
    """

    def __init__(
        self,
        program: Program,
        model: nn.Module,
        batch: Batch,
        layers: Mapping[str, Layer],
        *,
        residual_only: bool = False,
    ) -> None:
        self.program = program
        self.sites: dict[str, Site] = {name: site_of(program, model, layer) for name, layer in layers.items()}
        self.reached = {node for site in self.sites.values() for node in (site.seed_node, *site.schedule)}
        self.schedules = {name: site.schedule for name, site in self.sites.items()}
        passed = (node for site in self.sites.values() for node in site.schedule)
        self.second_order = {node for node in passed if has_second_derivative(node, self.reached)}
        if residual_only:
            self.second_order -= program.loss_operations
            self.schedules = {name: self._up_to_second_order(s) for name, s in self.schedules.items()}
        env = evaluate(program, program.arguments(model, batch), {site.weight for site in self.sites.values()})
        self.loss = env[program.loss].detach()
        self._prepare(env)

    def _up_to_second_order(self, schedule: list[fx.Node]) -> list[fx.Node]:
        last = max((i for i, node in enumerate(schedule) if node in self.second_order), default=-1)
        return [node for node in schedule[: last + 1] if node not in self.program.loss_operations]

    def _prepare(self, env: Environment) -> None:
        """One backward pass, then the rules' constants; other values are dropped."""
        adjoints = self._adjoints(env)
        seeds = {site.seed_node for site in self.sites.values()}
        self.heads: dict[fx.Node, SoftmaxHead] = {}
        absorbed: set[fx.Node] = set()
        for nodes in find_heads(self.program, self.reached, seeds):
            adjoint = adjoints.pop(nodes.softmax, None)
            if adjoint is not None:
                self.heads[nodes.product] = SoftmaxHead(nodes, env, adjoint, seeded=nodes.product in seeds)
                absorbed.update(nodes.absorbed)
                del adjoint
        inputs = {site.input for site in self.sites.values() if site.input is not None}
        self.values = {node: detached(env[node]) for node in inputs}
        passed = {node for schedule in self.schedules.values() for node in schedule}
        self.rules: dict[fx.Node, Push] = {}
        for node in self.program.nodes:
            if node in passed and node not in absorbed:
                args, kwargs = detached(arguments_of(node, env))
                value, adjoint = detached(env[node]), adjoints.pop(node, None)
                operation = Operation(node, node.target, args, kwargs, value, adjoint)  # type: ignore[arg-type]
                self.rules[node] = rule_of(node, self.reached).build(operation)

    def _adjoints(self, env: Environment) -> dict[fx.Node, Any]:
        wanted = [(node, i, value) for node in self.second_order for i, value in enumerate(_outputs(env[node]))]
        wanted = [(node, i, value) for node, i, value in wanted if isinstance(value, Tensor) and value.requires_grad]
        if not wanted or not env[self.program.loss].requires_grad:
            return {}
        values = [value for _, _, value in wanted]
        found: dict[fx.Node, Any] = {}
        for (node, i, value), g in zip(
            wanted, torch.autograd.grad(env[self.program.loss], values, allow_unused=True), strict=True
        ):
            if isinstance(env[node], Tensor):
                found[node] = torch.zeros_like(value) if g is None else g
            else:
                found.setdefault(node, [None] * len(env[node]))[i] = g
        return found

    def curvature(self, name: str, directions: Directions) -> Curvature:
        """One layer's h along all of ``directions`` at once."""
        site, program = self.sites[name], self.program
        if program.raised:
            directions = directions.to(torch.float64)
        with torch.no_grad():
            tangents: dict[fx.Node, Any] = {}
            parts: dict[str, Tensor] = {}
            slope, size = torch.zeros(2, len(directions), dtype=torch.float64, device=self.loss.device)

            def add(node: fx.Node, term: Tensor) -> None:
                kind = mechanism(node, program.loss_operations)
                held = parts.get(kind)
                parts[kind] = term if held is None else held + term
                size.add_(term.abs())

            if site.seed_node in self.heads:
                head = self.heads[site.seed_node]
                along, term = head.seed(directions, transposed=site.transposed)
                slope += along
                add(head.nodes.softmax, term)
            else:
                tangents[site.seed_node] = seed(site, self.values, directions)
            for node in self.schedules[name]:
                given = [tangents.get(i) for i in operands(node)]
                if all(t is None for t in given):
                    continue
                if node in self.heads:  # nothing passes it: what follows its log-softmax is linear
                    head = self.heads[node]
                    along, term = head.push(tangents[head.nodes.input])
                    slope += along
                    add(head.nodes.softmax, term)
                else:
                    tangents[node], second_order = self.rules[node](*given)
                    if second_order is not None:
                        add(node, second_order)
                for done in site.last_use.get(node, ()):
                    tangents.pop(done, None)
            through_graph = tangents.get(program.loss)
            if through_graph is not None:
                slope += through_graph.reshape(-1).double()
            return Curvature(parts or {"gauss_newton": torch.zeros_like(size)}, slope, size)


def _outputs(value: Any) -> tuple:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)
