"""φ(Z) of batches of positive semidefinite matrices for a rational φ, in torch calls: the poles of a batch go together
through one Cholesky factorization, one triangular solve and one product, as many as the scratch allows."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
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


@dataclass
class Terms:
    """The coefficients of gain · φ(square · Z) for matrices Z, (B, …) float64 on the device."""

    square: Tensor
    gain: Tensor
    constant: Tensor
    """(B, 1)"""
    first: Tensor
    """(B,), the residue of the first pole, with its sign."""
    factor: Tensor
    shift: Tensor
    """(B, poles): the inverse of factor · Z + shift is |residue|/(square · Z + pole), times the gain if ``folded``. Of
    a φ that is one solve: the square root of what Z + shift is multiplied by, and shift."""
    sign: Tensor | None
    """(B, poles), the signs of the residues where they differ."""
    negative: bool
    """Whether all residues are negative."""
    doubles: int
    """How many of the poles are taken in float64, if Z is float64."""
    folded: bool
    one: Tensor
    """(2 n − 1,), zeros and a one in the middle: J_ij = one_{i+j} is the antidiagonal, and as J Jᵀ = I, L⁻ᵀJ serves as
    L⁻ᵀ without an identity of n² numbers."""

    def __getitem__(self, places: slice) -> Terms:
        """Those of some of the matrices."""
        keys = ("square", "gain", "constant", "first", "factor", "shift", "sign")
        columns = {key: getattr(self, key) for key in keys}
        own: dict[str, Any] = {key: None if value is None else value[places] for key, value in columns.items()}
        return replace(self, **own)


def terms_of(
    phi: Rational, precision: Precision, square: Tensor, gain: Tensor, own: Tensor | None, n: int, dtype: torch.dtype
) -> Terms:
    """``own``: for each matrix its constant, poles and residues, (B, 1 + 2 count), instead of those of ``phi``."""
    count = len(phi.poles) if own is None else own.shape[1] // 2
    float64 = dtype == torch.float64
    one = torch.zeros(2 * n - 1, dtype=dtype, device=gain.device)
    one[n - 1 : n].fill_(1.0)
    doubles = bisect_left(phi.poles, precision.float32_above) if own is None and float64 else count
    folded = float64 and doubles == count and phi.form == 0 and not phi.pairs
    if own is None:
        own = constants((phi.constant, *phi.poles, *phi.residues), gain.device).expand(len(gain), -1)
        signs = {residue > 0 for residue in phi.residues[phi.form == 1 :]}
    else:
        signs = {True, False}
    constant, poles, residues = own.split([1, count, count], 1)
    if is_one_solve(phi):
        scale = square / (gain * residues[:, 0]) if count else 1 / (gain * phi.constant)
        shift = poles / square[:, None]
        return Terms(square, gain, constant, gain, scale.sqrt()[:, None], shift, None, False, count, True, one)
    weights = residues.abs().clamp(min=1e-280)  # not zero, which pads the shorter fits
    if folded:
        weights, constant = weights * gain[:, None], constant * gain[:, None]
    factor = 1 / weights
    if phi.form == 0 and not phi.pairs:
        factor[:, :doubles] *= square[:, None]
    sign = residues.sign() if len(signs) == 2 else None
    negative = signs == {False}
    first = residues[:, 0] if count else gain
    return Terms(square, gain, constant, first, factor, poles / weights, sign, negative, doubles, folded, one)


def one_factor(Z: Tensor, phi: Rational, terms: Terms) -> Tensor:
    """L with gain · φ(square · Z) = (L Lᵀ)⁻¹ of φ that is one solve, in the memory of Z; NaN where it failed."""
    if phi.poles:
        Z.diagonal(dim1=-2, dim2=-1).add_(terms.shift)
    else:
        Z.mul_(terms.square[:, None, None])
        Z = torch.baddbmm(Z, Z, Z, beta=phi.quadratic or 0.0)
        Z.diagonal(dim1=-2, dim2=-1).add_(1.0)
    L, info = cholesky_(Z)
    return L.mul_(terms.factor.masked_fill(info.ne(0)[:, None], torch.nan)[..., None])


def _inverses(Z: Tensor, factor: Tensor | None, shift: Tensor | float, one: Tensor) -> tuple[Tensor, Tensor]:
    """``(S, info)``, S (B, g·n, n) with SᵀS = Σ_j (factor_j Z + shift_j)⁻¹, factor and shift (B, g); Z itself, g = 1,
    is overwritten without a factor."""
    B, n = len(Z), Z.shape[-1]
    X = Z.unsqueeze(1)
    if factor is not None:
        X = torch.mul(X, factor[..., None, None], out=Z.new_empty(*factor.shape, n, n))
    diagonal = X.diagonal(dim1=-2, dim2=-1)
    diagonal.add_(shift[..., None] if isinstance(shift, Tensor) else shift)
    L, info = cholesky_(X)
    # L⁻ᵀJ comes in column order: its transpose is contiguous.
    S = torch.linalg.solve_triangular(L.mT, one.as_strided((n, n), (1, 1)).expand(X.shape), upper=True)
    return S.mT.reshape(B, -1, n), info


def matrix_function(Z: Tensor, phi: Rational, terms: Terms, scratch: int) -> tuple[Tensor, Tensor]:
    """``(F, failed)`` for Z (B, n, n), which is overwritten: gain · φ(square · Z), and (B,) whether a matrix was not
    positive definite. ``scratch``: bytes for Z, F and all else."""
    count, one = terms.factor.shape[1], terms.one
    if phi.form or phi.pairs:
        Z.mul_(terms.square[:, None, None])
    F = torch.empty_like(Z) if count else torch.zeros_like(Z)
    infos, kept, start = [], None, 0
    if phi.form == 1:  # the first pole is b: y/Q = p − p/Q, p = 1/(y + b)
        S, info = _inverses(Z.clone(), None, phi.poles[0], one)
        infos.append(info)
        kept = S.mT @ S
        del S
        torch.mul(kept, terms.first[:, None, None], out=F)
        start = 1
    while start < count:
        if start == terms.doubles:
            Z = torch.mul(Z, terms.square[:, None, None], out=torch.empty_like(Z, dtype=torch.float32))
            F, one = F.float() if start else torch.empty_like(Z), one.float()
        end = min(
            count,
            start + max(1, (scratch - 2 * Z.nbytes) // (2 * Z.nbytes)),
            terms.doubles if start < terms.doubles else count,
        )
        part = slice(start, end)
        S, info = _inverses(Z, terms.factor[:, part], terms.shift[:, part], one)
        infos.append(info)
        left = S
        if terms.sign is not None:
            left = S * terms.sign[:, part].to(S.dtype).repeat_interleave(Z.shape[-1], 1)[..., None]
        F.baddbmm_(left.mT, S, beta=float(start > 0), alpha=-1.0 if terms.negative else 1.0)
        del S, left
        start = end
    for zeta, rho in phi.pairs:
        X = Z.to(torch.complex128 if Z.dtype == torch.float64 else torch.complex64)
        X.diagonal(dim1=-2, dim2=-1).sub_(zeta)
        inverse, info = torch.linalg.inv_ex(X)
        infos.append(info[:, None])
        F.add_(torch.view_as_real(inverse)[..., 0], alpha=2 * rho.real)
        F.sub_(torch.view_as_real(inverse)[..., 1], alpha=2 * rho.imag)
    F.diagonal(dim1=-2, dim2=-1).add_(terms.constant)
    if phi.quadratic is not None:
        Q = torch.baddbmm(Z, Z, Z, beta=phi.quadratic)
        S, info = _inverses(Q, None, 1.0, one)
        infos.append(info)
        Q = torch.bmm(S.mT, S, out=Z)
        del S
        if kept is None:
            F = Q @ F if count else Q.mul_(phi.constant)
        else:
            u, v = phi.pair
            F.add_(Q, alpha=u).add_(kept, alpha=v).baddbmm_(kept, Q, alpha=-v)
    if not terms.folded:
        F.mul_(terms.gain[:, None, None])
    return F, torch.cat(infos, 1).any(1) if infos else torch.zeros_like(terms.gain, dtype=torch.bool)
