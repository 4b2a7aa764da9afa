"""The largest eigenvalues of a Kronecker factor, without the full eigendecomposition that dominates K-FAC's cost."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

OVERSAMPLING = 8
BLOCKS = 4
DENSE_FRACTION = 0.25
"""Where the basis, BLOCKS·(k + OVERSAMPLING), would be a larger part of n, the full decomposition is faster."""


class SymmetricOperator(Protocol):
    """What :func:`top_eigenpairs` needs of a symmetric (n, n) operator that is not a tensor."""

    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device

    def __matmul__(self, block: Tensor) -> Tensor:
        """The product with an (n, b) block."""


class Eigenpairs(NamedTuple):
    """The k largest eigenvalues, in descending order."""

    values: Tensor
    """λ_1 ≥ … ≥ λ_k, (…, k)"""
    vectors: Tensor
    """orthonormal columns v_i, (…, n, k)"""
    residuals: Tensor
    """‖C v_i − λ_i v_i‖ / max_j |λ_j|, (…, k): |λ_i − an eigenvalue of C| is at most this, relative to the largest"""


def top_eigenpairs(
    C: Tensor | SymmetricOperator, k: int, *, tol: float | None = None, restarts: int = 100
) -> Eigenpairs:
    """The k largest (algebraic) eigenvalues of a symmetric matrix and their eigenvectors, to a checked residual.

    Block Krylov iteration with Rayleigh–Ritz projection and thick restarts: its cost is matrix products, on any device.
    The block is wider than k, so that eigenvalues of any multiplicity are all found; one-vector Lanczos (ARPACK)
    returns too few copies of a repeated eigenvalue with perfect residuals. Small matrices, large k and what does not
    converge go to ``torch.linalg.eigh``. The start is fixed: results are reproducible, and no random state advances.

    Args:
        C: symmetric (n, n), or (…, n, n); float16 and bfloat16 are widened to float32. Or a symmetric operator that is
            never formed: any object with ``shape``, ``dtype``, ``device`` and ``C @ block``.
        k: how many, 1 ≤ k ≤ n.
        tol: the residual to reach, relative to the largest eigenvalue; 1e-5 for float32 and 1e-10 for float64 unless
            given. An eigenvalue that is isolated by a gap g is then accurate to tol²·λ_1²/g.
        restarts: bound on the iterations (restarts of the basis).

    Raises:
        ValueError: C is not square or not finite, or k is out of range.
        RuntimeError: the residual is above tol, and there is no matrix to decompose fully, or C is not symmetric.
    """
    shape = tuple(C.shape)
    if len(shape) < 2 or shape[-1] != shape[-2]:
        raise ValueError(f"C must be square, not of shape {shape}")
    n = shape[-1]
    if not 1 <= k <= n:
        raise ValueError(f"k must be between 1 and {n}, the size of C, and is {k}")
    if isinstance(C, Tensor):
        C = C.detach()
        if not C.is_floating_point():
            raise ValueError(f"C has dtype {C.dtype}: it must be real floating point")
        if C.dtype in (torch.float16, torch.bfloat16):
            C = C.float()
        if not torch.isfinite(C).all():
            raise ValueError("C has entries that are not finite")
        if C.dim() > 2:
            each = [top_eigenpairs(matrix, k, tol=tol, restarts=restarts) for matrix in C.flatten(0, -3)]
            return Eigenpairs(*(torch.stack(part).unflatten(0, shape[:-2]) for part in zip(*each)))
    tolerance = (1e-10 if C.dtype == torch.float64 else 1e-5) if tol is None else tol
    explicit = isinstance(C, Tensor)
    if BLOCKS * (k + OVERSAMPLING) <= DENSE_FRACTION * n:
        found = _block_krylov(C, k, tolerance, restarts)
        if found is not None:
            pairs = _with_residuals(C, *found)
            if pairs.residuals.max() <= 2 * tolerance:  # recomputed: rounding may add to what the iteration measured
                return pairs
        if not explicit:
            raise RuntimeError(
                f"{k} eigenpairs did not reach tol={tolerance:g} in {restarts} restarts: raise one of them"
            )
    return _full(C if isinstance(C, Tensor) else C @ torch.eye(n, dtype=C.dtype, device=C.device), k, tolerance)


def _with_residuals(C: Tensor | SymmetricOperator, values: Tensor, vectors: Tensor) -> Eigenpairs:
    scale = values.abs().max()
    residuals = (C @ vectors - vectors * values).norm(dim=0)
    return Eigenpairs(values, vectors, residuals / scale.clamp_min(torch.finfo(values.dtype).tiny))


def _full(C: Tensor, k: int, tolerance: float) -> Eigenpairs:
    values, vectors = torch.linalg.eigh(C)
    pairs = _with_residuals(C, values[-k:].flip(0), vectors[:, -k:].flip(1))
    worst = float(pairs.residuals.max())
    # Rounding is relative to ‖C‖, which may be far above λ_1 for an indefinite matrix: only then is symmetry in doubt.
    if worst > tolerance and bool((C - C.mT).abs().max() > 1e-4 * C.abs().max()):
        raise RuntimeError(f"the residual of a full decomposition is {worst:.1e}: C is not symmetric")
    return pairs


def _block_krylov(C: Tensor | SymmetricOperator, k: int, tol: float, restarts: int) -> tuple[Tensor, Tensor] | None:
    """Ritz pairs of span{Ritz vectors, R, CR, …}, R the residuals of the last restart (thick-restart block Lanczos)."""
    n, width = C.shape[-1], k + OVERSAMPLING
    generator = torch.Generator().manual_seed(0)

    def random(columns: int) -> Tensor:
        return torch.randn(n, columns, generator=generator, dtype=C.dtype).to(C.device)

    basis = products = random(0)
    block = random(width)
    for _ in range(restarts):
        while basis.shape[1] < BLOCKS * width:
            block = _orthonormal(basis, block, random(width))
            product = C @ block
            basis, products = torch.cat([basis, block], 1), torch.cat([products, product], 1)
            block = product
        projected = basis.mT @ products
        values, rotation = torch.linalg.eigh((projected + projected.mT) / 2)
        values, rotation = values[-width:].flip(0), rotation[:, -width:].flip(1)
        basis, products = basis @ rotation, products @ rotation
        block = products - basis * values
        if (block[:, :k].norm(dim=0) <= tol * values[:k].abs().max()).all():
            return values[:k], basis[:, :k].contiguous()
    return None


def _orthonormal(basis: Tensor, block: Tensor, noise: Tensor) -> Tensor:
    """An orthonormal block orthogonal to the basis; what the basis already spans is replaced by noise."""
    tiny, eps = torch.finfo(block.dtype).tiny, torch.finfo(block.dtype).eps
    # More noise than the rounding of the projection makes, too little to disturb the Krylov space.
    block = block / block.norm(dim=0).clamp_min(tiny) + 100 * eps * noise / noise.norm(dim=0)
    block = block - basis @ (basis.mT @ block)
    block = torch.linalg.qr(block / block.norm(dim=0)).Q
    # The second pass removes what cancellation left in the first.
    return torch.linalg.qr(block - basis @ (basis.mT @ block)).Q
