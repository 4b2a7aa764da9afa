"""The table of rules: how a tangent passes an operation y = f(x), and what f″ adds to h.

A rule is built once from the operation's values, and then pushes the tangents of N directions at once:

    push(ẋ, …) → (ẏ, second_order_term),   ẏ = f′ẋ,   term_k = ⟨ȳ, f″[ẋ_k, ẋ_k]⟩ or None where f″ = 0.

Tangents have the directions in front, (N, *x.shape); an input without a tangent is None. Second-order terms are (N,)
in float64 (:mod:`spectral_ext.curvature.sums`). Inner products of complex tensors are real: Re Σ conj(ȳ) y.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx
from torch.utils import _pytree as pytree


class NotApplicableError(Exception):
    """A method does not apply to a layer; the message says why."""


Push = Callable[..., tuple[Any, "Tensor | None"]]


@dataclass
class Operation:
    """One node of the graph with its values."""

    node: fx.Node
    target: Callable
    args: tuple
    kwargs: dict[str, Any]
    value: Any
    adjoint: Any
    """ȳ, or None where this operation adds nothing to h."""

    @property
    def inputs(self) -> list[fx.Node]:
        return operands(self.node)


@dataclass(frozen=True)
class Rule:
    build: Callable[[Operation], Push]
    mechanism: str | None
    """Which part of h it adds to; None: f″ = 0."""
    bilinear: bool = False
    """f″ = 0 as long as only one operand has a tangent."""
    differentiable_operands: tuple[int, ...] | None = None
    """The operands that may have a tangent; None: any."""
    real_only: bool = False
    """The generic rule takes over where an operand or the result is complex."""


RULES: dict[Any, Rule] = {}


def rule(
    *targets: Any,
    mechanism: str | None = None,
    bilinear: bool = False,
    differentiable_operands: tuple[int, ...] | None = None,
    real_only: bool = False,
) -> Callable:
    """Register the decorated builder for some operations."""

    def register(build: Callable[[Operation], Push]) -> Callable[[Operation], Push]:
        for target in targets:
            RULES[target] = Rule(build, mechanism, bilinear, differentiable_operands, real_only)
        return build

    return register


def operands(node: fx.Node) -> list[fx.Node]:
    """The tensors among a node's arguments, with repetition: the order of a rule's tangents."""
    found = node.meta.get("operands")
    if found is None:
        leaves = pytree.tree_leaves((node.args, node.kwargs))
        found = node.meta["operands"] = [leaf for leaf in leaves if isinstance(leaf, fx.Node)]
    return found


def align(tangent: Tensor, dims: int) -> Tensor:
    """(N, *shape) → (N, 1, …, *shape) with ``dims`` dimensions behind the first, for broadcasting."""
    missing = dims - (tangent.dim() - 1)
    return tangent.reshape(tangent.shape[0], *(1,) * missing, *tangent.shape[1:]) if missing > 0 else tangent
