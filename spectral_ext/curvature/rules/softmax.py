"""softmax p and log-softmax along an axis, with the mean m = Σ p ẋ under p and d = ẋ − m.

softmax:      ẏ = p d,   second-order term Σ w d²,  w = p (ȳ − Σ ȳ p).
log-softmax:  ẏ = d,     second-order term −(Σ ȳ) Σ p d²: the Gauss–Newton curvature of cross-entropy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_ext.curvature.rules.registry import Operation, Push, rule
from spectral_ext.curvature.sums import weighted_squares

aten = torch.ops.aten


def _centred(d: Tensor, p: Tensor, axis: int) -> Tensor:
    return d - (d * p).sum(axis, keepdim=True)


@rule(aten._softmax.default, aten._safe_softmax.default, mechanism="softmax")
def softmax(op: Operation) -> Push:
    p, axis = op.value, op.args[1] % op.value.dim()
    weight = None
    if op.adjoint is not None:
        weight = p * (op.adjoint - (op.adjoint * p).sum(axis, keepdim=True))

    def push(d: Tensor) -> tuple[Tensor, Tensor | None]:
        d = _centred(d, p, axis + 1)
        return p * d, None if weight is None else weighted_squares(d, weight)

    return push


@rule(aten._log_softmax.default, mechanism="softmax")
def log_softmax(op: Operation) -> Push:
    p, axis = op.value.exp(), op.args[1] % op.value.dim()
    weight = None if op.adjoint is None else -op.adjoint.sum(axis, keepdim=True) * p

    def push(d: Tensor) -> tuple[Tensor, Tensor | None]:
        d = _centred(d, p, axis + 1)
        return d, None if weight is None else weighted_squares(d, weight)

    return push
