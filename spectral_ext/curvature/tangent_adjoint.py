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
    """A program at one batch: values and adjoints are held in the rules that need them."""

    def __init__(self, program: Program, model: nn.Module, batch: Batch, layers: Mapping[str, Layer]) -> None:
        self.program = program
        self.sites: dict[str, Site] = {name: site_of(program, model, layer) for name, layer in layers.items()}
        self.reached = {node for site in self.sites.values() for node in (site.seed_node, *site.schedule)}
        passed = (node for site in self.sites.values() for node in site.schedule)
        self.second_order = {node for node in passed if has_second_derivative(node, self.reached)}
        env = evaluate(program, program.arguments(model, batch), {site.weight for site in self.sites.values()})
        self.loss = env[program.loss].detach()
        self._prepare(env)

    def _prepare(self, env: Environment) -> None:
        """One backward pass, then the rules' constants; other values are dropped."""
        adjoints = self._adjoints(env)
        inputs = {site.input for site in self.sites.values() if site.input is not None}
        self.values = {node: detached(env[node]) for node in inputs}
        passed = {node for site in self.sites.values() for node in site.schedule}
        self.rules: dict[fx.Node, Push] = {}
        for node in self.program.nodes:
            if node in passed:
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
            tangents: dict[fx.Node, Any] = {site.seed_node: seed(site, self.values, directions)}
            parts: dict[str, Tensor] = {}
            size = torch.zeros(len(directions), dtype=torch.float64, device=self.loss.device)
            for node in site.schedule:
                given = [tangents.get(i) for i in operands(node)]
                if all(t is None for t in given):
                    continue
                tangents[node], term = self.rules[node](*given)
                if term is not None:
                    kind = mechanism(node, program.loss_operations)
                    held = parts.get(kind)
                    parts[kind] = term if held is None else held + term
                    size += term.abs()
                for done in site.last_use.get(node, ()):
                    tangents.pop(done, None)
            slope = tangents.get(program.loss)
            slope = torch.zeros_like(size) if slope is None else slope.reshape(-1).double()
            return Curvature(parts or {"gauss_newton": torch.zeros_like(size)}, slope, size)


def _outputs(value: Any) -> tuple:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)
