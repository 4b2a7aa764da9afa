"""φ(Z) of batches of positive semidefinite matrices for a rational φ, in torch calls: one Cholesky factor and one
triangular inverse per pole, in place on the diagonal."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

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


def is_one_solve(phi: Rational) -> bool:
    """Whether φ is a multiple of one inverse, of Z + p or of Q(Z): α = 2 and 4."""
    if phi.form == 0:
        return phi.constant == 0.0 and len(phi.poles) == 1 and not phi.pairs
    return phi.form == 2 and not phi.poles


def largest_eigenvalue(R: Tensor, accuracy: float) -> Tensor:
    """λ_max (B,) of positive semidefinite R (B, n, n), between (1 − accuracy) λ_max and λ_max: tr(R P)/tr P with P a
    power of R by repeated squaring, of exponent ln(n)/accuracy or more."""
    P = R / R.norm(dim=(-2, -1), keepdim=True).clamp(min=torch.finfo(R.dtype).tiny)
    for _ in range(math.ceil(math.log2(max(math.log(R.shape[-1]), 1.0) / accuracy))):
        P = P @ P
        P = P / P.norm(dim=(-2, -1), keepdim=True).clamp(min=torch.finfo(R.dtype).tiny)
    trace = P.diagonal(dim1=-2, dim2=-1).sum(-1).double().clamp(min=torch.finfo(torch.float64).tiny)
    return (R * P).sum((-2, -1)).double() / trace


def _spd_inverse(X: Tensor) -> tuple[Tensor, Tensor]:
    """``(L⁻¹, info)`` for X = L Lᵀ, so that X⁻¹ = L⁻ᵀ L⁻¹; the lower triangle of X is read."""
    L, info = torch.linalg.cholesky_ex(X)
    identity = torch.eye(X.shape[-1], dtype=X.dtype, device=X.device).expand_as(X)
    return torch.linalg.solve_triangular(L, identity, upper=False), info


def matrix_function(Z: Tensor, phi: Rational, precision: Precision, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``(φ(Z), info)`` for Z (B, n, n), which is overwritten; info is not 0 where Z + p was not positive definite.

    ``own``: for each matrix its constant, poles and residues, (B, 1 + 2 count), instead of those of ``phi``.
    """
    diagonal = Z.diagonal(dim1=-2, dim2=-1)
    F, info = torch.zeros_like(Z), torch.zeros(len(Z), dtype=torch.int32, device=Z.device)
    terms: list[tuple[Any, Any]] = sorted(zip(phi.poles, phi.residues))
    constant: Any = phi.constant
    if own is not None:
        count = own.shape[1] // 2
        constant, *numbers = own.to(Z.dtype).unsqueeze(-1).unbind(1)
        terms = list(zip(numbers[:count], numbers[count:]))
    shift: Any = 0.0
    kept = None
    for pole, residue in terms:
        if Z.dtype == torch.float64 and own is None and pole >= precision.float32_above:
            Z, F = Z.float(), F.float()
            diagonal = Z.diagonal(dim1=-2, dim2=-1)
        diagonal.add_(pole - shift)
        shift = pole
        M, bad = _spd_inverse(Z)
        info = info | bad
        if phi.form == 1 and (pole is terms[0][0] if own is not None else pole == phi.poles[0]):
            kept = M.mT @ M
            F.add_(kept * residue.unsqueeze(-1) if own is not None else kept, alpha=1 if own is not None else residue)
        elif own is not None:
            F.baddbmm_(M.mT, M * residue.unsqueeze(-1))
        else:
            F.baddbmm_(M.mT, M, alpha=residue)
        del M
    F.diagonal(dim1=-2, dim2=-1).add_(constant)
    if terms:
        diagonal.sub_(shift)
    for zeta, rho in phi.pairs:
        complex_type = torch.complex128 if Z.dtype == torch.float64 else torch.complex64
        X = Z.to(complex_type)
        X.diagonal(dim1=-2, dim2=-1).sub_(zeta)
        inverse, bad = torch.linalg.inv_ex(X)
        info = info | bad
        F.add_(torch.view_as_real(inverse)[..., 0], alpha=2 * rho.real)
        F.sub_(torch.view_as_real(inverse)[..., 1], alpha=2 * rho.imag)
    if phi.quadratic is None:
        return F, info
    Q = torch.baddbmm(Z, Z, Z, beta=phi.quadratic)
    Q.diagonal(dim1=-2, dim2=-1).add_(1.0)
    M, bad = _spd_inverse(Q)
    Q = M.mT @ M
    del M
    if phi.form == 2:
        return (Q @ F if terms else Q.mul_(phi.constant)), info | bad
    u, v = phi.pair
    assert kept is not None  # the first pole is b: y/Q = p − p/Q, p = 1/(y + b)
    F.add_(Q, alpha=u).add_(kept, alpha=v)
    return F.baddbmm_(kept, Q, alpha=-v), info | bad
