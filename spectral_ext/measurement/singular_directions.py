"""The singular directions of a layer's gradient, with the one rule that tells which of them are rounding error."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

DOUBLE_BELOW = 2**20
"""Matrices with fewer entries are decomposed in float64, whatever the gradient's dtype: it costs little, and then the
decomposition adds no rounding error of its own."""
CUTOFF = {torch.float64: 1e-12, torch.float32: 1e-6}
"""By the gradient's dtype: a direction with σ_k ≤ CUTOFF · σ_1 is not distinguished from rounding error of the gradient
and is dropped."""
FLOAT32_SVD_CUTOFF = 4e-6
"""The same for larger float32 matrices, which are decomposed in float32: that alone gives a matrix of low rank singular
values up to 1.1e-6 σ_1 beyond its rank (measured at 512 to 2048 rows)."""


@dataclass
class SingularDirections:
    """The K leading singular triplets of a gradient G (m, n), K at most its numerical rank."""

    sigma: Tensor
    """(K,), decreasing, float64 or float32."""
    U: Tensor
    """(m, K), columns u_k."""
    V: Tensor
    """(n, K), columns v_k."""
    sigma_all: Tensor
    """(min(m, n),): all singular values, also those below the cutoff."""
    notes: list[str] = field(default_factory=list)


def singular_directions(gradient: Tensor, top_k: int) -> SingularDirections | None:
    """The ``top_k`` leading singular triplets of G, a matrix (m, n) or E diagonal blocks (E, m, n), without those that
    rounding error explains: σ_k ≤ 1e-6 σ_1 (1e-12 σ_1 for a float64 gradient, 4e-6 σ_1 for a float32 gradient of 2²⁰
    entries or more).

    A classifier's gradient has rank ≤ C − 1, and a batch of B rows gives rank ≤ B: singular values beyond the rank are
    rounding error, their directions are arbitrary, and they must not enter a fit.

    Returns:
        None if G is zero or has no entries.
    """
    if gradient.numel() == 0:
        return None
    matrix = gradient[0] if gradient.dim() == 3 and len(gradient) == 1 else gradient
    small = matrix.numel() < DOUBLE_BELOW
    U, sigma, Vh = torch.linalg.svd(matrix.double() if small else matrix, full_matrices=False)
    if matrix.dim() == 3:
        U, sigma, Vh = _block_diagonal(U, sigma, Vh, top_k)
    if float(sigma[0]) == 0.0:
        return None
    cutoff = CUTOFF.get(gradient.dtype, CUTOFF[torch.float32])
    if matrix.dtype != torch.float64 and not small:
        cutoff = FLOAT32_SVD_CUTOFF
    rank = int((sigma > cutoff * sigma[0]).sum())
    k = min(top_k, rank)
    notes = []
    if k < min(top_k, len(sigma)):
        notes.append(f"the gradient has numerical rank {rank}: {k} directions instead of {min(top_k, len(sigma))}")
    elif k < top_k:
        notes.append(f"the weight has only {k} singular directions, {top_k} were asked for")
    return SingularDirections(sigma[:k], U[:, :k].contiguous(), Vh[:k].mT.contiguous(), sigma, notes)


def _block_diagonal(U: Tensor, sigma: Tensor, Vh: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The singular vectors of the block-diagonal matrix from those of its E blocks, for the ``top_k`` largest of all
    singular values: U (E·m, K), all σ decreasing, Vᵀ (K, E·n).
    """
    blocks, m, r = U.shape
    n = Vh.shape[-1]
    values, order = sigma.flatten().sort(descending=True, stable=True)
    k = min(top_k, len(order))
    of, within, at = order[:k] // r, order[:k] % r, torch.arange(k, device=U.device)
    left, right = U.new_zeros(k, blocks, m), Vh.new_zeros(k, blocks, n)
    left[at, of], right[at, of] = U[of, :, within], Vh[of, within]
    return left.flatten(1).mT, values, right.flatten(1)
