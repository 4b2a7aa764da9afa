"""How much each mechanism of the curvature moves α: the slope of h without it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spectral_ext.spectra.regression import Fit, FitError, as_vector, fit_power_law


@dataclass(frozen=True)
class MechanismSlope:
    """α with and without one part of h, both over the directions where h and h without the part are positive."""

    without: Fit
    """Slope of log(h_k − h_k^part) on log σ_k."""
    shift: float
    """α − α without the part: what the mechanism adds to the exponent."""
    share: float
    """Σ_k h_k^part / Σ_k h_k."""


def slopes_by_mechanism(
    sigma: Any, h: Any, parts: Mapping[str, Any], *, level: float = 0.95
) -> dict[str, MechanismSlope]:
    """Leave each part of h out in turn and fit α again.

    The shifts do not sum to α: a logarithm of a sum does not split. A part that is zero everywhere is not listed.

    Args:
        sigma, h: (K,).
        parts: mechanism → (K,), summing to h: ``gauss_newton`` and the residual parts of ``directional_curvature``.

    Raises:
        ValueError: lengths differ.
    """
    sigma, h = as_vector(sigma, "sigma"), as_vector(h, "h")
    found = {}
    for name, values in parts.items():
        part = as_vector(values, name)
        if part.shape != h.shape or sigma.shape != h.shape:
            raise ValueError(f"{name}: {len(part)} values for {len(h)} curvatures and {len(sigma)} singular values")
        if not part.any():
            continue
        rest = h - part
        keep = (sigma > 0) & (h > 0) & (rest > 0)
        try:
            whole = fit_power_law(sigma[keep], h[keep], level=level, what="alpha")
            without = fit_power_law(sigma[keep], rest[keep], level=level, what=f"alpha without {name}")
            shift = whole.value - without.value
        except FitError as error:
            without, shift = Fit.empty(str(error), n=int(keep.sum()), level=level), float("nan")
        share = float(part.sum() / h.sum()) if h.sum() else float("nan")
        found[name] = MechanismSlope(without, shift, share)
    return found
