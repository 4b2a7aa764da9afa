"""Which method measures which layer: the fastest exact one, or the one that the caller names.

sqrt_gn where it is exact and cheaper → tangent_adjoint where the model can be traced → double_backward_output where the
weight is used once → double_backward_weight → finite_difference where an operation has no second derivative.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from spectral_ext.curvature.chunks import Plan
from spectral_ext.curvature.directions import Directions
from spectral_ext.curvature.sampled_gauss_newton import Sampling
from spectral_ext.curvature.sites import site_of
from spectral_ext.curvature.sqrt_gauss_newton import outputs_per_sample, why_not
from spectral_ext.curvature.trace import UntraceableError
from spectral_ext.layers import Layer

FAST = ("tangent_adjoint", "sqrt_gn")
"""Methods that work on the traced graph, split h, and are compared with another method."""
SAMPLED = "sampled_gauss_newton"
"""The one method that estimates, and measures the Gauss–Newton part of h alone: only where it is named."""
TRACED = (*FAST, SAMPLED)
METHODS = ("auto", *TRACED, "double_backward_output", "double_backward_weight", "finite_difference")
AFTER = {"sqrt_gn": "tangent_adjoint", "tangent_adjoint": "double_backward_output"}
"""The method that ``auto`` tries after one that failed."""
MANY_OUTPUTS = 256
"""``auto`` takes sqrt_gn up to this many outputs per sample."""


@dataclass
class Choice:
    method: str
    reason: str


def check_method(method: str) -> None:
    """Raises ValueError unless ``method`` is one of :data:`METHODS`."""
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}")


def check_sampling(
    method: str,
    draws: int,
    seed: int,
    residuals: str | Iterable[str] | None,
    layers: Iterable[str],
    self_check: bool | None = None,
) -> Sampling:
    """How labels are drawn for ``layers``, and which of them have their residual measured.

    Raises:
        ValueError: ``draws`` gives no standard error, a check is asked for, or ``residuals`` belongs to another method.
        KeyError: a pattern of ``residuals`` fits no layer.
    """
    if method == SAMPLED and draws < 2:
        raise ValueError(f"draws must be at least 2, not {draws}: the standard error of h is that between draws")
    if method == SAMPLED and self_check:
        raise ValueError(
            f"self_check=True compares exact methods, and {SAMPLED} is an estimate: leave it out, and read "
            "standard_error"
        )
    patterns = [residuals] if isinstance(residuals, str) else list(residuals or ())
    if patterns and method != SAMPLED:
        raise ValueError(f"residuals belongs to method={SAMPLED!r}: other methods give all parts of h with split=True")
    for pattern in patterns:
        if not any(Sampling(residuals=(pattern,)).with_residual(name) for name in layers):
            raise KeyError(f"residuals: no measured layer matches {pattern!r}; there are {', '.join(list(layers)[:8])}")
    return Sampling(int(draws), int(seed), tuple(patterns))


def choose(
    method: str,
    plan: Plan,
    layers: Mapping[str, Layer],
    directions: Mapping[str, Directions],
    planned: int | None = None,
) -> dict[str, Choice]:
    """A method for each layer.

    Args:
        planned: how many directions the whole measurement has, of which ``directions`` may be a part: with it, the
            choice for a layer does not depend on which others are measured with it. None counts ``directions``.

    Raises:
        ValueError: the method named does not apply to a layer.
    """
    if method != "auto" and method not in TRACED:
        return {name: Choice(method, "asked for") for name in layers}
    refusals: dict[str, str | None] = dict.fromkeys(layers)
    try:
        outputs = 0
        for piece in plan.pieces:
            program, samples = plan.program(piece.batch), piece.batch.samples
            outputs = max(outputs, outputs_per_sample(program, samples))
            for name, layer in layers.items():
                refusals[name] = refusals[name] or why_not(program, site_of(program, plan.model, layer), samples)
    except UntraceableError as why:
        if method != "auto":
            raise ValueError(f"method={method!r} does not apply: {why}; use method='auto'") from why
        return {name: Choice("double_backward_output", str(why)) for name in layers}
    if method == "sqrt_gn":
        for name, reason in refusals.items():
            if reason:
                raise ValueError(f"method='sqrt_gn' is not exact for {name!r}: {reason}; use method='auto'")
    if method != "auto":
        return {name: Choice(method, "asked for") for name in layers}
    exact = [name for name, reason in refusals.items() if reason is None]
    total = sum(len(directions[name]) for name in exact) if planned is None else planned
    choices = {}
    for name, reason in refusals.items():
        if reason is not None:
            choices[name] = Choice("tangent_adjoint", reason)
        elif outputs <= MANY_OUTPUTS and outputs <= total:
            choices[name] = Choice("sqrt_gn", f"piecewise linear up to the loss, {outputs} outputs per sample")
        else:
            choices[name] = Choice(
                "tangent_adjoint", f"sqrt_gn would take {outputs} backward passes for {total} directions"
            )
    return choices
