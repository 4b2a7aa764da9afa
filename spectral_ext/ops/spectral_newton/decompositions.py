"""T(G) from decompositions in float64, for wide matrices G (B, n, N), n ≤ N: where partial fractions do not reach.

G is divided by a power of two s ≤ max|G|, exactly, so that neither R = G Gᵀ nor σ^α leaves the range of the dtype.
A matrix with a NaN or an infinity gives NaN throughout, and leaves the rest of the batch alone.
"""

from __future__ import annotations

import torch
from torch import Tensor


def power_of_two_scale(G: Tensor) -> tuple[Tensor, Tensor]:
    """``(G/s, s)``, s (B, 1, 1) the largest power of two ≤ max|G|, 1 for zero; non-finite G becomes zero, its s NaN."""
    largest = G.abs().amax((-2, -1), keepdim=True)
    finite = largest.isfinite()
    exponent = torch.frexp(torch.where(finite & (largest > 0), largest, torch.ones_like(largest)))[1] - 1
    half = exponent // 2  # two steps: 2^|exponent| itself can overflow for denormal G
    scaled = torch.ldexp(torch.ldexp(torch.where(finite, G, torch.zeros_like(G)), -half), half - exponent)
    return scaled, torch.where(finite, torch.ldexp(torch.ones_like(largest), exponent), torch.nan)


def damping_unit(sigma: Tensor, alpha: Tensor, mode: str) -> Tensor:
    """The unit of d, (B, 1), from all singular values (B, n): 1, σ_max^α, or (mean σ²)^{α/2} for ``rms``."""
    if mode == "absolute":
        return torch.ones_like(sigma[:, :1])
    if mode == "spectral":
        return sigma.amax(-1, keepdim=True) ** alpha
    return sigma.square().mean(-1, keepdim=True) ** (alpha / 2)


def _weights(sigma: Tensor, scale: Tensor, alpha: Tensor, damping: Tensor) -> Tensor:
    """s/(σ^α + d), (B, n), for the singular values of G/s and d in the unit of σ^α; zero for G = 0, NaN where s is."""
    s = scale.flatten(1).double()
    weights = s / ((sigma * s) ** alpha + damping)
    return torch.where((sigma.amax(-1, keepdim=True) == 0) & ~s.isnan(), torch.zeros_like(weights), weights)


def _with_error(
    sigma: Tensor, above: Tensor, below: Tensor, scale: Tensor, alpha: Tensor, damping: Tensor, mode: str
) -> tuple[Tensor, Tensor]:
    """The weights of the singular values, and an estimate (B,) of the relative error of T(G) if rounding moved each
    singular value to between ``below`` and ``above``."""
    d = damping * damping_unit(sigma * scale.flatten(1).double(), alpha, mode)
    weights, high, low = (_weights(s, scale, alpha, d) for s in (sigma, above, below))
    moved = (low - high).abs() * above / 2
    total = (weights * sigma).norm(dim=-1).clamp(min=torch.finfo(torch.float64).tiny)
    return weights, (moved.norm(dim=-1) / total).nan_to_num()


def eigh(G: Tensor, alpha: Tensor, damping: Tensor, mode: str) -> tuple[Tensor, Tensor]:
    """T(G) = Q diag(f(λ)) Qᵀ G with R = G Gᵀ = Q diag(λ) Qᵀ, and an estimate (B,) of its relative error.

    Rounding of R and of its eigenvalues moves λ_k by about 32 ε λ_max; rounding of Qᵀ G adds about ε ‖G‖_F/√n to each
    of its rows, which f weighs.
    """
    scaled, scale = power_of_two_scale(G.double())
    eigenvalues, Q = torch.linalg.eigh(scaled @ scaled.mT)
    eigenvalues = eigenvalues.clamp(min=0)
    epsilon, n = torch.finfo(torch.float64).eps, eigenvalues.shape[-1]
    moved = 32 * epsilon * eigenvalues.amax(-1, keepdim=True)
    sigma, above, below = (e.clamp(min=0).sqrt() for e in (eigenvalues, eigenvalues + moved, eigenvalues - moved))
    weights, error = _with_error(sigma, above, below, scale, alpha, damping, mode)
    rows = epsilon * weights.norm(dim=-1) * (eigenvalues.sum(-1) / n).sqrt()
    total = (weights * sigma).norm(dim=-1).clamp(min=torch.finfo(torch.float64).tiny)
    result = (Q * weights.unsqueeze(-2)) @ Q.mT @ scaled
    return result.to(G.dtype), error + (rows / total).nan_to_num()


def svd(G: Tensor, alpha: Tensor, damping: Tensor, mode: str) -> tuple[Tensor, Tensor]:
    """T(G) = U diag(T(σ)) Vᵀ from the singular value decomposition: the reference, for any α and d; and an estimate of
    its relative error: rounding moves each σ by about 4 ε σ_max."""
    scaled, scale = power_of_two_scale(G.double())
    U, sigma, Vh = torch.linalg.svd(scaled, full_matrices=False)
    moved = 4 * torch.finfo(torch.float64).eps * sigma.amax(-1, keepdim=True)
    weights, error = _with_error(sigma, sigma + moved, (sigma - moved).clamp(min=0), scale, alpha, damping, mode)
    return ((U * (weights * sigma).unsqueeze(-2)) @ Vh).to(G.dtype), error
