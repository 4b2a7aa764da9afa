"""Solvers of spectral_newton in plain PyTorch, each on a batch of wide matrices G (B, n, N), n ≤ N, float32 or float64.

All share one scheme. G is divided by a power of two s ≤ max|G|, exactly, so that neither R = G Gᵀ nor σ^α leaves the
range of the dtype; with σ = s σ', T(G) = f(R') G' where f weighs direction k by s/(σ_k^α + d). Scalars are float64.
A matrix with a NaN or an infinity gives NaN throughout, and leaves the rest of the batch alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spectral_ext.transfer import PartialFractions


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


def weights_of(sigma: Tensor, scale: Tensor, alpha: Tensor, damping: Tensor, mode: str) -> tuple[Tensor, Tensor]:
    """``(s/(σ^α + d), σ^α/(σ^α + d))``, (B, n), from the singular values ``sigma`` of G/s; zeros for G = 0."""
    scale = scale.flatten(1).double()
    sigma = sigma.double() * scale
    powers = sigma**alpha
    total = powers + damping_of(sigma, alpha, damping, mode)
    empty = sigma.amax(-1, keepdim=True) == 0
    zero = torch.zeros_like(powers)
    return torch.where(empty, zero, scale / total), torch.where(empty, zero, powers / total)


def eigh_with_error(G: Tensor, alpha: Tensor, damping: Tensor, mode: str) -> tuple[Tensor, Tensor]:
    """T(G) = Q diag(f(λ)) Qᵀ G with R = G Gᵀ = Q diag(λ) Qᵀ, and an estimate (B,) of its relative error.

    Rounding moves eigenvalues by η = ε λ_max; direction k of T(G) then moves by (α/2) (σ^α/(σ^α + d)) η/λ_k of itself.
    """
    scaled, scale = power_of_two_scale(G)
    eigenvalues, Q = torch.linalg.eigh(scaled @ scaled.mT)
    eigenvalues = eigenvalues.clamp(min=0).double()
    weights, share = weights_of(eigenvalues.sqrt(), scale, alpha, damping, mode)
    result = (Q * weights.to(G.dtype).unsqueeze(-2)) @ Q.mT @ scaled
    eta = torch.finfo(G.dtype).eps * eigenvalues.amax(-1, keepdim=True)
    floored = torch.maximum(eigenvalues, eta)
    transfer = weights * floored.sqrt()
    moved = transfer * (0.5 * alpha * share * eta / floored).clamp(max=1.0).nan_to_num()
    return result, moved.norm(dim=-1) / transfer.norm(dim=-1).clamp(min=torch.finfo(torch.float64).tiny)


def eigh(G: Tensor, alpha: Tensor, damping: Tensor, mode: str) -> Tensor:
    """T(G) from the eigendecomposition of G Gᵀ: any α, (B, 1)."""
    return eigh_with_error(G, alpha, damping, mode)[0]


def svd(G: Tensor, alpha: Tensor, damping: Tensor, mode: str) -> Tensor:
    """T(G) = U diag(T(σ)) Vᵀ from the singular value decomposition in float64: the reference, for any α and d."""
    scaled, scale = power_of_two_scale(G)
    U, sigma, Vh = torch.linalg.svd(scaled.double(), full_matrices=False)
    weights, _ = weights_of(sigma, scale, alpha, damping, mode)
    return ((U * (weights * sigma).unsqueeze(-2)) @ Vh).to(G.dtype)


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


def _spd_inverse(X: Tensor) -> tuple[Tensor, Tensor]:
    """``(X⁻¹, failed)`` for a batch of positive definite matrices, without a host synchronisation."""
    L, info = torch.linalg.cholesky_ex(X)
    identity = torch.eye(X.shape[-1], dtype=X.dtype, device=X.device).expand_as(X)
    inverse = torch.linalg.solve_triangular(L, identity, upper=False)
    return inverse.mT @ inverse, info != 0


def largest_eigenvalue(R: Tensor, steps: int = 40) -> Tensor:
    """λ_max (B,) in float64 of positive semidefinite R (B, n, n), n steps of Lanczos at most; a lower bound."""
    n = R.shape[-1]
    steps = min(steps, n)
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(n, 1, dtype=torch.float64, generator=generator).to(R).expand(R.shape[0], n, 1)
    basis = [v / v.norm(dim=-2, keepdim=True)]
    diagonal, off = [], []
    tiny = torch.finfo(R.dtype).tiny
    for k in range(steps):
        w = R @ basis[k]
        diagonal.append((w * basis[k]).sum((-2, -1)))
        V = torch.cat(basis, -1)
        for _ in range(2):
            w = w - V @ (V.mT @ w)
        length = w.norm(dim=-2, keepdim=True)
        off.append(length.flatten())
        basis.append(w / length.clamp(min=tiny))
    tridiagonal = torch.diag_embed(torch.stack(diagonal, -1).double())
    if steps > 1:
        side = torch.stack(off[:-1], -1).double()
        tridiagonal = tridiagonal + torch.diag_embed(side, 1) + torch.diag_embed(side, -1)
    return torch.linalg.eigvalsh(tridiagonal)[:, -1].clamp(min=0)


def rational(
    G: Tensor, alpha: float, damping: Tensor, mode: str, levels: Sequence[PartialFractions], shift: float = 4.0
) -> Tensor:
    """T(G) by partial fractions, one α for the batch, without a host synchronisation: batched Cholesky factorisations.

    The coefficients of the first level that reaches σ_max²/d^{2/α} are chosen on the device. Each matrix to invert gets
    ``shift`` · ε · λ_max more on its diagonal, of the order of the rounding of R, so that it stays positive definite. A
    matrix that fails all the same, or that no level reaches, gets G/(σ_max^α + d): finite, and along the gradient.
    """
    scaled, scale = power_of_two_scale(G)
    s = scale.flatten().double()
    n = G.shape[-2]
    R = scaled @ scaled.mT
    top = largest_eigenvalue(R)
    d = damping.flatten()
    if mode == "spectral":
        d = d * (s * top.sqrt()) ** alpha
    elif mode == "mean":
        mean = R.diagonal(dim1=-2, dim2=-1).double().mean(-1) if alpha == 2 else R.double().square().sum((-2, -1)) / n
        d = d * s**alpha * mean
    empty = top == 0
    d = torch.where(empty, torch.ones_like(d), d)
    delta = d ** (2 / alpha) / s**2
    reach = torch.tensor([level.reach for level in levels], dtype=torch.float64, device=G.device)
    index = torch.searchsorted(reach, top / delta * (1 - 1e-4))
    missed = index >= len(levels)
    index = index.clamp(max=len(levels) - 1)

    count = max(len(level.poles) for level in levels)
    table = [
        [lv.constant, *lv.poles, *[1.0] * (count - len(lv.poles)), *lv.residues, *[0.0] * (count - len(lv.residues))]
        for lv in levels
    ]
    chosen = torch.tensor(table, dtype=torch.float64, device=G.device)[index]
    constant, poles, residues = chosen[:, :1], chosen[:, 1 : count + 1], chosen[:, count + 1 :]
    unit = torch.maximum(top, delta)
    Z, unit_delta = R / unit.to(R.dtype)[:, None, None], (delta / unit)[:, None]
    identity = torch.eye(n, dtype=R.dtype, device=R.device)
    jitter = shift * torch.finfo(R.dtype).eps
    F = constant.to(R.dtype)[:, :, None] * identity
    failed = missed
    if count:
        shifts = (unit_delta * poles + jitter * (top / unit)[:, None]).to(R.dtype)
        inverse, bad = _spd_inverse(Z[:, None] + shifts[:, :, None, None] * identity)
        F = F + ((unit_delta * residues).to(R.dtype)[:, :, None, None] * inverse).sum(1)
        failed = failed | bad.any(-1)
    b = levels[0].quadratic
    if b is not None:
        u = unit_delta.to(R.dtype)[:, :, None]
        inverse, bad = _spd_inverse(Z @ Z + b * u * Z + (u * u + jitter) * identity)
        F, failed = (u * u * inverse) @ F, failed | bad
    gain = (s / d).to(G.dtype)[:, None, None]
    safe = (s / (d + (s * top.sqrt()) ** alpha)).to(G.dtype)[:, None, None]
    result = torch.where(failed[:, None, None], safe * scaled, gain * (F @ scaled))
    return (
        torch.where(empty[:, None, None], torch.zeros_like(result), result)
        * torch.where(s.isnan(), s, 1.0).to(G.dtype)[:, None, None]
    )
