"""What follows a fast method: first derivatives, the self-check, and float64 where float32 is too coarse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from spectral_ext.curvature import methods
from spectral_ext.curvature.chunks import Plan
from spectral_ext.curvature.directions import Directions
from spectral_ext.curvature.methods import MethodResult
from spectral_ext.curvature.representatives import Compared
from spectral_ext.curvature.result import SelfCheck
from spectral_ext.curvature.self_check import CannotCheckError, Comparison, check_slopes, references
from spectral_ext.curvature.trace import first_line
from spectral_ext.measurement.gradients import GradientPass

CANCELLATION = 300.0
"""Σ |term| / |h_k| above which h_k is computed in float64. Each term has a relative rounding error of about 10⁻⁷ in
float32, and of 10⁻⁵ behind activations as large as those of language models."""


@dataclass
class Verdict:
    """What is known about one layer's results."""

    check: SelfCheck | None = None
    complaint: str | None = None
    """What is wrong, or None."""
    unchecked: str = ""
    """Why there is no check although one was wanted."""
    notes: list[str] = field(default_factory=list)
    """What the row says about its precision and its check."""


def verify(
    plan: Plan,
    found: Mapping[str, MethodResult],
    directions: Mapping[str, Directions],
    local: GradientPass,
    compared: Compared,
) -> dict[str, Verdict]:
    """Judge the results of a fast method, and replace those for which float32 is too coarse.

    Args:
        found: sums over the pieces; directions that cancel, and layers that fail, are replaced by float64 results.
        local: this process's mean gradients.
        compared: the layers that are compared with another method. Where one fails, all of its kind are.
    """
    verdicts = {name: Verdict() for name in found}
    precision = plan.program(plan.pieces[0].batch).precision
    for name, result in found.items():
        gradient, samples = local.gradients[name], local.samples
        verdicts[name].complaint = check_slopes(result, directions[name], gradient, samples, precision)
    sound = {name: result for name, result in found.items() if verdicts[name].complaint is None}
    if precision != torch.float64:
        cancelling = {name: _cancelling(result) for name, result in sound.items()}
        _repeat(plan, sound, directions, cancelling, "the terms of h cancel", verdicts)
    held: dict[str, Comparison] = {}
    todo = [name for name in sound if name in compared.names]
    while todo:
        held |= _compare(plan, {name: sound[name] for name in todo}, directions, precision, verdicts)
        failed = [name for name, one in held.items() if not one.check(found[name]).passed]
        doubtful = {compared.kinds[name] for name in failed if name in compared.kinds}
        known = {*todo, *held}
        todo = [name for name in sound if name not in known and compared.kinds.get(name) in doubtful]
        if not todo and precision != torch.float64:
            every = {name: list(range(len(directions[name]))) for name in failed}
            _repeat(plan, sound, directions, every, "float32 failed the check", verdicts)
    for name, comparison in held.items():
        check = verdicts[name].check = comparison.check(found[name])
        if not check.passed:
            verdicts[
                name
            ].complaint = f"h differs from {check.reference} by {check.error:.1e} (tolerance {check.tolerance:.0e})"
    for name in sound:
        if name not in held and name in compared.kinds and name not in compared.names:
            alike = ", ".join(compared.standing_for(name))
            verdicts[name].notes.append(f"the self-check compares {alike} for all layers of its kind")
    return verdicts


def _compare(
    plan: Plan,
    found: dict[str, MethodResult],
    directions: Mapping[str, Directions],
    precision: torch.dtype,
    verdicts: Mapping[str, Verdict],
) -> dict[str, Comparison]:
    if not found:
        return {}
    try:
        return references(plan, found, {name: directions[name] for name in found}, precision)
    except CannotCheckError as why:
        for name in found:
            verdicts[name].unchecked = f"not checked by double backward: {why}"
    return {}


def _cancelling(result: MethodResult) -> list[int]:
    """The directions whose terms cancel to less than 1/CANCELLATION of their size."""
    if result.size is None:
        return []
    return (result.size > CANCELLATION * result.h.abs()).nonzero().flatten().tolist()


def _repeat(
    plan: Plan,
    found: Mapping[str, MethodResult],
    directions: Mapping[str, Directions],
    chosen: Mapping[str, list[int]],
    why: str,
    verdicts: Mapping[str, Verdict],
) -> None:
    """Replace ``chosen`` directions of ``found``, of tangent_adjoint, by the same with its arithmetic in float64."""
    chosen = {name: ks for name, ks in chosen.items() if ks and found[name].size is not None}
    if not chosen:
        return
    part = {name: directions[name][ks] for name, ks in chosen.items()}
    try:
        results = methods.tangent_adjoint(plan, part, lambda _: None, in_float64=True)
    except (RuntimeError, TypeError, ValueError) as error:
        # A kernel or device without float64, or a memory budget that not one sample in float64 fits.
        if isinstance(error, torch.OutOfMemoryError):
            raise
        for name in chosen:
            verdicts[name].notes.append(f"{why}, and float64 is not available: {first_line(error)}")
        return
    for name, ks in chosen.items():
        found[name].replace(ks, results[name])
        which = "all directions" if len(ks) == len(directions[name]) else "k = " + ", ".join(str(k + 1) for k in ks)
        verdicts[name].notes.append(f"{which} in float64 arithmetic, because {why}")
