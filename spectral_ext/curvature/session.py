"""One measurement: its data, the first pass, the directions, the methods with their checks, and the sums over ranks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from spectral_ext.curvature import methods
from spectral_ext.curvature.choose import Choice, choose
from spectral_ext.curvature.chunks import Plan
from spectral_ext.curvature.directions import Directions, given_directions, singular_directions
from spectral_ext.curvature.double_backward import NotApplicableError
from spectral_ext.curvature.gradients import pieces_of, summed_gradients
from spectral_ext.curvature.methods import Measured
from spectral_ext.curvature.result import MECHANISMS, LayerCurvature, SelfCheck
from spectral_ext.curvature.self_check import CannotCheckError, check_curvature, check_slopes
from spectral_ext.curvature.trace import first_line
from spectral_ext.layers import Layer
from spectral_ext.measurement.batches import Batch, LossFunction
from spectral_ext.measurement.ranks import all_sum, from_first

Found = dict[str, tuple[Tensor, Directions]]


class Run:
    def __init__(
        self, model: nn.Module, loss_fn: LossFunction, layers: dict[str, Layer], skipped: dict[str, str], group: Any
    ) -> None:
        self.model, self.loss_fn, self.layers, self.skipped, self.group = model, loss_fn, layers, skipped, group
        weight = next(iter(layers.values())).weight
        self.device, self.dtype = weight.device, weight.dtype
        self.loss, self.samples = 0.0, 0
        self.choices: dict[str, Choice] = {}
        self.measured: dict[str, Measured] = {}
        self.checks: dict[str, SelfCheck] = {}

    def first_pass(self, data: list[Batch], memory_budget: int | None, method: str, check: bool) -> None:
        self.plan = Plan(self.model, self.loss_fn, pieces_of(data), self.layers, memory_budget, check)
        if not method.startswith("double_backward"):
            self.plan.cut_samples()
        self.sums = summed_gradients(self.model, self.loss_fn, self.plan.pieces, self.layers)

    def find_directions(self, directions: Mapping[str, Any] | None, top_k: int) -> Found:
        """The mean gradient over all ranks, and the directions of each layer that has one."""
        loss, gradients = self.sums
        local = sum(piece.weight for piece in self.plan.pieces)
        total, summed = all_sum(
            torch.tensor([local, loss], dtype=torch.float64, device=self.device), self.group
        ).tolist()
        self.samples, self.loss = round(total), summed / total
        given = None if directions is None else given_directions(directions, self.layers)
        found: Found = {}
        for name, layer in self.layers.items():
            own = gradients[name]
            used = all_sum(torch.tensor([0.0 if own is None else 1.0], device=self.device), self.group)
            gradient = all_sum(torch.zeros_like(layer.weight) if own is None else own, self.group) / total
            if given is not None and name not in given:
                continue
            if not used.item():
                self.skipped[name] = "the loss does not depend on its weight"
            elif not bool(gradient.isfinite().all()):
                raise ValueError(f"the gradient of {name!r} holds NaN or Inf: check the data and the weights")
            elif given is not None:
                found[name] = given[name].along(gradient), given[name]
            elif not bool(gradient.any()):
                self.skipped[name] = "its gradient is zero: there are no singular directions"
            else:
                sigma, pairs = singular_directions(gradient, top_k)
                found[name] = sigma, _from_first(pairs, self.group)
        return found

    def measure(self, found: Found, method: str, check: bool, progress: bool) -> None:
        """Σ weight · h of every layer over this rank's pieces, by its method; checked where ``check``."""
        directions = {name: pair[1] for name, pair in found.items()}
        self.choices = choose(method, self.plan, {name: self.layers[name] for name in found}, directions)
        with tqdm(
            total=len(found) * len(self.plan.pieces), desc="directional curvature", unit="layer", disable=not progress
        ) as bar:

            def step(name: str) -> None:
                bar.set_postfix_str(name, refresh=False)
                bar.update()

            self._by("sqrt_gn", methods.sqrt_gn, directions, step, method)
            self._by("tangent_adjoint", methods.tangent_adjoint, directions, step, method)
            self._check(directions, method, check)
            for weight in (False, True):
                chosen = self._chosen(f"double_backward_{'weight' if weight else 'output'}", directions)
                for name, measured in methods.double_backward(self.plan, chosen, step, weight=weight).items():
                    self.measured[name] = measured
                    if measured.note:
                        if method == "double_backward_output":
                            raise ValueError(f"method='double_backward_output' does not apply: {measured.note}")
                        self.choices[name] = Choice(
                            "double_backward_weight", f"{self.choices[name].reason}; {measured.note}"
                        )

    def _chosen(self, method: str, directions: dict[str, Directions]) -> dict[str, Directions]:
        return {name: d for name, d in directions.items() if self.choices[name].method == method}

    def _by(self, name: str, engine: Callable, directions: dict[str, Directions], step: Callable, method: str) -> None:
        """Measure what a fast method was chosen for; under ``auto`` an operation it cannot pass sends the layers on."""
        chosen = self._chosen(name, directions)
        if not chosen:
            return
        try:
            self.measured.update(engine(self.plan, chosen, step))
        except Exception as why:
            if method != "auto" and isinstance(why, NotApplicableError):
                raise ValueError(f"method={method!r} does not apply: {why}; use method='auto'") from why
            if method != "auto" or isinstance(why, torch.OutOfMemoryError):
                raise
            after = "tangent_adjoint" if name == "sqrt_gn" else "double_backward_output"
            for layer in chosen:
                self.choices[layer] = Choice(after, f"{name} failed: {first_line(why)}")

    def _check(self, directions: dict[str, Directions], method: str, check: bool) -> None:
        fast = {name: measured for name, measured in self.measured.items() if measured.slope is not None}
        if not fast:
            return
        complaints = {}
        precision = self.plan.program(self.plan.pieces[0].batch).precision
        for name, measured in fast.items():
            if complaint := check_slopes(measured, directions[name], self.sums[1][name], precision):
                complaints[name] = complaint
        if check:
            try:
                self.checks = check_curvature(self.plan, fast, {name: directions[name] for name in fast}, precision)
            except CannotCheckError as why:
                for name in fast:
                    self.choices[name].reason += f"; not checked by double backward: {why}"
            for name, result in self.checks.items():
                if not result.passed:
                    complaints.setdefault(
                        name,
                        f"h differs from double backward's by {result.error:.1e} (tolerance {result.tolerance:.0e})",
                    )
        for name, complaint in complaints.items():
            used = self.choices[name].method
            if method != "auto":
                raise RuntimeError(f"method={method!r} is wrong for {name!r}: {complaint}; use method='auto'")
            warnings.warn(f"{name}: {used} is not used: {complaint}; falling back to double backward", stacklevel=6)
            self.choices[name] = Choice("double_backward_output", f"{used} failed its check: {complaint}")

    def results(self, found: Found, split: bool) -> dict[str, LayerCurvature]:
        """Means over all ranks' samples."""
        results = {}
        for name, (sigma, along) in found.items():
            measured, choice = self.measured[name], self.choices[name]
            zero = torch.zeros(len(along), dtype=torch.float64, device=self.device)
            kinds = {kind: measured.parts.get(kind, zero) for kind in (*MECHANISMS, "total")}
            kinds = {kind: (all_sum(value, self.group) / self.samples) for kind, value in kinds.items()}
            total = torch.stack(list(kinds.values())).sum(0).to(self.dtype)
            parts, reason = None, choice.reason
            if split and choice.method.startswith("double_backward"):
                reason += "; double backward does not split h"
            elif split:
                parts = {kind: kinds[kind].to(self.dtype) for kind in MECHANISMS}
            results[name] = LayerCurvature(
                name, sigma, along.U, along.V, total, choice.method, reason, parts, along.dense, self.checks.get(name)
            )
        return results


def _from_first(directions: Directions, group: Any) -> Directions:
    U, V, dense = (None if t is None else from_first(t, group) for t in (directions.U, directions.V, directions.dense))
    return Directions(directions.shape, U, V, dense)
