"""The three measuring ops: fused where the extension has them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import reference


def input_factor(x: Tensor, **geometry: Any) -> Tensor:
    """C_A (n, n); see ``reference.input_factor``."""
    return reference.input_factor(x, **geometry)


def output_factor(delta: Tensor, *, convolution: bool = False) -> Tensor:
    """C_δ (m, m); see ``reference.output_factor``."""
    return reference.output_factor(delta, convolution=convolution)


def rayleigh_quotients(x: Tensor, delta: Tensor, U: Tensor, V: Tensor, **geometry: Any) -> reference.RayleighQuotients:
    """All four second moments along the columns of U and V; see ``reference.rayleigh_quotients``."""
    return reference.rayleigh_quotients(x, delta, U, V, **geometry)
