"""The definition of every op in plain PyTorch: unfold, multiply, SVD. Slow, and judged in float64.

Notation: B samples, S positions of a sample (1 for Linear on vectors, output pixels for a convolution, tokens for a
sequence), a_bs the input patch (n numbers, in the order of ``weight.flatten(1)``), d_bs the per-sample error at the
layer's output (m numbers): B times what a hook sees under a mean loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

IntOrTuple = int | Sequence[int]


def as_tuple(value: IntOrTuple, dims: int) -> tuple[int, ...]:
    return (value,) * dims if isinstance(value, int) else tuple(value)


def patches(
    x: Tensor,
    *,
    kernel_size: IntOrTuple | None = None,
    stride: IntOrTuple = 1,
    padding: IntOrTuple = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
    bias: bool = False,
) -> Tensor:
    """Input patches as rows, (groups, B, S, n): zero padding, column order of ``weight.flatten(1)``, a column of ones
    last.

    Without ``kernel_size``: a linear layer, x is (B, …, n) and S the product of the middle dimensions.
    With it: a convolution, x is (B, C, *spatial) with one to three spatial dimensions.
    """
    if kernel_size is None:
        rows = x.reshape(x.shape[0], -1, x.shape[-1]).unsqueeze(0)
    else:
        dims = x.dim() - 2
        k, s = as_tuple(kernel_size, dims), as_tuple(stride, dims)
        p, d = as_tuple(padding, dims), as_tuple(dilation, dims)
        x = F.pad(x, [q for size in reversed(p) for q in (size, size)])
        for axis in range(dims):
            x = x.unfold(2 + axis, d[axis] * (k[axis] - 1) + 1, s[axis])
        x = x[(Ellipsis, *(slice(None, None, step) for step in d))]  # type: ignore[index]
        x = x.unflatten(1, (groups, -1)).movedim(1, 0)  # (groups, B, C/groups, *out, *kernel)
        x = x.movedim(2, 2 + dims)  # (groups, B, *out, C/groups, *kernel)
        rows = x.flatten(2 + dims).flatten(2, 1 + dims)
    if bias:
        rows = torch.cat([rows, rows.new_ones(*rows.shape[:-1], 1)], -1)
    return rows


def input_factor(x: Tensor, *, kernel_size: IntOrTuple | None = None, groups: int = 1, **geometry) -> Tensor:
    """C_A = Σ_bs a_bs a_bsᵀ / (B·S), (n, n), or (groups, n, n) where groups > 1. Zero if there is no row."""
    rows = patches(x, kernel_size=kernel_size, groups=groups, **geometry).flatten(1, 2)
    factor = rows.mT @ rows / max(rows.shape[1], 1)
    return factor if groups > 1 else factor[0]


def errors(delta: Tensor, *, convolution: bool) -> Tensor:
    """Per-sample errors as rows, (B, S, m): from (B, m, *spatial) of a convolution or (B, …, m) of a linear layer."""
    if convolution:
        return delta.flatten(2).mT
    return delta.reshape(delta.shape[0], -1, delta.shape[-1])


def output_factor(delta: Tensor, *, convolution: bool = False) -> Tensor:
    """C_δ = Σ_bs d_bs d_bsᵀ / B, (m, m)."""
    rows = errors(delta, convolution=convolution).flatten(0, 1)
    return rows.mT @ rows / max(delta.shape[0], 1)


class RayleighQuotients(NamedTuple):
    """Second moments along K pairs of directions, each of shape (K,)."""

    output: Tensor
    """u_kᵀ C_δ u_k = Σ_bs (u_k·d_bs)² / B"""
    input: Tensor
    """v_kᵀ C_A v_k = Σ_bs (v_k·a_bs)² / (B·S)"""
    sum_of_products: Tensor
    """h_k^SoP = Σ_bs (u_k·d_bs)² (v_k·a_bs)² / (B·S), §6.4"""
    gauss_newton: Tensor
    """Σ_b (Σ_s (u_k·d_bs)(v_k·a_bs))² / B, the per-sample (empirical-Fisher) Gauss–Newton form"""


def rayleigh_quotients(
    x: Tensor, delta: Tensor, U: Tensor, V: Tensor, *, kernel_size: IntOrTuple | None = None, **geometry
) -> RayleighQuotients:
    """All four second moments for directions u_k, v_k: the columns of U (m, K) and V (n, K)."""
    a = patches(x, kernel_size=kernel_size, **geometry)[0] @ V
    d = errors(delta, convolution=kernel_size is not None) @ U
    samples, positions = max(a.shape[0], 1), max(a.shape[0] * a.shape[1], 1)
    return RayleighQuotients(
        output=d.square().sum((0, 1)) / samples,
        input=a.square().sum((0, 1)) / positions,
        sum_of_products=(d.square() * a.square()).sum((0, 1)) / positions,
        gauss_newton=(d * a).sum(1).square().sum(0) / samples,
    )


def absolute_damping(sigma: Tensor, alpha: float | Tensor, damping: float | Tensor, mode: str) -> Tensor:
    """d in the units of σ^α, (…, 1): ``absolute`` d, ``spectral`` d·σ_max^α, ``rms`` d·(mean σ²)^{α/2}."""
    if mode == "absolute":
        return torch.as_tensor(damping, dtype=sigma.dtype, device=sigma.device).expand(*sigma.shape[:-1], 1)
    if mode == "spectral":
        return damping * sigma.amax(-1, keepdim=True) ** alpha
    if mode == "rms":
        return damping * sigma.square().mean(-1, keepdim=True) ** (alpha / 2)
    raise ValueError(f"damping_mode must be 'absolute', 'spectral' or 'rms', not {mode!r}")


def spectral_newton(G: Tensor, alpha: float = 2.0, damping: float = 0.1, *, damping_mode: str = "absolute") -> Tensor:
    """T(G) = U diag(σ/(σ^α + d)) Vᵀ for G = U diag(σ) Vᵀ, (…, m, n), §7.3. Zero gradients give zero."""
    if G.numel() == 0:
        return torch.zeros_like(G)
    U, sigma, Vh = torch.linalg.svd(G, full_matrices=False)
    d = absolute_damping(sigma, alpha, damping, damping_mode)
    transfer = torch.where(sigma > 0, sigma / (sigma**alpha + d), torch.zeros_like(sigma))
    return U * transfer.unsqueeze(-2) @ Vh
