"""The gradient's singular directions of one layer, and which of them can be measured."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

DOUBLE_BELOW = 2**20
"""Matrices with fewer entries are decomposed in float64: cheap, and it removes the decomposition's own rounding."""
CUTOFF = {torch.float64: 1e-12}
SINGLE_CUTOFF = 1e-6


@dataclass
class SingularDirections:
    sigma: Tensor
    """(K,), decreasing."""
    U: Tensor
    """(m, K)."""
    V: Tensor
    """(n, K)."""
    sigma_all: Tensor
    """(min(m, n),)."""
    notes: list[str] = field(default_factory=list)


def singular_directions(gradient: Tensor, top_k: int) -> SingularDirections | None:
    """Top-k singular triplets of G (m, n), less those with σ_k < 1e-6 σ_1 (1e-12 in float64); None if G is zero.

    A classifier's gradient has rank ≤ C − 1, and a batch of B rows gives rank ≤ B: what lies beyond is rounding error.
    """
    small = gradient.numel() < DOUBLE_BELOW
    U, sigma, Vh = torch.linalg.svd(gradient.double() if small else gradient.float(), full_matrices=False)
    if sigma.numel() == 0 or float(sigma[0]) == 0.0:
        return None
    rank = int((sigma > CUTOFF.get(gradient.dtype, SINGLE_CUTOFF) * sigma[0]).sum())
    k = min(top_k, rank)
    notes = []
    if k < min(top_k, len(sigma)):
        notes.append(f"the gradient has numerical rank {rank}: {k} directions instead of {min(top_k, len(sigma))}")
    elif k < top_k:
        notes.append(f"the weight has only {k} singular directions, {top_k} were asked for")
    return SingularDirections(sigma[:k], U[:, :k].contiguous(), Vh[:k].mT.contiguous(), sigma, notes)
