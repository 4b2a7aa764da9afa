"""``measure``: the whole landscape of a model in one call."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from spectral_ext.curvature.choose import SAMPLED, check_method, check_sampling
from spectral_ext.landscape.run import Run
from spectral_ext.landscape.table import Landscape
from spectral_ext.measurement.batches import BatchSize, Count, LossFunction, Mask, as_batches
from spectral_ext.measurement.checks import check_task, task_notes
from spectral_ext.measurement.environment import measurement, unwrapped
from spectral_ext.measurement.options import check_options, pattern_list
from spectral_ext.measurement.ranks import agree, check_group, gathered, together
from spectral_ext.signal.groups import check_folds


def measure(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Iterable[Any],
    *,
    top_k: int = 20,
    layers: str | Iterable[str] | None = None,
    method: str = "auto",
    split: bool = True,
    seed: int = 0,
    level: float = 0.95,
    memory_budget: int | None = None,
    progress: bool = True,
    batch_size: BatchSize | None = None,
    count: Count | None = None,
    mask: Mask | None = None,
    resume: str | Path | None = None,
    process_group: Any = None,
    folds: int | Sequence[Any] | None = None,
    directions: Any = None,
    draws: int = 32,
    residuals: str | Iterable[str] | None = None,
) -> Landscape:
    """Measure every layer: G = UΣVᵀ, h_k along u_k v_kᵀ, C_A, C_δ, and all that the paper derives from them.

    There are two forward-backward passes over the data, one for gradients and factors and one for second moments along
    the directions, and then the passes of :func:`~spectral_ext.directional_curvature`. The model is measured in the
    mode it is in: under train-mode batch norm h is the curvature of the batch-coupled loss and d includes the coupling
    (``meta["batch_norm"]`` says so); running statistics do not move. Model, gradients, hooks, buffers, random number
    generators and flags are as before afterwards, also after an error.

    Args:
        model: the module; of a model that ``torch.compile`` or ``DistributedDataParallel`` wraps, the module inside.
        loss_fn: ``loss_fn(output, target) → scalar``, a mean over the samples of a batch.
        batches: pairs ``(inputs, target)`` or mappings, see :mod:`spectral_ext.measurement.batches`. All batches
            together are the data: the loss is the mean over all samples. Smaller batches take less memory; under
            train-mode batch norm they are part of the definition.
        top_k: singular directions per layer; fewer where the gradient has lower rank (the row's notes say so).
        layers: names or shell patterns; None takes all but embeddings and what is tied to them, which are measured
            where they are named, see :func:`spectral_ext.layers.find_layers`. A row does not depend on which other
            layers are measured.
        method: how h is measured, see :func:`~spectral_ext.directional_curvature`.
        split: also measure the Gauss–Newton part of h and its residual by mechanism.
        seed: of the bootstrap, and of the labels that ``sampled_gauss_newton`` draws.
        level: coverage of all intervals, between 0 and 1.
        memory_budget: bytes beyond the model, its weights and the data. To fit it, layers are finished in groups, each
            with a pass of its own over the data, and the curvature is cut as by
            :func:`~spectral_ext.directional_curvature`. With ``progress`` the estimate is printed before the first
            pass; ``meta["memory"]`` holds it. None: all layers at once.
        progress: show progress bars.
        batch_size: the number of samples of a batch, or a function that tells it of a batch. None compares inputs and
            target, see :func:`spectral_ext.measurement.batches.count_samples`.
        count: what the loss of a batch is a mean over, and what the batch weighs, as a function of the batch: the
            number of labelled tokens for a token mean. Not together with ``folds``. None: its samples.
        mask: which rows (tokens) count in C_A, S and the concentration ratio: a function of the batch that returns
            (B, S), true where a row counts, or the name of such an entry of the batch. None leaves out the rows without
            error among those that ``attention_mask`` or the labels (``ignore_index``, −100) mark, see
            :func:`spectral_ext.measurement.masks.row_mask`. h and σ do not depend on it.
        resume: a folder that keeps each finished layer. An interrupted run goes on from there when it is called again
            with the same model, loss, data and options.
        process_group: a ``torch.distributed`` group whose ranks each bring their own batches; all ranks end with the
            same landscape. The first rank keeps the rows of ``resume``.
        folds: also cross-fit every layer over groups of samples, ``row.signal``: which directions hold on other
            samples, and α over these with intervals. A number J cuts the data, in its order, into J groups of equal
            size (whole batches under train-mode batch norm, or where the loss is no mean over samples); a list gives
            the label of each batch's group, None for none. At least three groups are needed, eight are usual. It costs
            about one further measurement, and the memory of J gradients. None: α describes this batch alone.
        directions: take σ_k, u_k and v_k of other matrices than the gradient: an optimizer (its momentum, what T(σ; α)
            is applied to), or a mapping from a layer's or weight's name to a tensor. None: the gradient. Not together
            with ``folds``, whose directions are those of other groups.
        draws: with ``method="sampled_gauss_newton"``: how often labels are drawn for each sample, at least 2. h is the
            Gauss–Newton part alone then, ``row.arrays.h_standard_error`` its standard error.
        residuals: with ``method="sampled_gauss_newton"``: names or patterns of the layers whose residual is measured
            too, exactly, see :func:`~spectral_ext.directional_curvature`.

    Returns:
        The landscape. A layer whose Kronecker factors cannot be had (its weight is used more than once, for example)
        has a row without them, whose notes say why; a layer with nothing to measure has a row with ``empty_reason``;
        modules that cannot be measured are in ``.skipped``.

    Raises:
        TypeError, ValueError, RuntimeError: batches, loss or model are unusable (not finite, no scalar, a sum over
            samples, random, lazy, sharded, autocast), an option is out of range, ``resume`` holds another run, or the
            ranks differ; the message names the batch, layer, option or rank and the remedy.
        KeyError: a pattern in ``layers`` matches nothing.
    """
    check_group(process_group)
    with contextlib.ExitStack() as stack:
        with together(process_group):
            layers = pattern_list(layers)
            options = dict(top_k=top_k, method=method, split=split, seed=seed, level=level)
            residuals = pattern_list(residuals)
            options |= {"draws": draws, "residuals": residuals} if method == SAMPLED else {}
            options |= {} if folds is None else {"folds": list(folds) if isinstance(folds, (list, tuple)) else folds}
            check_options(
                top_k=top_k, layers=layers, split=split, seed=seed, level=level, memory_budget=memory_budget,
                progress=progress, resume=resume, draws=draws,
                residuals=residuals,
            )  # fmt: skip
            check_method(method)
            model = unwrapped(model)
            autocast = stack.enter_context(measurement(model))
            run = Run(model, loss_fn, layers, options, process_group, progress)
            run.sampling = check_sampling(method, draws, seed, residuals, run.chosen)
            if directions is not None:
                if folds is not None:
                    raise ValueError("directions and folds exclude each other: folds takes directions from the groups")
                run.take_directions(directions)
            data = as_batches(batches, model, batch_size=batch_size, count=count, mask=mask, device=run.device)
        agree(model, run.chosen, options, process_group)
        with together(process_group):
            if folds is not None:
                if process_group is not None:
                    raise ValueError("folds are not available with process_group: measure on one process")
                if count is not None:
                    raise ValueError("folds and count exclude each other: the groups weigh by their samples")
                check_folds(folds, len(data))
            reduction = check_task(model, loss_fn, data)
            run.plan(data, memory_budget, folds, reduction)
        run.take_groups_of_all_ranks()
        rows = run.resume(resume)
        todo = {name: layer for name, layer in run.chosen.items() if name not in rows}
        if todo:
            rows |= run.measure(todo)
        return run.landscape(rows, task_notes(model, gathered(reduction, process_group), autocast))
