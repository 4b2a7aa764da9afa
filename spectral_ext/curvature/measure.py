"""The public call: data → mean gradient → directions → h_k by the chosen methods → layer name → result."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from spectral_ext.curvature.choose import SAMPLED, check_method, check_sampling
from spectral_ext.curvature.directions import given_directions
from spectral_ext.curvature.result import DirectionalCurvature
from spectral_ext.curvature.session import Session
from spectral_ext.layers import Layer, find_layers, why_no_layer
from spectral_ext.measurement.batches import Batch, BatchSize, Count, LossFunction, as_batches
from spectral_ext.measurement.checks import REDUCTION_NOTES, check_precision, check_task
from spectral_ext.measurement.digest import digest
from spectral_ext.measurement.direction_sources import direction_matrices, is_matrix
from spectral_ext.measurement.environment import measurement, unwrapped
from spectral_ext.measurement.options import check_options, pattern_list
from spectral_ext.measurement.ranks import agree, check_group, together
from spectral_ext.measurement.singular_directions import singular_directions


def directional_curvature(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Iterable[Batch],
    *,
    directions: Any = None,
    layers: str | Iterable[str] | None = None,
    top_k: int = 20,
    method: str = "auto",
    split: bool = False,
    memory_budget: int | None = None,
    progress: bool = False,
    batch_size: BatchSize | None = None,
    count: Count | None = None,
    process_group: Any = None,
    self_check: bool | None = None,
    draws: int = 32,
    seed: int = 0,
    residuals: str | Iterable[str] | None = None,
) -> DirectionalCurvature:
    """h_k = vec(D_k)ᵀ H vec(D_k) for every layer, H the Hessian of the mean loss in that layer's weight (§2).

    All methods but ``finite_difference`` are exact up to rounding, and sum products of float32 numbers in float64.

    The loss is the mean over all samples: batches are weighted by their size, or by ``count``. The model is measured in
    the mode it is in (train-mode batch norm gives another h, and then each batch is normalised by itself).

    Args:
        model: parameters in float32 or float64; it is left exactly as it was, also after an error.
        loss_fn: ``loss_fn(output, target) → scalar``, a mean over samples, see :mod:`spectral_ext.measurement.batches`.
        batches: an iterable of batches; it is read once.
        directions: ``{name: (U, V)}`` with columns u_k, v_k, shapes (m, K) and (n, K), or ``{name: D}`` of any rank,
            (K, *weight.shape). Or matrices whose leading singular vectors are taken: an optimizer (its momentum), a
            state dict of gradients, or ``{name: M}`` with M of the weight's shape or (m, n). Only layers with
            directions are measured. None: the singular vectors of the mean gradient.
        layers: names or shell patterns; None takes all matrices but embeddings and
            what is tied to them, which are measured where they are named, see :func:`spectral_ext.layers.find_layers`.
            h counts every use of a weight.
        top_k: how many singular directions per layer, at most the numerical rank of its gradient, see
            :func:`spectral_ext.measurement.singular_directions.singular_directions`.
        method: ``auto``, ``tangent_adjoint``, ``sqrt_gn``, ``double_backward_output``, ``double_backward_weight``,
            ``finite_difference`` or ``sampled_gauss_newton``. The last estimates the Gauss–Newton part of h alone,
            without bias and with a standard error, by one backward pass per draw for all layers and directions, see
            :mod:`spectral_ext.curvature.sampled_gauss_newton`; it is taken only where it is named. ``auto`` takes the
            fastest that applies, in the order ``sqrt_gn``, ``tangent_adjoint``, double backward in the layer's output,
            in its weight; and ``finite_difference``, with an estimate of its error in the result, where an operation
            has no second derivative. It warns where a method fails its check. A method that is asked for by name and
            does not apply to a layer, or fails its check there, raises an error.
        split: also h by mechanism, ``parts``: ``gauss_newton`` is the curvature of the loss carried back by the
            Jacobian of the model's output (all operations behind that output), and the curvature of the model's own
            operations is ``norm``, ``softmax``, ``bilinear`` (products, attention), ``activation`` and ``other``. They
            add up to h.
        memory_budget: bytes for the measurement. To fit it, fewer directions are measured at once, and then fewer
            samples. None: no limit on a CPU; on a GPU as many directions at once as fit the free memory.
        progress: show a progress bar.
        batch_size: the number of samples of a batch, or a function that tells it of a batch; None: as
            :func:`spectral_ext.measurement.batches.count_samples` finds it.
        count: what the loss of a batch is a mean over, and what the batch weighs, as a function of the batch: the
            number of labelled tokens for a token mean. None: its samples.
        process_group: a ``torch.distributed`` group whose ranks each bring their own batches; all get the same result.
        self_check: which layers measured by ``tangent_adjoint`` and ``sqrt_gn`` are compared with double backward at
            k = 1 and k = K on the first batch, tolerance 1e-8 in float64 and 1e-3 in float32. None: at most three of
            each kind (same shape, names that differ in numbers alone), and more where an operation follows none of
            them; all of a kind where one of it fails; ``notes`` names the layers that stand for another. True: every
            layer. False: none. The first derivatives of every layer are compared with the gradient in any case. The
            comparison is made in the model's precision, and again in float64 where it fails. A float32 layer that still
            differs, and a direction along which the terms of h cancel to less than 1/300 of their size, is measured
            with all arithmetic in float64; ``notes`` says so. Custom autograd functions may lack a second
            derivative without an error: where the comparison fails behind one, and wherever double backward itself
            measures h behind one, central differences of the gradient decide. It must not be True with
            ``sampled_gauss_newton``, whose first derivatives are compared with the gradient always.
        draws: of ``sampled_gauss_newton``: how often labels are drawn for each sample, at least 2. The relative
            standard error of h is about √(2/(draws · samples)) where samples do not influence each other.
        seed: of the drawn labels. Torch's global generators are left alone.
        residuals: with ``sampled_gauss_newton``: names or patterns of the layers whose residual, the rest of h, is
            measured too, exactly and by mechanism (``split=True`` shows it); their h is that of all parts.

    Returns:
        a mapping from layer name to :class:`LayerCurvature`, float results in the weight's dtype and on its device.
        ``skipped`` holds the layers without a result, with the reason.

    Raises:
        ValueError, TypeError, KeyError, RuntimeError: what cannot be measured, named with the remedy: a loss that is
            not a finite scalar, dropout in train mode, autocast, half precision, directions of a wrong shape, no
            batch, a memory budget too small, a method that does not apply.
    """
    check_group(process_group)
    with contextlib.ExitStack() as stack:
        with together(process_group):
            layers, residuals = pattern_list(layers), pattern_list(residuals)
            check_method(method)
            if self_check not in (None, True, False):
                raise TypeError(f"self_check must be True, False or None, not {self_check!r}")
            check_options(
                top_k=top_k, split=split, memory_budget=memory_budget, layers=layers, progress=progress, draws=draws,
                seed=seed, residuals=residuals,
            )  # fmt: skip
            model = unwrapped(model)
            stack.enter_context(measurement(model))
            directions, without = _with_pairs(model, layers, directions, top_k)
            chosen, skipped = _layers(model, layers, directions)
            sampling = check_sampling(method, draws, seed, residuals, chosen, self_check)
            skipped.update(without)
            device = next(iter(chosen.values())).weight.device
            data = as_batches(batches, model, batch_size=batch_size, count=count, device=device)
            given = None if directions is None else given_directions(directions, chosen)
            session = Session(model, loss_fn, chosen, method, self_check, process_group, sampling=sampling)
        options = {"method": method, "top_k": top_k, "split": split, "self_check": session.check}
        options |= {"draws": draws, "seed": seed, "residuals": residuals} if method == SAMPLED else {}
        if process_group is not None and directions is not None:
            options["directions"] = digest(directions)
        agree(model, chosen, options, process_group)
        with together(process_group):
            if check_task(model, loss_fn, data) == "unknown" and (len(data) > 1 or process_group is not None):
                warnings.warn(REDUCTION_NOTES["unknown"], stacklevel=2)
            session.cut(data, memory_budget)
            session.pass_over_data()
        found = session.directions_of(session.local, given, top_k)
        with together(process_group):
            session.measure(found, progress)
        result = session.results(found, split)
    if found and not result:
        raise ValueError("; ".join(f"{name} cannot be measured: {result.skipped[name]}" for name in found))
    result.skipped.update({name: why for name, why in skipped.items() if name not in result})
    return result


def _with_pairs(
    model: nn.Module, layers: Any, directions: Any, top_k: int
) -> tuple[Mapping[str, Any] | None, dict[str, str]]:
    """The caller's directions with a pair (U, V) in the place of each matrix, and the layers whose matrix is zero."""
    if directions is None:
        return None, {}
    if isinstance(directions, torch.optim.Optimizer):
        chosen, _ = find_layers(model, layers)
        matrices, kept = direction_matrices(directions, chosen) if chosen else {}, {}
    elif isinstance(directions, Mapping):
        weights = dict(model.named_parameters())  # K directions have one dimension more than the weight
        by_parameter = any(
            key in weights and isinstance(value, Tensor) and value.dim() == weights[key].dim()
            for key, value in directions.items()
        )
        chosen, _ = find_layers(model, layers, named=() if by_parameter else directions)
        kept = {} if by_parameter else dict(directions)
        matrices = direction_matrices(directions, chosen) if by_parameter and chosen else {}
        for name in kept.keys() & chosen.keys():
            if isinstance(kept[name], Tensor) and is_matrix(kept[name], chosen[name]):
                matrices |= direction_matrices({name: kept.pop(name)}, {name: chosen[name]})
    else:
        raise TypeError(
            f"directions must be an optimizer or a mapping from layer to tensors, not {type(directions).__name__}"
        )
    zero = {}
    for name, matrix in matrices.items():
        found = singular_directions(matrix, top_k)
        if found is None:
            zero[name] = "its direction matrix is zero"
        else:
            kept[name] = found.U, found.V
    if zero and not kept:
        raise ValueError(f"directions: every matrix is zero ({', '.join(list(zero)[:8])})")
    return kept, zero


def _layers(
    model: nn.Module, layers: Any, directions: Mapping[str, Any] | None
) -> tuple[dict[str, Layer], dict[str, str]]:
    chosen, skipped = find_layers(model, layers, named=directions or ())
    if not chosen:
        raise ValueError(why_no_layer(skipped))
    check_precision(chosen)
    if directions is not None:
        for name in [name for name in chosen if name not in directions]:
            skipped[name] = "no directions were given for it"
            if len(chosen) > 1:
                del chosen[name]
    return chosen, skipped
