"""Each method over all pieces of data: sums of weight · h, and the slopes that check the way there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from spectral_ext.curvature.chunks import Plan
from spectral_ext.curvature.directions import Directions
from spectral_ext.curvature.double_backward import double_backward_output, double_backward_weight
from spectral_ext.curvature.gradients import Piece
from spectral_ext.curvature.sqrt_gauss_newton import SqrtGaussNewton
from spectral_ext.curvature.tangent_adjoint import TangentAdjoint


@dataclass
class Measured:
    """One layer's sums over this rank's pieces, float64."""

    parts: dict[str, Tensor] = field(default_factory=dict)
    """h by mechanism, or under "total" where the method does not split."""
    slope: Tensor | None = None
    """L̇_k = ⟨∂L/∂W, D_k⟩ as the method saw it."""
    first: Tensor | None = None
    """h on the first piece alone, of weight 1."""
    terms: Tensor | None = None
    """Σ |part| on the first piece: what h's round-off is measured against where the parts cancel."""
    note: str | None = None

    def add(self, weight: float, parts: dict[str, Tensor], slope: Tensor | None) -> None:
        if self.first is None:
            every = torch.stack(list(parts.values()))
            self.first, self.terms = every.sum(0), every.abs().sum(0)
        for kind, value in parts.items():
            held = self.parts.get(kind)
            self.parts[kind] = weight * value if held is None else held + weight * value
        if slope is not None:
            self.slope = weight * slope if self.slope is None else self.slope + weight * slope


Step = Callable[[str], None]


def tangent_adjoint(plan: Plan, directions: dict[str, Directions], done: Step) -> dict[str, Measured]:
    found = {name: Measured() for name in directions}
    layers = {name: plan.layers[name] for name in directions}
    for piece in plan.pieces:
        engine = TangentAdjoint(plan.program(piece.batch), plan.model, piece.batch, layers)
        for name, all_directions in directions.items():
            lanes = plan.lanes(name, piece.batch)
            chunks = [engine.curvature(name, part) for part in _chunks(all_directions, lanes)]
            kinds = dict.fromkeys(kind for parts, _ in chunks for kind in parts)
            zero = [torch.zeros_like(slope) for _, slope in chunks]
            parts = {
                kind: torch.cat([p.get(kind, z) for (p, _), z in zip(chunks, zero, strict=True)]) for kind in kinds
            } or {"gauss_newton": torch.cat(zero)}
            found[name].add(piece.weight, parts, torch.cat([slope for _, slope in chunks]))
            done(name)
    return found


def sqrt_gn(plan: Plan, directions: dict[str, Directions], done: Step) -> dict[str, Measured]:
    found = {name: Measured() for name in directions}
    layers = {name: plan.layers[name] for name in directions}
    for piece in plan.pieces:
        engine = SqrtGaussNewton(plan.program(piece.batch), plan.model, piece.batch, layers)
        for name, (h, slope) in engine.curvature(directions).items():
            found[name].add(piece.weight, {"gauss_newton": h}, slope)
            done(name)
    return found


def double_backward(
    plan: Plan, directions: dict[str, Directions], done: Step, *, weight: bool, pieces: Iterable[Piece] | None = None
) -> dict[str, Measured]:
    """In the outputs, or in the weight where a layer's output will not do (noted) or ``weight`` asks for it."""
    found = {name: Measured() for name in directions}
    for piece in plan.pieces if pieces is None else pieces:
        case = plan.model, plan.loss_fn, piece.batch

        def add(forms: dict[str, Tensor], share: float = piece.weight) -> None:
            for name, h in forms.items():
                found[name].add(share, {"total": h.double()}, None)
                done(name)

        together = [name for name in directions if not weight and found[name].note is None]
        if together:
            forms, refused = double_backward_output(*case, *_pick(plan, directions, together))
            for name, why in refused.items():
                found[name].note = why
            add(forms)
        for name in directions:
            if name not in together or found[name].note is not None:
                add(double_backward_weight(*case, *_pick(plan, directions, [name])))
    return found


def _pick(plan: Plan, directions: dict[str, Directions], names: list[str]) -> tuple[dict, dict]:
    return {name: plan.layers[name] for name in names}, {name: directions[name] for name in names}


def _chunks(directions: Directions, lanes: int) -> list[Directions]:
    return [directions[start : start + lanes] for start in range(0, len(directions), lanes)]
