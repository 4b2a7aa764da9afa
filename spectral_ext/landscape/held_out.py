"""Each layer of a model cross-fitted over groups: directions from the other groups, σ̃ and h̃ on the group held out.

The curvature costs what an ordinary measurement costs: each sample is measured once, along K directions per layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_ext.capture import LayerFactors, QuotientSums, sum_quotients
from spectral_ext.curvature.directions import given_directions
from spectral_ext.curvature.sampled_gauss_newton import Sampling
from spectral_ext.curvature.session import Session
from spectral_ext.factors.second_moment import SecondMoment
from spectral_ext.layers import Layer
from spectral_ext.measurement.batches import Batch, LossFunction
from spectral_ext.measurement.gradients import GradientPass, gradient_pass, pieces_of
from spectral_ext.measurement.singular_directions import SingularDirections
from spectral_ext.signal.cross_fitting import MIN_GROUPS, cross_fit, fold_directions
from spectral_ext.signal.groups import Groups
from spectral_ext.signal.own_batch import DataIntervals, FactorMoments, own_batch_intervals
from spectral_ext.signal.verdict import Signal, judge, too_few_groups


def cross_fitted(
    model: nn.Module,
    loss_fn: LossFunction,
    groups: Groups,
    layers: dict[str, Layer],
    own: dict[str, SingularDirections],
    *,
    options: dict[str, Any],
    sampling: Sampling,
    memory_budget: int | None,
    planned_directions: int,
    on_group: Callable[[], Any],
) -> dict[str, Signal]:
    """The :class:`Signal` of each layer in ``own``; call it under ``measurement(model)``.

    Args:
        own: singular directions of the gradient of all samples, for ``share`` and ``own_folds``.
        options: ``top_k``, ``method`` and ``level`` of the measurement.
        sampling: how ``sampled_gauss_newton`` draws labels; each group has draws of its own.
        memory_budget, planned_directions: as in the measurement, so that the same method is chosen.
        on_group: called after each group.
    """
    count, weights = len(groups.batches), groups.weights
    if count < MIN_GROUPS:
        few = too_few_groups(count)
        return {name: Signal(count, alpha=few.alpha, reason=few.reason, notes=list(groups.notes)) for name in own}
    measured = {name: layers[name] for name in own}
    passes = [gradient_pass(model, loss_fn, pieces_of(group), measured) for group in groups.batches]
    gradients = {name: [_matrix(one, name, layer) for one in passes] for name, layer in measured.items()}
    pairs = {name: fold_directions(g, top_k=options["top_k"], weights=weights) for name, g in gradients.items()}
    pairs = {name: folds for name, folds in pairs.items() if all(U.shape[1] for U, _ in folds)}
    h = _held_out_curvature(
        model, loss_fn, groups, measured, passes, pairs, options["method"], sampling, memory_budget, planned_directions,
        on_group,
    )  # fmt: skip
    found = {}
    for name in measured:
        cross = cross_fit(
            gradients[name], top_k=options["top_k"], weights=weights, directions=pairs.get(name), error_rate=0.05
        )
        found[name] = judge(
            cross,
            h.get(name, np.zeros((count, cross.folds.shape[1]))),
            own[name].sigma.double().cpu().numpy(),
            weights=weights,
            level=options["level"],
            notes=groups.notes,
        )
        U, V = (t.double() for t in (own[name].U, own[name].V))
        found[name].own_folds = [((g.double() @ V) * U).sum(0).cpu().numpy() for g in gradients[name]]
    return found


def own_intervals(
    signal: Signal,
    by_piece: list[Tensor],
    piece_weights: list[float],
    weights: list[int],
    level: float,
    factors: FactorMoments | None = None,
) -> DataIntervals | None:
    """The interval of the data of a layer, from h on each piece of the measurement; None where it was not kept.

    Args:
        by_piece, piece_weights: h (K,) of each piece, and its samples; the pieces of a group follow each other.
        weights: samples of each group.
        factors: the factors' moments per group, for β and φ.
    """
    if len(weights) < MIN_GROUPS or len(by_piece) != len(piece_weights) or not signal.own_folds:
        return None
    group_of = np.searchsorted(np.cumsum(weights), np.cumsum(piece_weights) - 0.5 * np.asarray(piece_weights))
    h = np.zeros((len(weights), len(by_piece[0])))
    for j, weight, values in zip(group_of, piece_weights, by_piece, strict=True):
        if j < len(weights):  # beyond are the samples of no group
            h[j] += weight / weights[j] * values.double().cpu().numpy()
    return own_batch_intervals(np.stack(signal.own_folds), h, weights=weights, factors=factors, level=level)


def second_moments(
    model: nn.Module,
    loss_fn: LossFunction,
    data: list[Batch],
    groups: Groups | None,
    layers: dict[str, Layer],
    pairs: dict[str, tuple[Tensor, Tensor]],
    factors: dict[str, LayerFactors],
    *,
    on_batch: Callable[[], None],
) -> tuple[dict[str, QuotientSums], dict[str, FactorMoments]]:
    """:func:`~spectral_ext.capture.sum_quotients` over all batches, and with three or more groups the moments of each.

    It is one pass. Where a layer's factors are single matrices of the size of its directions, the moments along the
    factors' eigenvectors are taken in the same pass; only such layers have :class:`FactorMoments`.
    """
    if not layers:
        return {}, {}
    if groups is None or len(groups.batches) < MIN_GROUPS:
        return sum_quotients(model, loss_fn, data, layers, pairs, on_batch=on_batch), {}
    wide = dict(pairs)
    for name in layers:
        (U, V), found = pairs[name], factors[name]
        count = U.shape[1]
        if (found.C_delta.size, found.C_A.size) == (len(U), len(V)):
            W_delta, W_A = (_eigenvectors(C, count).to(U) for C in (found.C_delta, found.C_A))
            wide[name] = torch.cat([U, W_delta], 1), torch.cat([V, W_A], 1)
    by_group = [
        sum_quotients(model, loss_fn, batches, layers, wide, on_batch=on_batch)
        for batches in [*groups.batches, *([groups.rest] if groups.rest else [])]
    ]
    sums, moments = {}, {}
    for name in layers:
        count, total = pairs[name][0].shape[1], wide[name][0].shape[1]
        held = [one[name] for one in by_group]
        sums[name] = sum(held[1:], held[0])[:count]
        labelled = [one.reduced() for one in held[: len(groups.batches)]]
        if total > count:
            output, inputs = (
                np.stack([getattr(q, key).cpu().numpy() for q in labelled]) for key in ("output", "input")
            )
            rows = np.array([one.rows for one in held[: len(groups.batches)]], dtype=np.float64)
            moments[name] = FactorMoments(
                output[:, :count], inputs[:, :count], output[:, count:], inputs[:, count:], rows
            )
    return sums, moments


def _eigenvectors(C: SecondMoment, count: int) -> Tensor:
    """The top eigenvectors (n, count); zero beyond the rank, where the moment along every eigenvector is zero."""
    found = C.eigenspace(count)
    return F.pad(found, (0, count - found.shape[1]))


def _matrix(one: GradientPass, name: str, layer: Layer) -> Tensor:
    gradient = one.gradients[name]
    m, n = layer.matrix_shape
    return layer.weight.new_zeros(m, n) if gradient is None else layer.matrix(gradient)


def _held_out_curvature(
    model: nn.Module,
    loss_fn: LossFunction,
    groups: Groups,
    layers: dict[str, Layer],
    passes: list[GradientPass],
    pairs: dict[str, list[tuple[Tensor, Tensor]]],
    method: str,
    sampling: Sampling,
    memory_budget: int | None,
    planned_directions: int,
    on_group: Callable[[], Any],
) -> dict[str, np.ndarray]:
    """(J, K) per layer: h of group j's mean loss along fold j's directions. K is the fewest of the folds."""
    if not pairs:
        return {}
    layers = {name: layers[name] for name in pairs}
    keep = {name: min(U.shape[1] for U, _ in folds) for name, folds in pairs.items()}
    rows: dict[str, list[np.ndarray]] = {name: [] for name in pairs}
    programs: Any = None
    for j, group in enumerate(groups.batches):
        # The measurement of all samples has compared the method with double backward already.
        session = Session(
            model, loss_fn, layers, method, False, None, planned_directions, replace(sampling, stream=1 + j)
        )
        session.cut(group, memory_budget)
        if programs is None:
            programs = session.plan.programs, session.plan.estimates
        session.plan.programs, session.plan.estimates = programs
        along = {
            name: tuple(t[:, : keep[name]].to(layers[name].weight) for t in folds[j]) for name, folds in pairs.items()
        }
        found = session.directions_of(
            GradientPass(passes[j].loss, passes[j].samples, {name: passes[j].gradients[name] for name in layers}),
            given_directions(along, layers),
            0,
        )
        session.measure(found, False)
        result = session.results(found, False)
        for name in pairs:
            h = result[name].h if name in result else torch.zeros(keep[name])
            rows[name].append(h.double().cpu().numpy())
        on_group()
    return {name: np.stack(values) for name, values in rows.items()}
