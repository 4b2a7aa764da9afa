"""Any other differentiable operation, by automatic differentiation of that operation alone.

With φ(x) = ⟨ȳ, f(x)⟩: the second-order term is ẋᵀ ∇²φ ẋ by double backward, and ẏ = ∂⟨∇⟨w, f⟩, ẋ⟩/∂w. Both use only
backward passes, which more operations have than forward mode. All inner products are real, so that complex operands
are differentiated as pairs of real numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from spectral_ext.curvature.extrapolation import derivative_at_zero
from spectral_ext.curvature.rules.registry import NotApplicableError, Operation, Push, Rule
from spectral_ext.curvature.sums import inner_products


def generic(op: Operation) -> Push:
    leaves, tree = pytree.tree_flatten((op.args, op.kwargs))
    nodes = pytree.tree_leaves((op.node.args, op.node.kwargs))
    where = [i for i, leaf in enumerate(nodes) if hasattr(leaf, "users")]
    outputs = pytree.tree_leaves(op.value)
    adjoints = None if op.adjoint is None else pytree.tree_leaves(op.adjoint, is_leaf=lambda t: t is None)

    opaque = getattr(op.target, "namespace", "aten") not in ("aten", "prims")

    def evaluate(
        moving: list[int], offsets: list[Tensor] | None = None, dtype: torch.dtype | None = None
    ) -> tuple[list[Tensor], list[Any]]:
        full = [_converted(leaf, dtype) for leaf in leaves]
        for position, i in enumerate(moving):
            moved = full[i].detach().clone() if offsets is None else full[i].detach() + offsets[position]
            full[i] = moved.requires_grad_()
        args, kwargs = pytree.tree_unflatten(full, tree)
        y = pytree.tree_leaves(op.target(*args, **kwargs))
        return [full[i] for i in moving], y

    def push(*tangents: Tensor | None) -> tuple[Any, Tensor | None]:
        moving = [i for i, d in zip(where, tangents, strict=True) if d is not None]
        directions = list(zip(*(d for d in tangents if d is not None), strict=True))
        with torch.enable_grad():
            x, every = evaluate(moving)
            floating = [i for i, value in enumerate(every) if isinstance(value, Tensor) and value.requires_grad]
            y = [every[i] for i in floating]
            free = [torch.zeros_like(value, requires_grad=True) for value in y]
            back = torch.autograd.grad(y, x, free, create_graph=True, allow_unused=True, retain_graph=True)
            pairs = [(i, b) for i, b in enumerate(back) if b is not None and b.requires_grad]
            moved = []
            for along in directions:
                inner = torch.stack([_inner(b, along[i]) for i, b in pairs]).sum()
                one = torch.autograd.grad(inner, free, retain_graph=True, allow_unused=True)
                moved.append([torch.zeros_like(v) if t is None else t.detach() for v, t in zip(y, one, strict=True)])
            terms = None
            if adjoints is not None:
                used = [adjoints[i] for i in floating]
                terms = _second_order_terms(x, y, used, directions)
                if opaque:
                    terms = _checked(terms, evaluate, moving, floating, used, directions)
        results: list[Any] = [None] * len(outputs)
        for position, i in enumerate(floating):
            results[i] = torch.stack([one[position] for one in moved])
        return (results[0] if isinstance(op.value, Tensor) else tuple(results)), terms

    return push


def _second_order_terms(
    x: list[Tensor], y: list[Tensor], adjoints: list[Tensor | None], directions: list[tuple]
) -> Tensor:
    total = torch.zeros(len(directions), dtype=torch.float64, device=x[0].device)
    used = [(value, g) for value, g in zip(y, adjoints, strict=True) if g is not None]
    if not used:
        return total
    first = torch.autograd.grad(
        [v for v, _ in used], x, [g for _, g in used], create_graph=True, allow_unused=True, retain_graph=True
    )
    for k, along in enumerate(directions):
        inner = sum(_inner(g, d) for g, d in zip(first, along, strict=True) if g is not None and g.requires_grad)
        if not isinstance(inner, Tensor) or not inner.requires_grad:
            continue
        second = torch.autograd.grad(inner, x, retain_graph=True, allow_unused=True)
        for h, d in zip(second, along, strict=True):
            if h is not None:
                total[k] += inner_products(d.unsqueeze(0), h.detach())[0]
    return total


def _checked(
    terms: Tensor,
    evaluate: Callable[..., tuple[list[Tensor], list[Any]]],
    moving: list[int],
    floating: list[int],
    adjoints: list[Tensor | None],
    directions: list[tuple],
) -> Tensor:
    """The terms against central differences of the operation's gradient; the differences where the two disagree.

    An operation that is not one of torch's may have a backward pass that autograd cannot differentiate, and then takes
    the second derivative for zero without an error.

    Raises:
        NotApplicableError: the two disagree, and the differences do not converge.
    """
    checked = terms.clone()
    x, _ = evaluate(moving)
    dtype: torch.dtype | None = torch.float64
    try:
        evaluate(moving, None, dtype)
    except RuntimeError:  # the operation does not take float64
        dtype = None
    for k, along in enumerate(directions):

        def slope(t: float, along: tuple = along) -> float:
            x, every = evaluate(moving, [t * _converted(d, dtype) for d in along], dtype)
            used = [(every[i], _converted(g, dtype)) for i, g in zip(floating, adjoints, strict=True) if g is not None]
            found = torch.autograd.grad([v for v, _ in used], x, [g for _, g in used], allow_unused=True)
            pairs = [(_converted(d, dtype), g) for d, g in zip(along, found, strict=True) if g is not None]
            return float(sum(inner_products(d.unsqueeze(0), g.detach()) for d, g in pairs))

        size, length = (max(float(t.detach().abs().max()) for t in ts if t.numel()) for ts in (x, along))
        if length == 0:
            continue
        step = 0.05 * (size or 1.0) / length
        value, error = derivative_at_zero(slope, step, torch.finfo(dtype or x[0].dtype).eps)
        if abs(value - float(terms[k])) > 3 * error:
            if error > 1e-3 * abs(value):
                raise NotApplicableError("an operation that is not torch's seems to have no second derivative")
            checked[k] = value
    return checked


def _converted(leaf: Any, dtype: torch.dtype | None) -> Any:
    real = dtype is not None and isinstance(leaf, Tensor) and leaf.is_floating_point()
    return leaf.to(dtype) if real else leaf


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """The real inner product; only its derivatives are used."""
    return (a.conj() * b).real.sum() if a.is_complex() else (a * b).sum()


GENERIC = Rule(generic, "other")
