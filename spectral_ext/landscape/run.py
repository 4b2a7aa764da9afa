"""The stages of one measurement."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spectral_ext._version import __version__
from spectral_ext.capture import Capture, Quotients, sum_factors
from spectral_ext.curvature.choose import SAMPLED
from spectral_ext.curvature.directions import given_directions
from spectral_ext.curvature.sampled_gauss_newton import Sampling
from spectral_ext.curvature.session import Session
from spectral_ext.landscape.build import build_row, empty_row
from spectral_ext.landscape.coverage import coverage
from spectral_ext.landscape.derive import take_signal
from spectral_ext.landscape.held_out import cross_fitted, own_intervals, second_moments
from spectral_ext.landscape.memory import plan_memory
from spectral_ext.landscape.resume import RowStore, fingerprint
from spectral_ext.landscape.row import LayerLandscape
from spectral_ext.landscape.table import Landscape
from spectral_ext.layers import Layer, all_layers, find_layers, why_no_layer
from spectral_ext.measurement.batches import Batch, LossFunction, batch_loss
from spectral_ext.measurement.checks import batch_norm_mode, check_precision
from spectral_ext.measurement.digest import digest
from spectral_ext.measurement.direction_sources import direction_matrices
from spectral_ext.measurement.progress import Progress
from spectral_ext.measurement.ranks import directions_of_first, gathered, together
from spectral_ext.measurement.singular_directions import SingularDirections, singular_directions
from spectral_ext.signal.groups import make_groups
from spectral_ext.signal.verdict import Signal

GIVEN_NOTE = "σ, u and v are those of the matrix in directions=, not of this batch's gradient"
GROUP = 8
"""Layers whose curvature is measured at a time when rows are kept for a resumed run."""


class Run:
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
            self.session.cut(data, memory_budget, holds_gradients=False)
            self.memory = plan_memory(self.session.plan, self.chosen, self.options["top_k"])

    def take_groups_of_all_ranks(self) -> None:
        """The groups of the rank that needs most of them, so that all ranks finish the same layers together."""
        groups = max(gathered(self.memory.groups, self.group), key=len)
        self.memory = replace(self.memory, groups=groups)
        self.progress.say(str(self.memory))

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
        rows: dict[str, LayerLandscape] = {}
        for names in self.memory.groups:
            if group := {name: todo[name] for name in names if name in todo}:
                rows |= self._measure_group(group)
        if not rows and not self.keeps_rows:
            raise ValueError(why_no_layer(self.skipped))
        return rows

    def _measure_group(self, todo: dict[str, Layer]) -> dict[str, LayerLandscape]:
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
                    pieces = [piece.weight for piece in self.session.plan.pieces]
                    h = self.session.measured[row.name].by_piece
                    factors = moments.get(row.name)
                    level = self.options["level"]
                    take_signal(row, signal, own_intervals(signal, h, pieces, self.groups.weights, level, factors))
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
                self.model, self.loss_fn, self.groups, todo,
                directions,
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
            "scale": "expand",
            "loss": self.loss,
            "samples": self.samples,
            "seconds": self.progress.seconds,
            "memory": {"bytes": self.memory.total, "groups": len(self.memory.groups)},
            "notes": notes,
            "coverage": coverage(model, self.chosen, rows, self.skipped),
        }
        return Landscape({name: rows[name] for name in self.chosen if name in rows}, self.skipped, meta)
