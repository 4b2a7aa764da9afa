"""One measurement: the directions, the methods with their checks, and the sums over ranks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from spectral_ext.curvature import methods
from spectral_ext.curvature.choose import AFTER, FAST, SAMPLED, TRACED, Choice, choose
from spectral_ext.curvature.chunks import Plan
from spectral_ext.curvature.directions import Directions
from spectral_ext.curvature.methods import MethodResult
from spectral_ext.curvature.representatives import Compared, compared_layers
from spectral_ext.curvature.result import MECHANISMS, DirectionalCurvature, LayerCurvature, SelfCheck
from spectral_ext.curvature.rules.registry import NotApplicableError
from spectral_ext.curvature.sampled_gauss_newton import Sampling
from spectral_ext.curvature.self_check import check_double_backward, converged
from spectral_ext.curvature.trace import first_line
from spectral_ext.curvature.verification import verify
from spectral_ext.layers import Layer
from spectral_ext.measurement.batches import Batch, LossFunction
from spectral_ext.measurement.gradients import GradientPass, gradient_pass, pieces_of
from spectral_ext.measurement.ranks import all_sum, from_first
from spectral_ext.measurement.singular_directions import singular_directions

Found = dict[str, tuple[Tensor, Directions]]
"""Layer → ⟨G, D_k⟩ and the directions D_k."""


class Session:
    """The state of one measurement; ``group`` is a process group whose ranks each bring their own data, or None."""

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        layers: dict[str, Layer],
        method: str,
        self_check: bool | None,
        group: Any = None,
        planned_directions: int | None = None,
        sampling: Sampling | None = None,
    ) -> None:
        self.model, self.loss_fn, self.layers, self.method, self.group = model, loss_fn, layers, method, group
        self.planned_directions = planned_directions
        self.sampling = sampling or Sampling()
        weight = next(iter(layers.values())).weight
        self.device, self.dtype = weight.device, weight.dtype
        self.check = (method == "auto" or method in FAST) if self_check is None else self_check
        self.check_all = self_check is True
        self.compared: Compared | None = None
        self.with_directions: list[str] = []
        self.loss, self.samples = 0.0, 0
        self.skipped: dict[str, str] = {}
        self.notes: dict[str, list[str]] = {}
        self.choices: dict[str, Choice] = {}
        self.measured: dict[str, MethodResult] = {}
        self.checks: dict[str, SelfCheck] = {}

    def cut(self, data: list[Batch], memory_budget: int | None, holds_gradients: bool = True) -> None:
        """Cut the data into pieces that fit the memory budget, which is for the gradients of all layers too unless
        ``holds_gradients`` is False.
        """
        pieces = pieces_of(data)
        self.plan = Plan(self.model, self.loss_fn, pieces, self.layers, memory_budget, self.check, holds_gradients)
        if self.method == "auto" or self.method in TRACED:
            self.plan.cut_samples()

    def pass_over_data(self) -> None:
        """This rank's loss and gradients, kept for :meth:`directions_of`."""
        self.local = gradient_pass(self.model, self.loss_fn, self.plan.pieces, self.layers)

    def directions_of(self, local: GradientPass, given: Mapping[str, Directions] | None, top_k: int) -> Found:
        """The directions of each layer that has any; the others are entered in ``skipped``.

        Args:
            local: this rank's means.
            given: the caller's directions; None takes the singular directions of the mean gradient over all ranks.
        """
        self.local = local
        weight = float(local.samples)
        total, loss = all_sum(
            torch.tensor([weight, weight * local.loss], dtype=torch.float64, device=self.device), self.group
        ).tolist()
        self.samples, self.loss = round(total), loss / total
        found: Found = {}
        for name, layer in self.layers.items():
            if given is not None and name not in given:
                continue
            own = local.gradients[name]
            used = all_sum(torch.tensor([0.0 if own is None else 1.0], device=self.device), self.group)
            share = torch.zeros_like(layer.weight) if own is None else own.reshape(layer.weight.shape)
            gradient = share if self.group is None else all_sum(share * (weight / total), self.group)
            if not used.item():
                self.skipped[name] = "the loss does not depend on its weight"
            elif not bool(gradient.isfinite().all()):
                raise ValueError(
                    f"the gradient of {name!r} holds NaN or Inf: check the data and the weights, and the scale of the "
                    f"loss ({self.loss:.3g})"
                )
            elif 0 < (peak := float(gradient.abs().max())) < torch.finfo(self.dtype).tiny:
                kind = str(self.dtype).removeprefix("torch.")
                self.skipped[name] = f"its gradient underflows {kind} (largest entry {peak:.1e}): scale the loss up"
            elif given is not None:
                found[name] = given[name].along(gradient).to(self.dtype), given[name]
            elif peak == 0:
                self.skipped[name] = "its gradient is zero: there are no singular directions"
            else:
                found[name] = self._singular(name, gradient, top_k)
        self.with_directions = list(found)
        return found

    def _singular(self, name: str, gradient: Tensor, top_k: int) -> tuple[Tensor, Directions]:
        triplets = singular_directions(self.layers[name].matrices(gradient), top_k)
        assert triplets is not None
        self.notes[name] = triplets.notes
        sigma, U, V = (t.to(self.dtype) for t in (triplets.sigma, triplets.U, triplets.V))
        if self.group is not None:
            # Pairs are unique only up to their sign, and the rank up to rounding: all take the first rank's.
            k = int(from_first(torch.tensor([len(sigma)], device=self.device), self.group))
            if k != len(sigma):
                sigma, U, V = sigma.new_empty(k), U.new_empty(U.shape[0], k), V.new_empty(V.shape[0], k)
            sigma, U, V = (from_first(t, self.group) for t in (sigma, U, V))
        return sigma, Directions(gradient.shape, U, V, layer=self.layers[name])

    def measure(self, found: Found, progress: bool) -> None:
        """Σ weight · h of every layer in ``found`` over this rank's pieces, by its method, with the checks.

        It may be called for some layers at a time: their results do not depend on the others, as long as
        ``planned_directions`` is given.
        """
        directions = {name: pair[1] for name, pair in found.items()}
        if not directions:
            return
        layers = {name: self.layers[name] for name in found}
        self.choices |= choose(self.method, self.plan, layers, directions, self.planned_directions)
        with tqdm(
            total=len(found) * len(self.plan.pieces), desc="directional curvature", unit="layer", disable=not progress
        ) as bar:

            def done(name: str) -> None:
                bar.set_postfix_str(name, refresh=False)
                bar.update()

            self._fast("sqrt_gn", methods.sqrt_gn, directions, done)
            self._fast("tangent_adjoint", methods.tangent_adjoint, directions, done)
            self._fast(SAMPLED, self._sampled, directions, done)
            self._check_fast(directions)
            self._double_backward(directions, done, weight=False)
            self._double_backward(directions, done, weight=True)
            self.measured |= methods.finite_difference(self.plan, self._chosen("finite_difference", directions), done)

    def _chosen(self, method: str, directions: dict[str, Directions]) -> dict[str, Directions]:
        return {name: d for name, d in directions.items() if self.choices[name].method == method}

    def _fast(self, name: str, engine: Callable, directions: dict[str, Directions], done: Callable) -> None:
        """Measure by a fast method the layers that it was chosen for; under ``auto`` an error chooses the next one."""
        chosen = self._chosen(name, directions)
        if not chosen:
            return
        try:
            self.measured.update(engine(self.plan, chosen, done))
        except Exception as why:
            if isinstance(why, torch.OutOfMemoryError):
                raise
            if self.method != "auto":
                raise ValueError(f"method={name!r} does not apply: {_text(why)}; use method='auto'") from why
            for layer in chosen:
                self.choices[layer] = Choice(AFTER[name], f"{name} failed: {_text(why)}")

    def _sampled(self, plan: Plan, directions: dict[str, Directions], done: Callable) -> dict[str, MethodResult]:
        rank = 0 if self.group is None else torch.distributed.get_rank(self.group)
        return methods.sampled_gauss_newton(plan, directions, done, self.sampling, rank)

    def _check_fast(self, directions: dict[str, Directions]) -> None:
        measured = {name: self.measured[name] for name in directions if name in self.measured}
        fast = {name: result for name, result in measured.items() if result.slope is not None}
        if not fast:
            return
        for name, verdict in verify(self.plan, fast, directions, self.local, self._compared()).items():
            choice, complaint = self.choices[name], verdict.complaint
            if verdict.unchecked:
                choice.reason += f"; {verdict.unchecked}"
            self.notes[name] = [*self.notes.get(name, []), *verdict.notes]
            if verdict.check is not None:
                self.checks[name] = verdict.check
            if complaint is None:
                continue
            if self.method != "auto":
                raise ValueError(f"method={choice.method!r} is wrong for {name!r}: {complaint}; use method='auto'")
            warnings.warn(
                f"{name}: {choice.method} is not used: {complaint}; falling back to double backward", stacklevel=6
            )
            self.choices[name] = Choice(AFTER["tangent_adjoint"], f"{choice.method} failed its check: {complaint}")

    def _compared(self) -> Compared:
        """The layers that are compared with another method, the same whichever layers are measured at a time."""
        if self.check and self.compared is None:
            piece = self.plan.pieces[0]
            layers = {name: self.layers[name] for name in self.with_directions}
            if self.check_all:
                self.compared = Compared(frozenset(layers))
            else:
                self.compared = compared_layers(self.plan.program(piece.batch), self.model, layers, piece.batch.samples)
        return self.compared or Compared()

    def _double_backward(self, directions: dict[str, Directions], done: Callable, *, weight: bool) -> None:
        """Double backward; central differences where an operation has no second derivative, or only seems to have."""
        name = f"double_backward_{'weight' if weight else 'output'}"
        chosen = self._chosen(name, directions)
        if not chosen:
            return
        try:
            results = methods.double_backward(self.plan, chosen, done, weight=weight)
        except RuntimeError as why:
            if isinstance(why, torch.OutOfMemoryError):
                raise
            reason = f"double backward failed: {_text(why)}"
            if self.method != "auto":
                raise ValueError(f"method={name!r} does not apply: {reason}; use method='finite_difference'") from why
            for layer in chosen:
                self._choose_next(layer, "finite_difference", reason)
            return
        for layer, result in results.items():
            if result.note:
                if self.method == "double_backward_output":
                    raise ValueError(f"method='double_backward_output' does not apply: {result.note}")
                self._choose_next(layer, "double_backward_weight", result.note)
            self.measured[layer] = result
            if result.custom:
                self._check_double_backward(layer, result, chosen[layer])

    def _check_double_backward(self, layer: str, result: MethodResult, directions: Directions) -> None:
        functions = ", ".join(sorted(result.custom))
        check = check_double_backward(self.plan, layer, result, directions)
        if check is not None:
            self.checks[layer] = check
            if check.passed:
                return
            complaint = f"{functions} has no second derivative: h differs from {check.reference} by {check.error:.1e}"
            if self.method != "auto":
                raise ValueError(
                    f"method={self.choices[layer].method!r} is wrong for {layer!r}: {complaint}; use "
                    "method='finite_difference', or give the function a backward pass that autograd can differentiate"
                )
            del self.measured[layer]
            self._choose_next(layer, "finite_difference", complaint)
            return
        complaint = (
            f"h of {layer!r} by double backward passes {functions}, and whether its backward pass is differentiable "
            "could not be checked, because central differences of the gradient do not converge here"
        )
        warnings.warn(f"{complaint}; compare with an unfused function", stacklevel=7)
        self.choices[layer].reason += f"; {complaint}"

    def _choose_next(self, layer: str, method: str, reason: str) -> None:
        before = self.choices[layer].reason
        self.choices[layer] = Choice(method, reason if before == "asked for" else f"{before}; {reason}")

    def results(self, found: Found, split: bool) -> DirectionalCurvature:
        """Means over all ranks' samples."""
        results = {}
        for name, (sigma, along) in found.items():
            measured, choice = self.measured[name], self.choices[name]
            zero = torch.zeros(len(along), dtype=torch.float64, device=self.device)
            kinds = {kind: measured.parts.get(kind, zero) for kind in (*MECHANISMS, "total")}
            kinds = {kind: (all_sum(value, self.group) / self.samples) for kind, value in kinds.items()}
            error = all_sum(zero if measured.error is None else measured.error, self.group) / self.samples
            total = torch.stack(list(kinds.values())).sum(0)
            if problem := self._problem(choice, total, error):
                warnings.warn(f"{name} is not measured: {problem}", stacklevel=4)
                self.skipped[name] = problem
                continue
            parts, reason, standard_error = None, choice.reason, None
            notes = list(self.notes.get(name, []))
            if choice.method == SAMPLED:
                if not measured.exact_residual:
                    kinds = {"gauss_newton": kinds["gauss_newton"]}
                variance = all_sum(zero if measured.variance is None else measured.variance, self.group)
                standard_error = (variance.sqrt() / self.samples).to(self.dtype)
                notes.append(self._sampling_note(measured))
            if split and choice.method not in TRACED:
                reason += f"; {choice.method} does not split h"
            elif split:
                parts = {kind: value.to(self.dtype) for kind, value in kinds.items() if kind in MECHANISMS}
            results[name] = LayerCurvature(
                name, sigma, along.U, along.V, total.to(self.dtype), choice.method, reason, parts, along.dense,
                self.checks.get(name), error.to(self.dtype) if bool(error.any()) else None, notes, standard_error,
            )  # fmt: skip
        mode = "train" if self.model.training else "eval"
        return DirectionalCurvature(results, self.skipped, self.loss, self.samples, mode)

    def _sampling_note(self, measured: MethodResult) -> str:
        what = (
            "exact but for its Gauss–Newton part, which is"
            if measured.exact_residual
            else "its Gauss–Newton part alone,"
        )
        note = f"h is {what} estimated from {self.sampling.draws} draws of labels per sample"
        if measured.summed:
            note += (
                "; its samples influence each other, or it is used several times or not sample by sample, so that a "
                "draw of all labels of a batch is one term, and the standard error is that of so many terms"
            )
        return note

    def _problem(self, choice: Choice, h: Tensor, error: Tensor) -> str | None:
        """Why h is not a usable number, or None."""
        if not converged(h, error):
            cause = "" if choice.reason == "asked for" else f" ({choice.reason})"
            worst = float((error / h.abs().max()).max())
            return (
                f"central differences of the gradient do not converge: their estimated error is {worst:.1e} of the "
                f"largest h, as at the kinks of a piecewise linear network{cause}; give the operation a backward pass "
                "that autograd can differentiate"
            )
        largest = float(h.abs().max())
        kind = str(self.dtype).removeprefix("torch.")
        if not bool(h.to(self.dtype).isfinite().all()):
            return (
                f"its h by {choice.method} does not fit {kind} (largest {largest:.1e}): scale the loss down, or "
                "measure a float64 copy of the model"
            )
        if 0 < largest < torch.finfo(self.dtype).tiny:
            return f"its h underflows {kind} (largest {largest:.1e}): measure a float64 copy of the model"
        return None


def _text(error: Exception) -> str:
    """The first line of a message; with the name of the error unless it is ours."""
    line = first_line(error)
    return line if isinstance(error, NotApplicableError) else f"{type(error).__name__}: {line}"
