"""Checks of a method against what does not share its rules: double backward, the gradient, central differences."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spectral_ext.curvature.chunks import Plan
from spectral_ext.curvature.directions import Directions
from spectral_ext.curvature.methods import MethodResult, double_backward, finite_difference
from spectral_ext.curvature.objective import batch_in_float64, call_with, in_float64
from spectral_ext.curvature.result import SelfCheck
from spectral_ext.curvature.trace import first_line
from spectral_ext.measurement.gradients import Piece

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}
CONVERGED = 1e-2
"""Central differences whose error estimate is larger, relative to the largest |h_k|, are not used."""


class CannotCheckError(Exception):
    """The model has no double backward."""


@dataclass
class Reference:
    """h at k = 1 and k = K on the first piece, and how it was found."""

    h: Tensor
    how: str
    error: Tensor | None = None


@dataclass
class Comparison:
    """What a layer's results are compared with."""

    ends: list[int]
    """k = 1 and k = K, counted from 0."""
    reference: Reference
    precision: torch.dtype

    def check(self, result: MethodResult) -> SelfCheck:
        return _compare(result, self.ends, self.reference, self.precision)


def check_slopes(
    result: MethodResult, directions: Directions, gradient: Tensor | None, samples: float, precision: torch.dtype
) -> str | None:
    """⟨∂L/∂W, D_k⟩ as the method saw it, against the mean gradient over ``samples`` samples. The complaint, or None.

    It tells whether the traced graph is the model, at first order.
    """
    if result.slope is None:
        return None
    slopes, norm = torch.zeros_like(result.slope), torch.zeros_like(result.slope)
    if gradient is not None:
        slopes, norm = directions.along(gradient), gradient.double().norm() * directions.norms()
    scale = torch.maximum(slopes.abs(), 1e-2 * norm).max().clamp_min(torch.finfo(precision).tiny)
    error = float((result.slope / samples - slopes).abs().max() / scale)
    if error <= 10 * TOLERANCE[precision]:
        return None
    return f"its first derivatives differ from the gradient's by {error:.1e} (relative)"


def references(
    plan: Plan, found: dict[str, MethodResult], directions: dict[str, Directions], precision: torch.dtype
) -> dict[str, Comparison]:
    """What k = 1 and k = K of each layer are compared with, on the first piece of data.

    It is double backward in the model's own precision. For layers that differ from it, it is double backward in
    float64, because in float32 double backward is often the less accurate of the two; and for layers that still differ,
    and have a custom autograd function behind them, it is central differences. A layer has no entry where none of them
    can judge.

    Raises:
        CannotCheckError: an operation of the model has no double backward.
    """
    ends = {name: _ends(directions[name]) for name in found}
    few = {name: directions[name][ends[name]] for name in found}
    try:
        results = double_backward(plan, few, lambda _: None, weight=False, pieces=plan.pieces[:1])
    except RuntimeError as why:
        raise CannotCheckError(first_line(why)) from why

    held: dict[str, Comparison] = {}

    def compare_with(new: dict[str, Reference]) -> None:
        held.update({name: Comparison(ends[name], one, precision) for name, one in new.items()})

    def wrong() -> list[str]:
        return [name for name, one in held.items() if not one.check(found[name]).passed]

    compare_with({name: Reference(_first(r), f"double backward in {plan.dtype}") for name, r in results.items()})
    if plan.dtype != torch.float64 and (differ := wrong()):
        compare_with(_double_backward_in_float64(plan, {name: few[name] for name in differ}))
    for name in [name for name in wrong() if results[name].custom]:
        reference = _by_differences(plan, name, few[name])
        if converged(reference.h, reference.error):
            compare_with({name: reference})
        else:  # double backward is no judge here, and the slopes agree with the gradient
            del held[name]
    return held


def check_double_backward(plan: Plan, name: str, result: MethodResult, directions: Directions) -> SelfCheck | None:
    """k = 1 and k = K by double backward against central differences; None if the differences do not converge."""
    ends = _ends(directions)
    reference = _by_differences(plan, name, directions[ends])
    if not converged(reference.h, reference.error):
        return None
    return _compare(result, ends, reference, plan.dtype)


def converged(h: Tensor, error: Tensor | None) -> bool:
    """Whether central differences may be used."""
    return error is None or bool((error <= CONVERGED * h.abs().max()).all()) or not bool(error.any())


def _ends(directions: Directions) -> list[int]:
    return sorted({0, len(directions) - 1})


def _first(result: MethodResult) -> Tensor:
    assert result.first is not None
    return result.first


def _compare(result: MethodResult, ends: list[int], reference: Reference, precision: torch.dtype) -> SelfCheck:
    assert result.first is not None and result.terms is not None
    ours, terms, truth = result.first[ends], result.terms[ends], reference.h
    scale = torch.maximum(truth.abs(), 1e-3 * torch.maximum(terms, truth.abs().max()))
    scale = scale.clamp_min(torch.finfo(precision).tiny)
    difference = (ours - truth).abs()
    if reference.error is not None:  # only what the estimate does not explain counts
        difference = (difference - 3 * reference.error).clamp_min(0)
    return SelfCheck(tuple(ends), float((difference / scale).max()), TOLERANCE[precision], reference.how)


def _double_backward_in_float64(plan: Plan, few: dict[str, Directions]) -> dict[str, Reference]:
    """Nothing where the model holds kernels or constants that do not take float64."""
    first = plan.pieces[0]
    piece = Piece(batch_in_float64(first.batch), first.weight, first.label)
    along = {name: directions.to(torch.float64) for name, directions in few.items()}
    try:
        results = call_with(
            plan.model,
            in_float64(plan.model),
            lambda: double_backward(plan, along, lambda _: None, weight=False, pieces=[piece]),
        )
    except RuntimeError:
        return {}
    return {name: Reference(_first(result), "double backward in torch.float64") for name, result in results.items()}


def _by_differences(plan: Plan, name: str, directions: Directions) -> Reference:
    result = finite_difference(plan, {name: directions}, lambda _: None, plan.pieces[:1])[name]
    return Reference(_first(result), "central differences of the gradient", _error(result) / plan.pieces[0].weight)


def _error(result: MethodResult) -> Tensor:
    assert result.error is not None
    return result.error
