"""Labels with the moments of the model's own output distribution, and the gradients of the loss at them.

A loss that is a negative log-likelihood has the covariance of its gradient in the model's output x, over labels t of
the model's own distribution, as its Hessian there (the Fisher identity). Only the first two moments of t enter. Drawn
one-hot labels have heavy tails where the model is confident: as long as a rare label is not drawn, the estimate and its
standard error are both too small. So the labels here are soft, made of independent random signs ε, with the same two
moments and light tails. The *drawn gradient* g at x then has E g = 0 and E ggᵀ = ∂²L/∂x²:

    log-softmax                       g = √w (t − p),  t − p = √p ⊙ ε − p (√p·ε),  w = −Σ_c ȳ_c of a position
    entry-wise convex functions       g = √ℓ″ ε,       ℓ″ = ȳ f″(x)

with ȳ the adjoint of the operation f, from which the weight of a position is read: one over the number of tokens, a
class weight, zero for ignore_index, any mask. So every reduction is right. The second line covers a squared error (a
Gaussian's moments) and binary cross-entropy with logits (a Bernoulli's, ℓ″ = w σ(1 − σ)).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx

from spectral_ext.curvature.evaluate import Environment, arguments_of, detached
from spectral_ext.curvature.rules import RULES, operands
from spectral_ext.curvature.rules.registry import NotApplicableError
from spectral_ext.curvature.sites import has_second_derivative
from spectral_ext.curvature.trace import Program

aten = torch.ops.aten

ENTRYWISE = {
    aten.mse_loss.default, aten.binary_cross_entropy_with_logits.default, aten.smooth_l1_loss.default,
    aten.huber_loss.default, aten.soft_margin_loss.default, aten.log_sigmoid_forward.default, aten.mul.Tensor,
}  # fmt: skip
"""Losses whose Hessian in one operand is diagonal, beside the smooth entry-wise functions of the rules."""
ROWS_BYTES = 8 << 20
"""Bytes of probabilities that are worked on at a time."""

Draws = Callable[[torch.Generator, int], Iterator[Tensor]]
"""As many drawn gradients at x as asked for, one after the other, of x's shape and dtype."""


class LabelDistribution:
    """The labels of one operation of the loss."""

    def __init__(self, argument: fx.Node, draws: Draws) -> None:
        self.argument = argument
        """The node x that the drawn gradients belong to."""
        self.draws = draws


def label_distributions(program: Program, env: Environment) -> list[LabelDistribution]:
    """The distributions of all operations of the loss that are curved in the model's output.

    Args:
        env: the values of a batch, recorded by autograd.

    Raises:
        NotApplicableError: the loss has no curvature in the model's output, or an operation of it has no distribution.
    """
    reached = set(program.outputs) | program.loss_operations
    curved = [n for n in program.nodes if n in program.loss_operations and has_second_derivative(n, reached)]
    # What no measured weight reaches is a constant here.
    curved = [node for node in curved if _first(env[node]).requires_grad]
    if not curved:
        raise NotApplicableError(
            "the loss is linear in the model's output, so that its Gauss–Newton part is zero: the model must return "
            "logits, not log-probabilities or the loss alone"
        )
    outputs = [_first(env[node]) for node in curved]
    found = torch.autograd.grad(env[program.loss], outputs, retain_graph=True, allow_unused=True)
    distributions = []
    for node, adjoint in zip(curved, found, strict=True):
        if adjoint is not None and bool(adjoint.any()):
            distributions.append(_distribution(node, adjoint, env, reached))
    if not distributions:
        raise NotApplicableError("the loss does not depend on the model's output here: every position is ignored")
    return distributions


def _distribution(node: fx.Node, adjoint: Tensor, env: Environment, reached: set[fx.Node]) -> LabelDistribution:
    moving = list(dict.fromkeys(i for i in operands(node) if i in reached))
    if len(moving) == 1:
        (argument,) = moving
        if node.target is aten._log_softmax.default:
            return LabelDistribution(argument, _categorical(env[node].detach(), adjoint, node))
        rule = RULES.get(node.target)
        if node.target in ENTRYWISE or (rule is not None and rule.build.__name__ == "smooth"):
            return LabelDistribution(argument, _entrywise(node, argument, adjoint, env))
    raise NotApplicableError(
        f"the loss applies {node.target} to the model's output, which has no distribution to draw labels from: use "
        "cross_entropy or binary_cross_entropy_with_logits on logits, or a squared error"
    )


def _first(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else value[0]


def _not_convex(node: fx.Node) -> NotApplicableError:
    return NotApplicableError(
        f"the loss is not convex in the model's output at {node.target}, so that its Hessian there is not the "
        "covariance of a gradient over drawn labels"
    )


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.empty_like(like).random_(0, 2, generator=generator).mul_(2).sub_(1)


def _categorical(log_p: Tensor, adjoint: Tensor, node: fx.Node) -> Draws:
    dim: Any = node.args[1]
    axis = dim % log_p.dim()
    mass = -adjoint.sum(axis, keepdim=True)
    if bool((mass < -1e-6 * mass.abs().max()).any()):
        raise _not_convex(node)
    root = mass.clamp_min(0).sqrt().movedim(axis, -1).reshape(-1, 1)
    turned = log_p.movedim(axis, -1)
    rows = turned.reshape(-1, turned.shape[-1])
    at_once = max(1, ROWS_BYTES // (rows.element_size() * rows.shape[1]))

    def draws(generator: torch.Generator, count: int) -> Iterator[Tensor]:
        for _ in range(count):
            g = torch.empty_like(rows)
            for part, logs, weight in zip(g.split(at_once), rows.split(at_once), root.split(at_once), strict=True):
                amplitude = (logs / 2).exp_()
                torch.mul(amplitude, _signs(amplitude, generator), out=part)
                part.sub_(amplitude.square_().mul_(part.sum(1, keepdim=True))).mul_(weight)
            yield g.reshape(turned.shape).movedim(-1, axis)

    return draws


def _entrywise(node: fx.Node, argument: fx.Node, adjoint: Tensor, env: Environment) -> Draws:
    x = env[argument].detach().requires_grad_()
    args, kwargs = arguments_of(node, {**detached(env), argument: x})
    with torch.enable_grad():
        y = _first(node.target(*args, **kwargs))  # type: ignore[operator]
        (first,) = torch.autograd.grad(y, x, adjoint, create_graph=True)
        curvature = torch.zeros_like(x)
        if first.requires_grad:
            (curvature,) = torch.autograd.grad(first.sum(), x)
    if bool((curvature < -1e-6 * curvature.abs().max()).any()):
        raise _not_convex(node)
    root = curvature.clamp_min(0).sqrt_()

    def draws(generator: torch.Generator, count: int) -> Iterator[Tensor]:
        for _ in range(count):
            yield _signs(root, generator).mul_(root)

    return draws
