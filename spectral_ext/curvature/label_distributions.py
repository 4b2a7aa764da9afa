"""The distribution of labels that a loss belongs to, and gradients of the loss at labels drawn from it.

A loss that is a negative log-likelihood has the covariance of its gradient in the model's output, over labels drawn
from the model's own distribution, as its Hessian there (the Fisher identity). So a *drawn gradient* g at the argument
x of an operation of the loss has

    E g = 0,   E ggᵀ = ∂²L/∂x²,

and the entries of different positions are independent. The weight of a position (one over the number of tokens, a
class weight, zero for ignore_index, label smoothing, any mask) is read off the adjoint of the operation, so that every
reduction is right:

    log-softmax      w = −Σ_c ȳ_c of a position,   g = √w (p − e_c),  c drawn from p
    BCE with logits  w = ℓ″ / σ(1 − σ),            g = √w (σ − t),    t drawn from Bernoulli(σ)
    other entry-wise convex functions              g = √ℓ″ ε,         ε standard normal

with ℓ″ = ȳ f″(x). The last one is the Gaussian distribution of a squared error; of another convex function it has the
right covariance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from spectral_ext.curvature.evaluate import Environment, arguments_of, detached
from spectral_ext.curvature.rules import RULES, operands
from spectral_ext.curvature.rules.registry import NotApplicableError
from spectral_ext.curvature.sites import has_second_derivative
from spectral_ext.curvature.trace import Program

aten = torch.ops.aten

BINARY = aten.binary_cross_entropy_with_logits.default
ENTRYWISE = {
    BINARY, aten.mse_loss.default, aten.smooth_l1_loss.default, aten.huber_loss.default, aten.soft_margin_loss.default,
    aten.log_sigmoid_forward.default, aten.mul.Tensor,
}  # fmt: skip
"""Losses whose Hessian in one operand is diagonal, beside the smooth entry-wise functions of the rules."""
CDF_BYTES = 32 << 20
"""Cumulative probabilities that are held at a time."""


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


def _categorical(log_p: Tensor, adjoint: Tensor, node: fx.Node) -> Draws:
    axis = node.args[1] % log_p.dim()  # type: ignore[operator]
    mass = -adjoint.sum(axis, keepdim=True)
    if bool((mass < -1e-6 * mass.abs().max()).any()):
        raise _not_convex(node)
    root = mass.clamp_min(0).sqrt()
    mean = log_p.exp().mul_(root)
    rows = log_p.movedim(axis, -1).flatten(0, -2)
    used = root.flatten().nonzero()[:, 0]
    at_once = max(1, CDF_BYTES // (8 * rows.shape[1]))

    def draws(generator: torch.Generator, count: int) -> Iterator[Tensor]:
        labels = torch.zeros(rows.shape[0], count, dtype=torch.int64, device=rows.device)
        uniform = torch.rand(len(used), count, generator=generator, dtype=torch.float64, device=rows.device)
        for part, u in zip(used.split(at_once), uniform.split(at_once), strict=True):
            cdf = rows[part].double().exp_().cumsum(1)
            labels[part] = torch.searchsorted(cdf, u * cdf[:, -1:], right=True).clamp_max(rows.shape[1] - 1)
        for drawn in labels.T:
            yield mean.scatter_add(axis, drawn.reshape(root.shape), -root)

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
    curvature, x = curvature.clamp_min_(0), x.detach()
    if node.target is BINARY:
        p = x.sigmoid()
        root = (curvature / (p * (1 - p)).clamp_min(torch.finfo(x.dtype).tiny)).sqrt_()

        def bernoulli(generator: torch.Generator, count: int) -> Iterator[Tensor]:
            for _ in range(count):
                labels = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device) < p
                yield (p - labels.to(p)).mul_(root)

        return bernoulli
    root = curvature.sqrt_()

    def normal(generator: torch.Generator, count: int) -> Iterator[Tensor]:
        for _ in range(count):
            yield torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device).mul_(root)

    return normal
