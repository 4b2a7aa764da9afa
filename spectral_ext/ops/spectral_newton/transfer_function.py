"""The scalar map T(σ; α, d) = σ/(σ^α + d), §7.3, and its maximum in closed form."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_ALPHA = 6.0


def check_exponent(alpha: float, name: str = "alpha") -> None:
    """Raises ValueError unless 0 < α ≤ 6."""
    if not 0.0 < alpha <= MAX_ALPHA:
        raise ValueError(f"{name} must lie in (0, {MAX_ALPHA:g}], not {alpha!r}")


def check_damping(damping: float, name: str = "damping") -> None:
    """Raises ValueError unless 0 < d < ∞."""
    if not 0.0 < damping < math.inf:
        raise ValueError(f"{name} must be positive and finite, not {damping!r}")


def transfer(sigma: Any, alpha: float, damping: float) -> NDArray[np.float64]:
    """T(σ; α, d) = σ/(σ^α + d), elementwise in float64; 0 at σ = 0 (§7.3)."""
    check_exponent(alpha)
    check_damping(damping)
    s = np.asarray(sigma, dtype=np.float64)
    return s / (s**alpha + damping)


def transfer_maximum(alpha: float, damping: float, sigma_max: float = math.inf) -> tuple[float, float]:
    """Where T(·; α, d) is largest on [0, σ_max], and its value there: ``(σ*, T(σ*))``.

    For α > 1 the maximum over σ ≥ 0 is at σ* = (d/(α−1))^{1/α}, with T(σ*) = σ*(α−1)/(α d); at α = 2 it is 1/(2√d).
    For α ≤ 1, T rises with σ: the maximum is at σ_max, and the supremum for σ_max = ∞ is 1 at α = 1 and ∞ below.

    Raises:
        ValueError: α outside (0, 6], d not positive, or σ_max negative.
    """
    check_exponent(alpha)
    check_damping(damping)
    if not sigma_max >= 0.0:
        raise ValueError(f"sigma_max must not be negative, not {sigma_max!r}")
    peak = (damping / (alpha - 1.0)) ** (1.0 / alpha) if alpha > 1.0 else math.inf
    at = min(peak, sigma_max)
    if at == 0.0:
        return 0.0, 0.0
    if math.isinf(at):
        return at, 1.0 if alpha == 1.0 else math.inf
    return at, at / (at**alpha + damping)
