"""Solvers of spectral_newton in plain PyTorch, each on a batch of wide matrices G (B, n, N), n ≤ N, float32 or float64.

All share one scheme. G is divided by a power of two s ≤ max|G|, exactly, so that neither R = G Gᵀ nor σ^α leaves the
range of the dtype; with σ = s σ', T(G) = f(R') G' where f weighs direction k by s/(σ_k^α + d). Scalars are float64.
A matrix with a NaN or an infinity gives NaN throughout, and leaves the rest of the batch alone.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=4096)
def constants(values: tuple[float, ...] | tuple[tuple[float, ...], ...], device: torch.device) -> Tensor:
    """Numbers as a float64 tensor on the device, kept there: a CUDA graph cannot copy from the host."""
    return torch.tensor(values, dtype=torch.float64, device=device)


def power_of_two_scale(G: Tensor) -> tuple[Tensor, Tensor]:
    """``(G/s, s)``, s (B, 1, 1) the largest power of two ≤ max|G|, 1 for zero; non-finite G becomes zero, its s NaN."""
    largest = G.abs().amax((-2, -1), keepdim=True)
    finite = largest.isfinite()
    exponent = torch.frexp(torch.where(finite & (largest > 0), largest, torch.ones_like(largest)))[1] - 1
    half = exponent // 2  # two steps: 2^|exponent| itself can overflow for denormal G
    scaled = torch.ldexp(torch.ldexp(torch.where(finite, G, torch.zeros_like(G)), -half), half - exponent)
    return scaled, torch.where(finite, torch.ldexp(torch.ones_like(largest), exponent), torch.nan)


def damping_of(sigma: Tensor, alpha: Tensor, damping: Tensor, mode: str) -> Tensor:
    """d in the units of σ^α, (B, 1), from all singular values (B, n) in float64 and α, d of shape (B, 1)."""
    if mode == "absolute":
        return damping
    powers = sigma**alpha
    return damping * (powers.amax(-1, keepdim=True) if mode == "spectral" else powers.mean(-1, keepdim=True))


def weights_of(sigma: Tensor, scale: Tensor, alpha: Tensor, damping: Tensor) -> Tensor:
    """``s/(σ^α + d)``, (B, n), for the singular values ``sigma`` of G/s and d in the unit of σ^α; zeros for G = 0."""
    scale = scale.flatten(1).double()
    weights = scale / ((sigma * scale) ** alpha + damping)
    return torch.where(sigma.amax(-1, keepdim=True) == 0, torch.zeros_like(weights), weights)


def eigh_with_error(G: Tensor, alpha: Tensor, damping: Tensor, mode: str) -> tuple[Tensor, Tensor]:
    """T(G) = Q diag(f(λ)) Qᵀ G with R = G Gᵀ = Q diag(λ) Qᵀ, and an estimate (B,) of its relative error.

    Rounding of R and of its eigenvalues moves λ_k by about η = 32 ε λ_max, and direction k of T(G) by up to
    (f(λ_k − η) − f(λ_k + η)) √(λ_k + η). Rounding of Qᵀ G adds about ε ‖G‖_F/√n to each of its rows, which f weighs. In
    the mode ``mean`` d moves with the mean of σ^α, by all of itself at most.
    """
    scaled, scale = power_of_two_scale(G)
    eigenvalues, Q = torch.linalg.eigh(scaled @ scaled.mT)
    eigenvalues = eigenvalues.clamp(min=0).double()
    d = damping_of(eigenvalues.sqrt() * scale.flatten(1).double(), alpha, damping, mode)
    epsilon, n = torch.finfo(G.dtype).eps, eigenvalues.shape[-1]
    eta = 32 * epsilon * eigenvalues.amax(-1, keepdim=True)
    weights, above, below = (
        weights_of(lam.clamp(min=0).sqrt(), scale, alpha, d)
        for lam in (eigenvalues, eigenvalues + eta, eigenvalues - eta)
    )
    result = (Q * weights.to(G.dtype).unsqueeze(-2)) @ Q.mT @ scaled
    moved = (below - above) * (eigenvalues + eta).sqrt() / 2
    product = epsilon * weights.norm(dim=-1) * (eigenvalues.sum(-1) / n).sqrt()
    total = (weights * eigenvalues.sqrt()).norm(dim=-1).clamp(min=torch.finfo(torch.float64).tiny)
    error = ((moved.norm(dim=-1) + product) / total).nan_to_num()
    return result, error + mean_error(eigenvalues, alpha, epsilon) if mode == "mean" else error


def mean_error(eigenvalues: Tensor, alpha: Tensor, epsilon: float) -> Tensor:
    """Relative error (B,) of the mean of λ^{α/2} over computed eigenvalues (B, n): each is off by about
    4 ε (λ_k + ‖λ‖/√n); those below 4 ε ‖λ‖/√n may hide as much."""
    tiny = torch.finfo(torch.float64).tiny
    floor = 4 * epsilon * eigenvalues.square().mean(-1, keepdim=True).sqrt().clamp(min=tiny)
    power = 0.5 * alpha
    moved = power * torch.maximum(eigenvalues, floor) ** (power - 1) * (floor + 4 * epsilon * eigenvalues)
    hidden = eigenvalues <= floor
    total = (moved * ~hidden).norm(dim=-1) + (moved * hidden).sum(-1)
    return total / (eigenvalues**power).sum(-1).clamp(min=tiny)


def eigh(G: Tensor, alpha: Tensor, damping: Tensor, mode: str) -> Tensor:
    """T(G) from the eigendecomposition of G Gᵀ: any α, (B, 1)."""
    return eigh_with_error(G, alpha, damping, mode)[0]


def svd(G: Tensor, alpha: Tensor, damping: Tensor, mode: str) -> Tensor:
    """T(G) = U diag(T(σ)) Vᵀ from the singular value decomposition in float64: the reference, for any α and d."""
    scaled, scale = power_of_two_scale(G)
    U, sigma, Vh = torch.linalg.svd(scaled.double(), full_matrices=False)
    d = damping_of(sigma * scale.flatten(1).double(), alpha, damping, mode)
    return ((U * (weights_of(sigma, scale, alpha, d) * sigma).unsqueeze(-2)) @ Vh).to(G.dtype)


def exact(G: Tensor, alpha: Tensor, damping: Tensor, mode: str, tolerance: float) -> Tensor:
    """T(G) by eigh, then by eigh in float64 and by svd for the matrices whose estimated error exceeds the tolerance.

    Reads the estimates, so it waits for the device: for CPU tensors.
    """
    result, error = eigh_with_error(G, alpha, damping, mode)
    left = (error > tolerance).nonzero().flatten()
    if G.dtype == torch.float32 and len(left):
        result64, error = eigh_with_error(G[left].double(), alpha[left], damping[left], mode)
        result[left] = result64.to(G.dtype)
        left = left[error > tolerance]
    if len(left):
        result[left] = svd(G[left], alpha[left], damping[left], mode)
    return result


def largest_eigenvalue(R: Tensor, steps: int) -> Tensor:
    """λ_max (B,) in float64 of positive semidefinite R (B, n, n), a lower bound: ``steps`` of Lanczos, and the largest
    eigenvalue of the tridiagonal matrix by repeated squaring, which needs no LAPACK."""
    n = R.shape[-1]
    steps = min(steps, n)
    # Quasi-random start: no generator state is touched, and no structured matrix is orthogonal to it.
    start = torch.frac(torch.arange(1, n + 1, device=R.device, dtype=torch.float64) * 0.6180339887498949) - 0.5
    v = (start / start.norm()).to(R.dtype).expand(len(R), n).unsqueeze(-1)
    basis, diagonal, off = [v], [], []
    rounding = torch.finfo(R.dtype).eps * R.norm(dim=(-2, -1))[:, None, None]
    for k in range(steps):
        w = R @ basis[k]
        diagonal.append((w * basis[k]).sum((-2, -1)))
        V = torch.cat(basis, -1)
        for _ in range(2):
            w = w - V @ (V.mT @ w)
        length = w.norm(dim=-2, keepdim=True)
        # Where only rounding is left of a new vector it is not orthogonal to the others: zero instead.
        length = torch.where(length > rounding, length, torch.zeros_like(length))
        off.append(length.flatten())
        basis.append(torch.where(length > 0, w / length, torch.zeros_like(w)))
    T = torch.diag_embed(torch.stack(diagonal, -1).double())
    if steps > 1:
        side = torch.stack(off[:-1], -1).double()
        T = T + torch.diag_embed(side, 1) + torch.diag_embed(side, -1)
    # Shifted to be positive semidefinite: a breakdown may leave spurious small eigenvalues, never large ones.
    power = T / T.norm(dim=(-2, -1), keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    for _ in range(24):
        power = power @ power
        power = power / power.norm(dim=(-2, -1), keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    top = (T * power).sum((-2, -1)) / power.diagonal(dim1=-2, dim2=-1).sum(-1).clamp(
        min=torch.finfo(torch.float64).tiny
    )
    return top.clamp(min=0)
