"""Curvature exponents for an optimizer, from numbers or from the rows of a measured landscape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spectral_ext.optim.parameters import known_as
from spectral_ext.transfer import check_exponent


def number_of(value: Any) -> float:
    """A number as it is, or the ``.value`` of a fit."""
    return float(getattr(value, "value", value))


def alpha_of(row: Any) -> float:
    """α of a row: the number itself, else ``row.recommendation.alpha``, else the fit ``row.alpha``."""
    if isinstance(row, (int, float)):
        return float(row)
    recommendation = getattr(row, "recommendation", None)
    return number_of(row.alpha if recommendation is None else recommendation.alpha)


def measured_alphas(landscape: Mapping[str, Any]) -> dict[str, float]:
    """Layer name → the fitted α as it is, not the recommended one."""
    return {name: number_of(getattr(row, "alpha", row)) for name, row in landscape.items()}


def row_of(landscape: Mapping[str, Any], name: str) -> Any:
    """The row of a parameter, under its own name or its layer's; None if there is none."""
    for key in known_as(name):
        if key in landscape:
            return landscape[key]
    return None


def alphas_of(landscape: Mapping[str, Any], names: Sequence[str], default_alpha: float | None) -> list[float]:
    """α of each parameter, from h_k ≈ c·σ_k^α of its layer.

    Raises:
        KeyError: the landscape has no row for a parameter and there is no ``default_alpha``.
        ValueError: a measured α is outside (0, 6], where T(σ; α) is not defined.
    """
    alphas = []
    for name in names:
        row = row_of(landscape, name)
        if row is None and default_alpha is None:
            raise KeyError(f"the landscape has no layer for {name!r}; measure it, or pass default_alpha=")
        alpha = default_alpha if row is None else alpha_of(row)
        assert alpha is not None
        try:
            check_exponent(alpha, f"the landscape's alpha for {name!r}")
        except ValueError as error:
            raise ValueError(f"{error}; give the parameter an alpha of its own: {{name: alpha}}") from None
        alphas.append(alpha)
    return alphas
