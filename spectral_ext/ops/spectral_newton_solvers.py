"""Solvers of spectral_newton in plain PyTorch, each on a batch of wide matrices G (B, n, N), n ≤ N, real, float32 or 64.

All share one scheme. G is divided by a power of two s ≥ max|G|, exactly, so that neither R = G Gᵀ nor σ^α leaves the
range of the dtype; with σ = s·σ', T(G) = f(R') G' where f weighs direction k by s/(σ_k^α + d). Scalars are float64.
A matrix with a NaN or an infinity gives NaN throughout, and leaves the rest of the batch alone.
"""

from __future__ import annotations

import torch
from torch import Tensor


def power_of_two_scale(G: Tensor) -> tuple[Tensor, Tensor]:
    """``(G/s, s)`` with s (B, 1, 1) the largest power of two ≤ max|G|, 1 for a zero matrix; non-finite G becomes zero, s NaN."""
    largest = G.abs().amax((-2, -1), keepdim=True)
    finite = largest.isfinite()
    exponent = torch.frexp(torch.where(finite & (largest > 0), largest, torch.ones_like(largest)))[1] - 1
    scaled = torch.ldexp(torch.where(finite, G, torch.zeros_like(G)), -exponent)
    return scaled, torch.where(finite, torch.ldexp(torch.ones_like(largest), exponent), torch.nan)


def damping_of(sigma: Tensor, alpha: Tensor, damping: Tensor, mode: str) -> Tensor:
    """d in the units of σ^α, (B, 1), from all singular values (B, n) in float64 and α, d of shape (B, 1)."""
    if mode == "absolute":
        return damping
    powers = sigma**alpha
    return damping * (powers.amax(-1, keepdim=True) if mode == "spectral" else powers.mean(-1, keepdim=True))


def weights_of(sigma: Tensor, scale: Tensor, alpha: Tensor, damping: Tensor, mode: str) -> Tensor:
    """s/(σ^α + d), (B, n), where σ' = ``sigma`` are the singular values of G/s; zero for G = 0."""
    scale = scale.flatten(1).double()
    sigma = sigma.double() * scale
    d = damping_of(sigma, alpha, damping, mode)
    powers = sigma**alpha
    return torch.where(sigma.amax(-1, keepdim=True) == 0, torch.zeros_like(powers), scale / (powers + d))


def eigh(G: Tensor, alpha: Tensor, damping: Tensor, mode: str) -> Tensor:
    """T(G) = Q diag(f(λ)) Qᵀ G with R = G Gᵀ = Q diag(λ) Qᵀ: any α, (B, 1), exact."""
    G, scale = power_of_two_scale(G)
    eigenvalues, Q = torch.linalg.eigh(G @ G.mT)
    weights = weights_of(eigenvalues.clamp(min=0).double().sqrt(), scale, alpha, damping, mode)
    return (Q * weights.to(G.dtype).unsqueeze(-2)) @ Q.mT @ G


def svd(G: Tensor, alpha: Tensor, damping: Tensor, mode: str) -> Tensor:
    """T(G) = U diag(T(σ)) Vᵀ from the singular value decomposition in float64: the reference, and exact for any d."""
    scaled, scale = power_of_two_scale(G)
    U, sigma, Vh = torch.linalg.svd(scaled.double(), full_matrices=False)
    weights = weights_of(sigma, scale, alpha, damping, mode)
    return ((U * (weights * sigma).unsqueeze(-2)) @ Vh).to(G.dtype)
