"""Pieces of data, traces and directions at once: how a measurement is cut to fit the memory budget."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from spectral_ext.curvature import precision
from spectral_ext.curvature.memory import MemoryEstimate, estimate
from spectral_ext.curvature.trace import Program, UntraceableError, signature, trace
from spectral_ext.layers import Layer
from spectral_ext.measurement.batches import Batch, LossFunction, batch_loss
from spectral_ext.measurement.gradients import Piece

CACHE = 8 << 20
"""Bytes of tangents at a time on a CPU: more fall out of its caches."""


@dataclass
class Plan:
    """What to measure on, and how much at a time."""

    model: nn.Module
    loss_fn: LossFunction
    pieces: list[Piece]
    layers: Mapping[str, Layer]
    memory_budget: int | None
    self_check: bool
    holds_gradients: bool = True
    """Whether the budget is for the gradients of all layers too."""
    programs: dict[Any, Program | UntraceableError] = field(default_factory=dict)
    estimates: dict[Any, MemoryEstimate] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        """The weights' precision."""
        return next(iter(self.layers.values())).weight.dtype

    def program(self, batch: Batch, in_float64: bool = False) -> Program:
        """The trace for a batch of this signature; ``in_float64``: with its arithmetic in float64.

        Raises:
            UntraceableError: it cannot be traced.
        """
        key = self._key(batch)
        if key not in self.programs:
            found: Program | UntraceableError
            try:
                found = trace(self.model, self.loss_fn, batch)
                key = id(batch) if found.of_one_batch else key
                self.estimates[key] = estimate(found, self.model, self.layers, batch.samples, self.holds_gradients)
            except UntraceableError as why:
                found = why
            self.programs[key] = found
        found = self.programs[key]
        if isinstance(found, UntraceableError):
            raise found
        return self._raised(key, found, batch.samples) if in_float64 else found

    def _raised(self, key: Any, program: Program, samples: int) -> Program:
        raised = self.programs.get((key, torch.float64))
        if not isinstance(raised, Program):
            raised = precision.in_float64(program)
            self.programs[key, torch.float64] = raised
            self.estimates[key, torch.float64] = estimate(
                raised, self.model, self.layers, samples, self.holds_gradients
            )
        return raised

    def _key(self, batch: Batch) -> Any:
        return id(batch) if id(batch) in self.programs else signature(batch)

    def estimate(self, batch: Batch, in_float64: bool = False) -> MemoryEstimate:
        """What a batch takes that :meth:`program` has traced."""
        key = self._key(batch)
        return self.estimates[(key, torch.float64) if in_float64 else key]

    def directions_at_once(self, name: str, batch: Batch, in_float64: bool = False) -> int:
        """How many directions of a layer to push at a time."""
        estimate, budget = self.estimate(batch, in_float64), self.memory_budget
        device, most = self.layers[name].weight.device, 1 << 30
        if device.type == "cpu":
            most = max(2, CACHE // max(estimate.per_direction[name], 1))
        elif device.type == "cuda" and budget is None:
            # The base is held already when this is counted.
            budget = estimate.base + int(0.8 * torch.cuda.mem_get_info(device)[0])
        return most if budget is None else max(1, min(most, estimate.directions_at_once(name, budget)))

    def cut_samples(self) -> None:
        """Cut batches whose estimate exceeds the budget at one direction into pieces of fewer samples.

        Raises:
            ValueError: the samples are coupled, or one sample alone does not fit.
        """
        self.pieces = [part for piece in self.pieces for part in self.fitting(piece)]

    def fitting(self, piece: Piece, in_float64: bool = False) -> list[Piece]:
        """The piece, or its samples in pieces that fit the budget at one direction.

        Raises:
            ValueError: as :meth:`cut_samples`.
        """
        if self.memory_budget is None:
            return [piece]
        try:
            self.program(piece.batch, in_float64)
        except UntraceableError:
            return [piece]
        estimate = self.estimate(piece.batch, in_float64)
        need = max(estimate.total(), estimate.self_check if self.self_check and not in_float64 else 0)
        if need <= self.memory_budget:
            return [piece]
        fixed = estimate.gradients + estimate.weights
        if fixed >= self.memory_budget:
            copies = " and the weights in float64" if estimate.weights else ""
            raise ValueError(
                f"the gradients of {len(self.layers)} layers{copies} take about {fixed} bytes at once, over "
                f"memory_budget={self.memory_budget}: raise it, or measure fewer layers at a time with layers="
            )
        return [part for cut in self._cut(piece, need, fixed) for part in self.fitting(cut, in_float64)]

    def _cut(self, piece: Piece, need: int, fixed: int) -> list[Piece]:
        size = piece.batch.samples
        budget = self.memory_budget or need
        remedy = f"needs about {need} bytes at once, over memory_budget={budget}: raise it, or use smaller batches"
        for name, module in self.model.named_modules():
            if isinstance(module, _NormBase) and module.training and "Instance" not in type(module).__name__:
                raise ValueError(
                    f"{piece.label} {remedy} ({name} couples the samples in train mode, so it cannot be cut)"
                )
        count = math.ceil((need - fixed) / (budget - fixed))
        if count > size:
            raise ValueError(f"{piece.label} {remedy} (one sample alone is too large)")
        bounds = [size * i // count for i in range(count + 1)]
        cut = []
        for start, stop in itertools.pairwise(bounds):
            share = (stop - start) / size
            label = f"{piece.label}, samples {start}–{stop - 1}"
            cut.append(Piece(piece.batch.take(range(start, stop)), piece.weight * share, label))
        with torch.no_grad():
            whole = batch_loss(self.model, self.loss_fn, piece.batch)
            parts = sum(p.weight / piece.weight * batch_loss(self.model, self.loss_fn, p.batch) for p in cut)
        if not torch.allclose(whole, torch.as_tensor(parts), rtol=1e-3 * torch.finfo(whole.dtype).eps ** 0.5):
            raise ValueError(
                f"{piece.label} {remedy} (its loss is not the mean of its samples' losses, so it cannot be cut: class "
                "weights, ignore_index or a loss between samples)"
            )
        return cut
