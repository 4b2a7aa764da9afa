"""Each method over all pieces of data: sums of weight · h, and the slopes that check the way there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from spectral_ext.curvature.chunks import Plan
from spectral_ext.curvature.directions import Directions
from spectral_ext.curvature.double_backward import double_backward_output, double_backward_weight
from spectral_ext.curvature.finite_difference import Difference, central_differences
from spectral_ext.curvature.sampled_gauss_newton import SampledGaussNewton, Sampling
from spectral_ext.curvature.sqrt_gauss_newton import SqrtGaussNewton
from spectral_ext.curvature.tangent_adjoint import Curvature, TangentAdjoint
from spectral_ext.measurement.gradients import Piece


@dataclass
class MethodResult:
    """One layer's sums over this process's pieces, float64."""

    parts: dict[str, Tensor] = field(default_factory=dict)
    """Σ weight · h by mechanism, or under "total" where the method does not split h."""
    by_piece: list[Tensor] = field(default_factory=list)
    """h on each piece, of weight 1; empty for central differences."""
    slope: Tensor | None = None
    """Σ weight · ⟨∂L/∂W, D_k⟩ as the method saw it."""
    first: Tensor | None = None
    """h on the first piece alone, of weight 1."""
    size: Tensor | None = None
    """Σ weight · Σ |term| over the operations; of tangent_adjoint only."""
    terms: Tensor | None = None
    """Σ |part| on the first piece: what h's round-off is measured against where the parts cancel."""
    error: Tensor | None = None
    """Σ weight · error estimate; of central differences only."""
    variance: Tensor | None = None
    """Σ weight² · variance of the estimated h; of sampled_gauss_newton only."""
    summed: bool = False
    """Whether sampled_gauss_newton adds up the samples of a piece before the square."""
    exact_residual: bool = False
    """Whether sampled_gauss_newton has the residual of h too, by tangent_adjoint."""
    note: str | None = None
    """Why double backward in the output does not apply to the layer."""
    custom: set[str] = field(default_factory=set)
    """Custom autograd functions that the second derivative passes: nothing proves that they have one."""

    @property
    def h(self) -> Tensor:
        """Σ weight · h, (K,)."""
        return torch.stack(list(self.parts.values())).sum(0)

    def add(
        self, weight: float, parts: dict[str, Tensor], slope: Tensor | None = None, size: Tensor | None = None
    ) -> None:
        """Add one piece's h by part, its slope and its Σ |term|."""
        every = torch.stack(list(parts.values()))
        self.by_piece.append(every.sum(0))
        if self.first is None:
            self.first, self.terms = every.sum(0), every.abs().sum(0)
        for kind, value in parts.items():
            held = self.parts.get(kind)
            self.parts[kind] = weight * value if held is None else held + weight * value
        if slope is not None:
            self.slope = weight * slope if self.slope is None else self.slope + weight * slope
        if size is not None:
            self.size = weight * size if self.size is None else self.size + weight * size

    def replace(self, ks: list[int], by: MethodResult) -> None:
        """Put the results of another run of the same method, along the directions ``ks`` alone, in their places."""
        zero = torch.zeros_like(self.h)
        for kind in {**self.parts, **by.parts}:
            _write(self.parts.setdefault(kind, zero.clone()), ks, by.parts.get(kind, zero[ks]))
        for mine, other in zip(self.by_piece, by.by_piece, strict=True):
            _write(mine, ks, other)
        for kind in ("slope", "size", "first", "terms"):
            _write(getattr(self, kind), ks, getattr(by, kind))


def _write(target: Tensor, ks: list[int], values: Tensor) -> None:
    target[ks] = values


Step = Callable[[str], None]


def tangent_adjoint(
    plan: Plan, directions: dict[str, Directions], done: Step, *, in_float64: bool = False
) -> dict[str, MethodResult]:
    """``in_float64``: the traced arithmetic in float64, whatever the model's precision."""
    found = {name: MethodResult() for name in directions}
    layers = {name: plan.layers[name] for name in directions}
    for piece in plan.pieces:
        shares: dict[str, list[tuple[float, Curvature]]] = {name: [] for name in directions}
        for one in plan.fitting(piece, in_float64) if in_float64 else [piece]:
            engine = TangentAdjoint(plan.program(one.batch, in_float64), plan.model, one.batch, layers)
            for name, along in directions.items():
                at_once = plan.directions_at_once(name, one.batch, in_float64)
                chunks = [engine.curvature(name, part) for part in _chunks(along, at_once)]
                shares[name].append((one.weight / piece.weight, _joined(chunks)))
        for name, of_piece in shares.items():
            whole = _mean(of_piece)
            found[name].add(piece.weight, whole.parts, whole.slope, whole.size)
            done(name)
    return found


