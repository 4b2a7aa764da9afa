"""Long sums: blocks in the terms' own dtype, the sum of the blocks in float64.

A float32 dot product over millions of terms of one sign loses three to four digits (batch × positions × vocabulary of a
language model). Blocks of fixed length keep the relative error near 1e-7 whatever the length.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 4096
"""Terms that are added up in their own dtype."""


def sum_in_float64(terms: Tensor) -> Tensor:
    """Sums over all dimensions but the first, (N, …) → (N,) float64; of complex terms the real parts are summed."""
    if terms.is_complex():
        terms = terms.real
    flat = terms.reshape(terms.shape[0], -1)
    if flat.dtype == torch.float64:
        return flat.sum(1)
    whole = flat.shape[1] // BLOCK * BLOCK
    total = flat[:, whole:].sum(1).double()
    if whole:
        total = total + flat[:, :whole].unflatten(1, (-1, BLOCK)).sum(2).double().sum(1)
    return total


def inner_products(tangents: Tensor, fixed: Tensor) -> Tensor:
    """⟨fixed, tangents_k⟩ for tangents (N, *fixed.shape): (N,) float64; the real inner product of complex tensors."""
    return sum_in_float64(tangents * (fixed.conj() if fixed.is_complex() else fixed))


def weighted_squares(tangents: Tensor, weight: Tensor) -> Tensor:
    """Σ weight · tangent² over all but the first dimension: (N, …) → (N,) float64."""
    return sum_in_float64(tangents.square().mul_(weight))
