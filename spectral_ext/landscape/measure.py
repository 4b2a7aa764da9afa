"""``measure``: the whole landscape of a model in one call."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spectral_ext._version import __version__
from spectral_ext.capture import Capture, Quotients, sum_factors
from spectral_ext.curvature.choose import SAMPLED, check_method, check_sampling
from spectral_ext.curvature.directions import given_directions
from spectral_ext.curvature.sampled_gauss_newton import Sampling
from spectral_ext.curvature.session import Session
from spectral_ext.landscape.build import build_row, empty_row
from spectral_ext.landscape.coverage import coverage
from spectral_ext.landscape.derive import take_signal
from spectral_ext.landscape.held_out import cross_fitted, own_intervals, second_moments
from spectral_ext.landscape.resume import RowStore, fingerprint
from spectral_ext.landscape.row import LayerLandscape
from spectral_ext.landscape.table import Landscape
from spectral_ext.layers import Layer, all_layers, find_layers, why_no_layer
from spectral_ext.measurement.batches import Batch, BatchSize, LossFunction, as_batches, batch_loss
from spectral_ext.measurement.checks import batch_norm_mode, check_precision, check_task, task_notes
from spectral_ext.measurement.digest import digest
from spectral_ext.measurement.direction_sources import direction_matrices
from spectral_ext.measurement.environment import measurement, unwrapped
from spectral_ext.measurement.options import check_options, pattern_list
from spectral_ext.measurement.progress import Progress
from spectral_ext.measurement.ranks import agree, check_group, directions_of_first, gathered, together
from spectral_ext.measurement.singular_directions import SingularDirections, singular_directions
from spectral_ext.signal.groups import check_folds, make_groups
from spectral_ext.signal.verdict import Signal

GIVEN_NOTE = "σ, u and v are those of the matrix in directions=, not of this batch's gradient"
GROUP = 8
"""Layers whose curvature is measured at a time when rows are kept for a resumed run."""


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
        memory_budget: bytes for the curvature, see :func:`~spectral_ext.directional_curvature`.
        progress: show progress bars.
        batch_size: the number of samples of a batch, or a function that tells it of a batch. None compares inputs and
            target, see :func:`spectral_ext.measurement.batches.count_samples`.
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
            run = _Run(model, loss_fn, layers, options, process_group, progress)
            run.sampling = check_sampling(method, draws, seed, residuals, run.chosen)
            if directions is not None:
                if folds is not None:
                    raise ValueError("directions and folds exclude each other: folds takes directions from the groups")
                run.take_directions(directions)
            data = as_batches(batches, model, batch_size=batch_size, device=run.device)
        agree(model, run.chosen, options, process_group)
        with together(process_group):
            if folds is not None:
                if process_group is not None:
                    raise ValueError("folds are not available with process_group: measure on one process")
                check_folds(folds, len(data))
            reduction = check_task(model, loss_fn, data)
            run.plan(data, memory_budget, folds, reduction)
        rows = run.resume(resume)
        todo = {name: layer for name, layer in run.chosen.items() if name not in rows}
        if todo:
            rows |= run.measure(todo)
        return run.landscape(rows, task_notes(model, gathered(reduction, process_group), autocast))


class _Run:
    """The stages of one measurement, in their order, and what they share."""

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        layers: str | Iterable[str] | None,
        options: dict[str, Any],
        group: Any,
        progress: bool,
    ) -> None:
        self.sampling = Sampling()
        self.model, self.loss_fn, self.options, self.group = model, loss_fn, options, group
        self.progress = Progress(progress)
        every, _ = find_layers(model)
        order = all_layers(model)
        self.chosen, self.skipped = find_layers(model, layers)
        if not self.chosen:
            raise ValueError(why_no_layer(self.skipped))
        check_precision(self.chosen)
        self.depth = {name: index for index, name in enumerate(order)}
        self.planned = sum(min(options["top_k"], *layer.matrix_shape) for layer in every.values())
        weight = next(iter(self.chosen.values())).weight
        self.device, self.dtype = weight.device, weight.dtype
        self.loss, self.samples = math.nan, 0
        self.keeps_rows = False
        """On all ranks alike; the first rank alone has the store."""
        self.store: RowStore | None = None
        self.given: dict[str, Tensor] = {}

    def plan(self, data: list[Batch], memory_budget: int | None, folds: Any, reduction: str) -> None:
        """Trace the model, and cut the data into groups and to the memory budget, before any pass."""
        self.memory_budget = memory_budget
        self.groups = None if folds is None else make_groups(data, folds, whole_batches=self._coupling(reduction))
        self.data = data = data if self.groups is None else self.groups.data
        method = self.options["method"]
        self.session = Session(
            self.model, self.loss_fn, self.chosen, method, None, self.group, self.planned, self.sampling
        )
        with self.progress.stage("trace"):
            self.session.cut(data, memory_budget)

    def take_directions(self, source: Any) -> None:
        """Measure along the singular directions of these matrices; layers without one are skipped."""
        self.given = direction_matrices(source, self.chosen)
        for name in self.chosen.keys() - self.given.keys():
            self.skipped[name] = "directions holds nothing for it"
            del self.chosen[name]
        self.options["directions"] = digest(self.given)

    def _coupling(self, reduction: str) -> str:
        """Why a batch must not be cut into groups; "" where it may."""
        if batch_norm_mode(self.model) in ("train", "mixed"):
            return "batch norm in train mode couples the samples of a batch, so that the groups define the loss"
        return "" if reduction == "mean" else "it is not known that the loss is a mean over the samples of a batch"

    def resume(self, folder: str | Path | None) -> dict[str, LayerLandscape]:
        """The rows that an earlier run of the same task has finished."""
        if folder is None:
            return {}
        self.keeps_rows = True
        rows: dict[str, LayerLandscape] = {}
        with together(self.group):
            identity = fingerprint(self.model, self.loss_fn, self.data, self.chosen, self.options)
        if self.group is not None:
            identity["data"] = digest(gathered(identity["data"], self.group))
        with together(self.group):
            if self.group is None or torch.distributed.get_rank(self.group) == 0:
                self.store = RowStore(folder, identity)
                rows = self.store.load()
        return gathered(rows, self.group)[0]

    def measure(self, todo: dict[str, Layer]) -> dict[str, LayerLandscape]:
        """The rows of these layers; layers without any are entered in ``skipped``."""
        model, loss_fn, data, group = self.model, self.loss_fn, self.data, self.group
        with together(group), self.progress.stage("factors"), self.progress.bar("factors", len(data)) as bar:
            sums = sum_factors(model, loss_fn, data, todo, on_batch=bar.update)
        capture = sums.reduced(group)
        self.loss, self.samples = capture.loss, capture.samples
        rows: dict[str, LayerLandscape] = {}
        with self.progress.stage("directions"):
            directions = {}
            for name, gradient in capture.gradients.items():
                matrix = self.given.get(name, gradient)
                along = directions_of_first(singular_directions(matrix, self.options["top_k"]), group)
                if along is not None and name in self.given:
                    # All singular values of another matrix than G would be compared with G's predicted spectrum.
                    along = replace(along, sigma_all=along.sigma_all[:0], notes=[*along.notes, GIVEN_NOTE])
                if along is not None:
                    directions[name] = along
                elif name in capture.layers:
                    rows[name] = empty_row(
                        todo[name],
                        self.depth[name],
                        "its gradient is zero" if name not in self.given else "its direction matrix is zero",
                        capture.samples,
                    )
                else:
                    self.skipped[name] = capture.missing[name]
        if not rows and not directions and not self.keeps_rows:
            raise ValueError(why_no_layer(self.skipped))
        pairs = {name: (d.U.to(self.dtype), d.V.to(self.dtype)) for name, d in directions.items()}
        with together(group), self.progress.stage("quotients"), self.progress.bar("alignment", len(data)) as bar:
            known = {name: todo[name] for name in pairs if name in capture.layers}
            sums_along, moments = second_moments(
                model, loss_fn, data, self.groups, known, pairs, capture.layers, on_batch=bar.update
            )
        quotients = {name: held.reduced(group) for name, held in sums_along.items()}
        signals = self._signals(todo, directions)
        for row in self._curvature(capture, directions, pairs, quotients):
            if self.groups is not None and row.name in signals:
                signal, row.signal = signals[row.name], signals[row.name]
                if not row.empty_reason:
                    h, weights = self.session.measured[row.name].by_piece, self.groups.weights
                    pieces = [piece.weight for piece in self.session.plan.pieces]
                    factors, level = moments.get(row.name), self.options["level"]
                    take_signal(row, signal, own_intervals(signal, h, pieces, weights, level, factors))
            rows[row.name] = row
            with together(group if self.keeps_rows else None):
                if self.store:
                    self.store.save(row)
        return rows

    def _signals(self, todo: dict[str, Layer], directions: dict[str, SingularDirections]) -> dict[str, Signal]:
        if self.groups is None or not directions:
            return {}
        with self.progress.stage("folds"), self.progress.bar("folds", len(self.groups.batches)) as bar:
            return cross_fitted(
                self.model, self.loss_fn, self.groups, todo, directions,
                options=self.options, sampling=self.sampling, memory_budget=self.memory_budget,
                planned_directions=self.planned, on_group=bar.update,
            )  # fmt: skip

    def _curvature(
        self,
        capture: Capture,
        directions: dict[str, SingularDirections],
        pairs: dict[str, tuple[Tensor, Tensor]],
        quotients: dict[str, Quotients],
    ) -> Iterator[LayerLandscape]:
        if not pairs:
            return
        session, names = self.session, list(pairs)
        local = replace(capture.local, gradients={name: capture.local.gradients.get(name) for name in self.chosen})
        found = session.directions_of(local, given_directions(pairs, self.chosen), self.options["top_k"])
        for name in (name for name in names if name not in found):
            yield empty_row(self.chosen[name], self.depth[name], session.skipped[name], capture.samples)
        # A draw serves all layers at once: in groups, every group would repeat all draws.
        size = GROUP if self.keeps_rows and self.options["method"] != SAMPLED else len(names)
        for start in range(0, len(names), size):
            part = {name: found[name] for name in names[start : start + size] if name in found}
            with together(self.group), self.progress.stage("curvature"):
                session.measure(part, self.progress.shown)
            curvature = session.results(part, self.options["split"])
            with self.progress.bar("spectra", len(part)) as bar:
                for name in part:
                    if name not in curvature:
                        reason = curvature.skipped[name]
                        yield empty_row(self.chosen[name], self.depth[name], reason, capture.samples)
                        continue
                    with self.progress.stage("spectra"):
                        row = build_row(
                            self.chosen[name], self.depth[name], directions[name], curvature[name],
                            factors=capture.layers.get(name), quotients=quotients.get(name),
                            missing=capture.missing.get(name, ""), samples=capture.samples,
                            level=self.options["level"], seed=self.options["seed"],
                        )  # fmt: skip
                    yield row
                    bar.update()

    def landscape(self, rows: dict[str, LayerLandscape], notes: list[str]) -> Landscape:
        if math.isnan(self.loss):  # all rows were there
            with torch.no_grad():
                losses = [batch.samples * batch_loss(self.model, self.loss_fn, batch).item() for batch in self.data]
            sums = gathered((sum(losses), sum(batch.samples for batch in self.data)), self.group)
            self.samples = sum(samples for _, samples in sums)
            self.loss = sum(loss for loss, _ in sums) / self.samples
        model = self.model
        meta: dict[str, Any] = {"version": __version__, "torch": torch.__version__, "model": type(model).__name__}
        meta |= {"device": str(self.device), "dtype": str(self.dtype).removeprefix("torch.")}
        meta |= {"batches": sum(gathered(len(self.data), self.group)), **self.options}
        if self.groups is not None:  # tells a comparison whether two landscapes have the same samples in each group
            meta["groups"] = digest(self.groups.batches)
        meta |= {"mode": "train" if model.training else "eval", "batch_norm": batch_norm_mode(model)}
        meta |= {
            "scale": "expand", "loss": self.loss, "samples": self.samples,
            "seconds": self.progress.seconds,
            "notes": notes,
            "coverage": coverage(model, self.chosen, rows, self.skipped),
        }  # fmt: skip
        return Landscape({name: rows[name] for name in self.chosen if name in rows}, self.skipped, meta)