def _joined(chunks: list[Curvature]) -> Curvature:
    """Of all directions, from that of some at a time."""
    kinds = dict.fromkeys(kind for chunk in chunks for kind in chunk.parts)
    parts = {k: torch.cat([chunk.parts.get(k, torch.zeros_like(chunk.slope)) for chunk in chunks]) for k in kinds}
    return Curvature(parts, torch.cat([chunk.slope for chunk in chunks]), torch.cat([chunk.size for chunk in chunks]))


def _mean(shares: list[tuple[float, Curvature]]) -> Curvature:
    """The mean over parts of a batch, from pairs of share and curvature."""
    if len(shares) == 1:
        return shares[0][1]
    kinds = shares[0][1].parts
    return Curvature(
        {kind: torch.stack([share * one.parts[kind] for share, one in shares]).sum(0) for kind in kinds},
        torch.stack([share * one.slope for share, one in shares]).sum(0),
        torch.stack([share * one.size for share, one in shares]).sum(0),
    )


def sqrt_gn(plan: Plan, directions: dict[str, Directions], done: Step) -> dict[str, MethodResult]:
    found = {name: MethodResult() for name in directions}
    layers = {name: plan.layers[name] for name in directions}
    for piece in plan.pieces:
        engine = SqrtGaussNewton(plan.program(piece.batch), plan.model, piece.batch, layers)
        for name, (h, slope) in engine.curvature(directions).items():
            found[name].add(piece.weight, {"gauss_newton": h}, slope)
            done(name)
    return found


def sampled_gauss_newton(
    plan: Plan, directions: dict[str, Directions], done: Step, sampling: Sampling, rank: int
) -> dict[str, MethodResult]:
    found = {name: MethodResult() for name in directions}
    layers = {name: plan.layers[name] for name in directions}
    for index, piece in enumerate(plan.pieces):
        engine = SampledGaussNewton(plan.program(piece.batch), plan.model, piece.batch, layers)
        generator = sampling.generator(engine.loss.device, rank, index)
        for name, estimate in engine.estimate(directions, generator, sampling.draws).items():
            held, variance = found[name], piece.weight**2 * estimate.variance
            held.add(piece.weight, {"gauss_newton": estimate.h}, estimate.slope)
            held.variance = variance if held.variance is None else held.variance + variance
            held.summed |= estimate.terms < piece.batch.samples
            done(name)
    exact = {name: along for name, along in directions.items() if sampling.with_residual(name)}
    for index, piece in enumerate(plan.pieces if exact else []):
        chosen = {name: plan.layers[name] for name in exact}
        residual = TangentAdjoint(plan.program(piece.batch), plan.model, piece.batch, chosen, residual_only=True)
        for name, along in exact.items():
            at_once, held = plan.directions_at_once(name, piece.batch), found[name]
            parts = _joined([residual.curvature(name, part) for part in _chunks(along, at_once)]).parts
            for kind, value in parts.items():
                held.parts[kind] = held.parts.get(kind, torch.zeros_like(value)) + piece.weight * value
                held.by_piece[index] = held.by_piece[index] + value
            held.exact_residual = True
    return found


def double_backward(
    plan: Plan, directions: dict[str, Directions], done: Step, *, weight: bool, pieces: Iterable[Piece] | None = None
) -> dict[str, MethodResult]:
    """In the outputs, or in the weight where a layer's output will not do (noted) or ``weight`` asks for it."""
    found = {name: MethodResult() for name in directions}
    for piece in plan.pieces if pieces is None else pieces:
        case = plan.model, plan.loss_fn, piece.batch

        def add(forms: dict[str, Tensor], custom: dict[str, set[str]], share: float = piece.weight) -> None:
            for name, h in forms.items():
                found[name].add(share, {"total": h})
                found[name].custom |= custom[name]
                done(name)

        together = [name for name in directions if not weight and found[name].note is None]
        if together:
            forms, custom, refused = double_backward_output(*case, *_pick(plan, directions, together))
            for name, why in refused.items():
                found[name].note = why
            add(forms, custom)
        for name in directions:
            if name not in together or found[name].note is not None:
                add(*double_backward_weight(*case, *_pick(plan, directions, [name])))
    return found


def finite_difference(
    plan: Plan, directions: dict[str, Directions], done: Step, pieces: list[Piece] | None = None
) -> dict[str, MethodResult]:
    """Central differences of the gradient, with an error estimate."""
    pieces = plan.pieces if pieces is None else pieces
    total = sum(piece.weight for piece in pieces)
    found = {}
    for name, along in directions.items():
        result = MethodResult()
        h: Difference = central_differences(plan.model, plan.loss_fn, pieces, plan.layers[name], along)
        result.first, result.parts, result.error = h.value, {"total": total * h.value}, total * h.error
        for _ in pieces:
            done(name)
        found[name] = result
    return found


def _pick(plan: Plan, directions: dict[str, Directions], names: list[str]) -> tuple[dict, dict]:
    return {name: plan.layers[name] for name in names}, {name: directions[name] for name in names}


def _chunks(directions: Directions, at_once: int) -> list[Directions]:
    return [directions[start : start + at_once] for start in range(0, len(directions), at_once)]
