"""φ(Z) of batches of positive semidefinite matrices for a rational φ, in torch calls: the poles of a batch go together
through one Cholesky factorization, one triangular solve and one product, as many as the scratch allows."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor


class Rational(Protocol):
    """φ(y) = constant + Σ residue/(y + pole) + Σ 2 Re(ρ/(y − ζ)), and the factor or term in Q(y) of ``form``."""

    @property
    def constant(self) -> float: ...
    @property
    def poles(self) -> tuple[float, ...]: ...
    @property
    def residues(self) -> tuple[float, ...]: ...
    @property
    def pairs(self) -> tuple[tuple[complex, complex], ...]:
        """(ζ, ρ), one for each pair of conjugate poles."""

    @property
    def form(self) -> int: ...
    @property
    def quadratic(self) -> float | None: ...
    @property
    def pair(self) -> tuple[float, float]: ...


@dataclass(frozen=True)
class Precision:
    """What is taken in float64: R and the poles below ``float32_above``, and the last product."""

    float64: bool
    float32_above: float
    apply64: bool


@contextmanager
def full_float32() -> Iterator[None]:
    """Products of float32 matrices in float32, whatever the user allows elsewhere (TF32, bfloat16); then as before."""
    backends = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before):
            backend.fp32_precision = precision


@lru_cache(maxsize=1024)
def constants(values: tuple[float, ...] | tuple[tuple[float, ...], ...], device: torch.device) -> Tensor:
    """Numbers as a float64 tensor on the device, kept there: a CUDA graph cannot copy from the host."""
    return torch.tensor(values, dtype=torch.float64, device=device)


def largest_eigenvalue(R: Tensor, accuracy: float) -> Tensor:
    """λ_max (B,) of positive semidefinite R (B, n, n), between (1 − accuracy) λ_max and λ_max: tr(R P)/tr P with P a
    power of R by repeated squaring, of exponent ln(n)/accuracy or more."""
    P = R / R.norm(dim=(-2, -1), keepdim=True).clamp(min=torch.finfo(R.dtype).tiny)
    for _ in range(math.ceil(math.log2(max(math.log(R.shape[-1]), 1.0) / accuracy))):
        P = P @ P
        P = P / P.norm(dim=(-2, -1), keepdim=True).clamp(min=torch.finfo(R.dtype).tiny)
    trace = P.diagonal(dim1=-2, dim2=-1).sum(-1).double().clamp(min=torch.finfo(torch.float64).tiny)
    return (R * P).sum((-2, -1)).double() / trace


def cholesky_(X: Tensor) -> tuple[Tensor, Tensor]:
    """``(L, info)`` of symmetric X, in the memory of X."""
    own = X.mT  # in the column order of LAPACK, so that nothing is copied
    L, info = torch.linalg.cholesky_ex(own, out=(own, torch.empty(X.shape[:-2], dtype=torch.int32, device=X.device)))
    return L, info


def is_one_solve(phi: Rational) -> bool:
    """Whether φ is a multiple of one inverse, of Z + p or of Q(Z): α = 2 and 4."""
    if phi.form == 0:
        return phi.constant == 0.0 and len(phi.poles) == 1 and not phi.pairs and phi.residues[0] > 0
    return phi.form == 2 and not phi.poles


def one_factor(Z: Tensor, phi: Rational, square: Tensor, gain: Tensor) -> Tensor:
    """L with gain · φ(square · Z) = (L Lᵀ)⁻¹ of φ that is one solve, in the memory of Z; NaN where it failed."""
    if phi.poles:
        Z.diagonal(dim1=-2, dim2=-1).add_((phi.poles[0] / square).to(Z.dtype)[:, None])
        gain = gain * phi.residues[0] / square
    else:
        Z.mul_(square[:, None, None])
        Z = torch.baddbmm(Z, Z, Z, beta=phi.quadratic or 0.0)
        Z.diagonal(dim1=-2, dim2=-1).add_(1.0)
        gain = gain * phi.constant
    L, info = cholesky_(Z)
    return L.mul_(torch.where(info == 0, gain.rsqrt(), torch.nan)[:, None, None])


def _inverses(Z: Tensor, factor: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """``(S, info)``, S (B, g·n, n) with SᵀS = Σ_j (factor_j Z + shift_j)⁻¹ for factor and shift (B, g)."""
    B, n, count = len(Z), Z.shape[-1], factor.shape[1]
    X = Z.unsqueeze(1) * factor.to(Z.dtype)[..., None, None]
    X.diagonal(dim1=-2, dim2=-1).add_(shift.to(Z.dtype)[..., None])
    L, info = cholesky_(X)
    identity = torch.eye(n, dtype=Z.dtype, device=Z.device).expand(B, count, n, n)
    # L⁻ᵀ comes in column order: its transpose is contiguous.
    return torch.linalg.solve_triangular(L.mT, identity, upper=True).mT.reshape(B, count * n, n), info


def matrix_function(
    Z: Tensor,
    phi: Rational,
    precision: Precision,
    square: Tensor,
    gain: Tensor,
    room: int,
    own: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``(gain · φ(square · Z), failed)`` for Z (B, n, n), which is overwritten, and square and gain (B,), float64;
    failed (B,): a matrix was not positive definite.

    ``room``: bytes of scratch beside Z and the result. ``own``: for each matrix its constant, poles and residues,
    (B, 1 + 2 count), instead of those of ``phi``.
    """
    B, count = len(Z), len(phi.poles) if own is None else own.shape[1] // 2
    single = count if own is not None or Z.dtype == torch.float32 else bisect_left(phi.poles, precision.float32_above)
    folded = phi.form == 0 and not phi.pairs and single == count and Z.dtype == torch.float64
    if not folded:
        Z.mul_(square[:, None, None])
    numbers = constants((phi.constant, *phi.poles, *phi.residues), Z.device)[None] if own is None else own
    constant, poles, residues = numbers.split([1, count, count], 1)
    outer = gain[:, None] if folded else torch.ones_like(gain)[:, None]
    weights = residues.abs().clamp(min=1e-30) * outer
    factor, shift = (square[:, None] if folded else outer) / weights, poles / weights
    infos, kept, start = [], None, 0
    F = torch.empty_like(Z) if count else torch.zeros_like(Z)
    if phi.form == 1:  # the first pole is b: y/Q = p − p/Q, p = 1/(y + b)
        S, info = _inverses(Z, torch.ones_like(outer), poles[:, :1].expand(B, 1))
        infos.append(info)
        kept = S.mT @ S
        torch.mul(kept, residues[:, :1, None].to(Z.dtype), out=F)
        start = 1
    signs = {r > 0 for r in phi.residues[start:]} if own is None else {True, False}
    while start < count:
        if start == single:
            Z, F = Z.float(), F.float()
        end = min(count, start + max(1, room // (2 * B * Z[0].nbytes)), single if start < single else count)
        S, info = _inverses(Z, factor[:, start:end], shift[:, start:end])
        infos.append(info)
        left = S
        if len(signs) == 2:
            sign = residues[:, start:end].sign().to(S.dtype).repeat_interleave(Z.shape[-1], 1)
            left = S * sign[..., None]
        F.baddbmm_(left.mT, S, beta=float(start > 0), alpha=-1.0 if signs == {False} else 1.0)
        del S, left
        start = end
    F.diagonal(dim1=-2, dim2=-1).add_((constant * outer).to(F.dtype))
    for zeta, rho in phi.pairs:
        complex_type = torch.complex128 if Z.dtype == torch.float64 else torch.complex64
        X = Z.to(complex_type)
        X.diagonal(dim1=-2, dim2=-1).sub_(zeta)
        inverse, info = torch.linalg.inv_ex(X)
        infos.append(info[:, None])
        F.add_(torch.view_as_real(inverse)[..., 0], alpha=2 * rho.real)
        F.sub_(torch.view_as_real(inverse)[..., 1], alpha=2 * rho.imag)
    if phi.quadratic is not None:
        Q = torch.baddbmm(Z, Z, Z, beta=phi.quadratic)
        Q.diagonal(dim1=-2, dim2=-1).add_(1.0)
        one = torch.ones_like(outer)
        S, info = _inverses(Q, one, torch.zeros_like(outer))
        infos.append(info)
        Q = torch.bmm(S.mT, S, out=Q)
        del S
        if kept is None:
            F = Q @ F if count else Q.mul_(phi.constant)
        else:
            u, v = phi.pair
            F.add_(Q, alpha=u).add_(kept, alpha=v).baddbmm_(kept, Q, alpha=-v)
    if not folded:
        F.mul_(gain[:, None, None])
    failed = torch.cat(infos, 1).ne(0).any(1) if infos else torch.zeros(B, dtype=torch.bool, device=Z.device)
    return F, failed
