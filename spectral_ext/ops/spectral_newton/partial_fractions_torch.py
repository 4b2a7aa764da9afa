"""Partial fractions in batched torch calls: spectral_newton on accelerators, and every spectral map.

All matrices of a call share the small side n and one rational function φ. With G in the unit of its own damping,
Z = (G/√δ)(G/√δ)ᵀ, the poles are numbers that the host knows, the same for all matrices. Nothing waits for the device.
Scratch is bounded by bytes: matrices go in chunks, their columns in blocks, and the poles in a loop.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

import torch
from torch import Tensor

from spectral_ext.ops.spectral_newton.matrix_function import (
    Precision,
    Rational,
    full_float32,
    is_one_solve,
    largest_eigenvalue,
    matrix_function,
)
from spectral_ext.ops.spectral_newton.partial_fractions import (
    MAX_REACH,
    PartialFractions,
    partial_fractions,
    rounded_reach,
)

SHIFT = 4.0
"""Rounding of R in float32 moves its eigenvalues by up to about SHIFT · ε ‖G‖_F²/√n."""
FIT_SHARE = 0.7
RUNG = 16.0
CHUNK_BYTES, BLOCK_BYTES = 160 * 2**20, 40 * 2**20
"""Scratch for the (n, n) matrices of a chunk, and for a block of columns of G (two are alive): 240 MiB together, or
four (n, n) matrices of one G where that is more."""
FUSED_SIDE = 160
"""The small side up to which the CUDA kernel holds a matrix on chip."""


@lru_cache(maxsize=1024)
def device_fits(alpha: float, extent: float, tolerance: float) -> tuple[PartialFractions, ...]:
    """The poles for σ_max²/d^{2/α} ≤ extent. Where the host does not know (infinity), a set for each power of 16, from
    where T(G) = G/d as far as MAX_POLES and MAX_REACH go, of which the device takes one for each matrix.

    Raises:
        ValueError: more than MAX_POLES poles.
    """
    if math.isfinite(extent):
        return (partial_fractions(alpha, rounded_reach(extent), FIT_SHARE * tolerance),)
    fits: list[PartialFractions] = []
    reach = RUNG ** math.floor(math.log(0.5 * tolerance, RUNG) * 2.0 / alpha)
    while reach <= MAX_REACH and (not fits or math.isfinite(fits[-1].reach)):
        try:
            fits.append(partial_fractions(alpha, reach, FIT_SHARE * tolerance, lowest=reach / RUNG))
        except ValueError:
            if reach >= RUNG:
                break
            raise
        reach *= RUNG
    return tuple(fits)


def precision_for(
    fit: PartialFractions, extent: float, mode: str, n: int, dtype: torch.dtype, tolerance: float
) -> Precision:
    """Where float32 can be trusted with the tolerance, from what the host knows: n and y_max ≤ extent.

    Rounding of R moves y by about SHIFT · ε Σy/√n: a pole p feels it as that over p, and T(G) where no σ dominates as
    that itself. For α > 2 rounding of R² adds ε y_max². Where G is of rank one, T(G) is y_max^{α/2} times smaller than
    what cancels in it: inverses and solves in float32 err by up to 3 ε y_max^{α/2}, φ(Z) rounded to float32 by half an
    ε y_max^{α/2}. Without a bound (``absolute``), all is float64.
    """
    if dtype == torch.float64 or not math.isfinite(extent):
        return Precision(True, math.inf, True)
    epsilon = torch.finfo(torch.float32).eps
    allowed = tolerance - min(fit.error, 0.8 * tolerance)
    moved = SHIFT * epsilon * (extent if mode == "spectral" else extent / n**0.5)
    squared = epsilon * extent**2 if fit.form else 0.0
    null = epsilon * extent ** (fit.alpha / 2)
    if max(2 * moved, 2 * squared, 3 * null) <= allowed:
        return Precision(False, 0.0, False)
    apply64 = 2 * null > allowed
    return Precision(True, math.inf if fit.form or apply64 else 4 * moved / allowed, apply64)


@dataclass
class Batch:
    """Wide matrices G (B, n, N), where the result goes, (B, n, N), of any dtype and strides, and (B,) float64 on the
    device: 1/√δ, which brings G into the unit of φ; what φ(Z) G/√δ is multiplied by; what G/√δ is multiplied by where
    φ(Z) fails and the host had no bound for y."""

    G: Tensor
    out: Tensor
    unit: Tensor
    gain: Tensor
    fallback: Tensor
    own: Tensor
    """Empty, or the coefficients of each matrix, as in `matrix_function`."""


def frobenius_norms(G: Sequence[Tensor]) -> list[Tensor]:
    """‖G_b‖_F (B,) in float64 of each (B, n, N), one pass: NaN or infinite where G is."""
    if all(len(g) == 1 for g in G):
        return [norm.reshape(1) for norm in torch._foreach_norm(list(G), 2, dtype=torch.float64)]
    return [torch.linalg.vector_norm(g, dim=(-2, -1), dtype=torch.float64) for g in G]


def _split(batches: Sequence[Batch], count: int) -> Iterator[list[Batch]]:
    """Chunks of at most ``count`` matrices, of one shape after the other."""
    chunk: list[Batch] = []
    left = count
    for batch in sorted(batches, key=lambda b: b.G.shape[-1]):
        for start in range(0, len(batch.G), count):
            end = min(start + count, len(batch.G))
            if end - start > left:
                yield chunk
                chunk, left = [], count
            whole = end - start == len(batch.G)
            chunk.append(batch if whole else Batch(*(t[start:end] for t in vars(batch).values())))
            left -= end - start
    if chunk:
        yield chunk


def _blocks(chunk: Sequence[Batch], dtype: torch.dtype) -> Iterator[tuple[int, list[Batch], slice, Tensor]]:
    """``(first matrix, batches, columns, G/√δ)``: blocks of at most BLOCK_BYTES (two with the copy), in ``dtype``."""
    first = 0
    for columns, same in groupby(chunk, key=lambda b: b.G.shape[-1]):
        items = list(same)
        while items:
            size = items[0].G.shape[1] * columns * dtype.itemsize
            taken, total = [items.pop(0)], 0
            total = len(taken[0].G)
            while items and (total + len(items[0].G)) * size <= BLOCK_BYTES:
                taken.append(items.pop(0))
                total += len(taken[-1].G)
            width = max(1, min(columns, BLOCK_BYTES * columns // (total * size)))
            unit = torch.cat([b.unit for b in taken])[:, None, None]
            for start in range(0, columns, width):
                part = slice(start, min(start + width, columns))
                parts = [b.G[..., part] for b in taken]
                block = parts[0] if len(parts) == 1 else torch.cat(parts)
                # Multiplied in float64 and rounded: 1/√δ may leave the range of float32 where G/√δ does not.
                scaled = torch.empty(block.shape, dtype=dtype, device=block.device)
                yield first, taken, part, torch.mul(block, unit, out=scaled)
            first += total


def apply_rational(batches: Sequence[Batch], phi: Rational, precision: Precision, bounded: bool = True) -> None:
    """φ(Z) G/√δ · gain of every matrix into its ``out``; all of one n and one dtype.

    A matrix whose Z + p is not positive definite is NaN, or, not ``bounded``, takes the fallback; so does one whose y
    exceeds what φ serves, which has a ``gain`` of 0.
    """
    n, device = batches[0].G.shape[1], batches[0].G.device
    work = torch.float64 if batches[0].G.dtype == torch.float64 else torch.float32
    dtype = torch.float64 if precision.float64 else work
    whole = n * max(b.G.shape[2] for b in batches) * 4 <= BLOCK_BYTES
    fused = (
        batches[0].G.is_cuda
        and n <= FUSED_SIDE
        and whole
        and phi.form == 0
        and not phi.pairs
        and dtype == torch.float32
    )
    with full_float32():
        alive = 2 if is_one_solve(phi) and phi.form == 0 else 4
        for chunk in _split(batches, max(1, CHUNK_BYTES // (alive * n * n * dtype.itemsize))):
            if fused and phi.poles:
                _apply_fused(chunk, phi)
                continue
            Z = torch.empty(sum(len(b.G) for b in chunk), n, n, dtype=dtype, device=device)
            gram_(Z, chunk)
            gain = torch.cat([b.gain for b in chunk])
            if is_one_solve(phi):
                L, info = _factor(Z, phi)
                del Z
                gain = torch.where(info == 0, gain * (phi.residues or (phi.constant,))[0], torch.nan)
                _solve(chunk, L, gain)
                continue
            F, info = matrix_function(Z, phi, precision, None if bounded else torch.cat([b.own for b in chunk]))
            del Z
            if bounded:
                F.mul_(torch.where(info == 0, gain, torch.nan).to(F.dtype)[:, None, None])
            else:
                failed = (info != 0) | (gain == 0)
                F.masked_fill_(failed[:, None, None], 0.0).mul_(gain.to(F.dtype)[:, None, None])
                instead = torch.where(failed, torch.cat([b.fallback for b in chunk]), 0.0)
                F.diagonal(dim1=-2, dim2=-1).add_(instead.to(F.dtype)[:, None])
            F = F.to(torch.float64 if precision.apply64 else work)
            for first, taken, part, block in _blocks(chunk, F.dtype):
                _store(taken, part, F[first : first + len(block)] @ block)


def _store(taken: Sequence[Batch], part: slice, found: Tensor) -> None:
    torch._foreach_copy_([b.out[..., part] for b in taken], list(found.split([len(b.G) for b in taken])))


def _factor(Z: Tensor, phi: Rational) -> tuple[Tensor, Tensor]:
    """The Cholesky factor of Z + p or Q(Z), and its info."""
    if phi.poles:
        Z.diagonal(dim1=-2, dim2=-1).add_(phi.poles[0])
        return torch.linalg.cholesky_ex(Z)
    Q = torch.baddbmm(Z, Z, Z, beta=phi.quadratic or 0.0)
    Q.diagonal(dim1=-2, dim2=-1).add_(1.0)
    return torch.linalg.cholesky_ex(Q)


def _solve(chunk: Sequence[Batch], L: Tensor, gain: Tensor) -> None:
    """(L Lᵀ)⁻¹ G/√δ · gain by substitution."""
    for first, taken, part, block in _blocks(chunk, L.dtype):
        own = slice(first, first + len(block))
        block = torch.linalg.solve_triangular(L[own], block, upper=False)
        block = torch.linalg.solve_triangular(L[own].mT, block, upper=True)
        _store(taken, part, block.mul_(gain[own].to(L.dtype)[:, None, None]))


def _apply_fused(chunk: Sequence[Batch], phi: Rational) -> None:
    """The CUDA kernel for n ≤ FUSED_SIDE: Gram matrices, inverses and last product of a block in three launches."""
    numbers = constants((phi.poles, phi.residues), chunk[0].G.device)
    for _, taken, part, block in _blocks(chunk, torch.float32):
        gain = torch.cat([b.gain for b in taken])[:, None]
        product, status = torch.empty_like(block), torch.empty(len(block), dtype=torch.int32, device=block.device)
        poles = numbers[0].expand(len(block), -1).float().contiguous()
        torch.ops.spectral_ext.spectral_newton_poles_(
            product, status, block, (phi.constant * gain[:, 0]).float(), (gain * numbers[1]).float(), poles, 1.0, 0.0
        )
        product.masked_fill_((status != 0)[:, None, None], torch.nan)
        _store(taken, part, product)


def _row(fit: PartialFractions, count: int) -> tuple[float, ...]:
    """constant, poles, residues, padded to ``count`` terms by 0/(y + 1); b stays first."""
    spare = count - len(fit.poles)
    return (fit.constant, *fit.poles, *[1.0] * spare, *fit.residues, *[0.0] * spare)


@lru_cache(maxsize=1024)
def constants(values: tuple[float, ...] | tuple[tuple[float, ...], ...], device: torch.device) -> Tensor:
    """Numbers as a float64 tensor on the device, kept there: a CUDA graph cannot copy from the host."""
    return torch.tensor(values, dtype=torch.float64, device=device)


def gram_(Z: Tensor, chunk: Sequence[Batch]) -> None:
    """Z ← (G/√δ)(G/√δ)ᵀ of every matrix."""
    for first, _, part, block in _blocks(chunk, Z.dtype):
        own = Z[first : first + len(block)]
        if part.start == 0:
            torch.bmm(block, block.mT, out=own)
        else:
            own.baddbmm_(block, block.mT)


def units_of(G: Sequence[Tensor], mode: str, accuracy: float) -> tuple[Tensor, Tensor]:
    """The unit of σ of each matrix of the batches, 1, σ_max (to ``accuracy``) or the root mean square of σ; and ‖G‖_F,
    NaN where an element is not finite. Both float64 on the device, flat over all."""
    norms = frobenius_norms(G)
    norm = torch.cat(norms)
    norm = torch.where(norm.isfinite(), norm, torch.nan)
    if mode == "absolute":
        return torch.ones_like(norm), norm
    if mode == "rms":
        return norm / min(G[0].shape[1:]) ** 0.5, norm
    n = min(G[0].shape[1:])
    one = torch.ones_like(norm)
    inverse = torch.where(norm == 0, one, 1 / norm).split([len(g) for g in G])
    dtype = torch.float64 if G[0].dtype == torch.float64 or accuracy < 1e-5 else torch.float32
    found = []
    with full_float32():
        for chunk in _split(
            [Batch(g, g, i, i, i, i) for g, i in zip(G, inverse)], max(1, CHUNK_BYTES // (4 * n * n * dtype.itemsize))
        ):
            Z = torch.empty(sum(len(b.G) for b in chunk), n, n, dtype=dtype, device=norm.device)
            gram_(Z, chunk)
            found.append(largest_eigenvalue(Z, accuracy))
    return norm * torch.cat(found).sqrt(), norm


def rational_(
    G: Sequence[Tensor],
    out: Sequence[Tensor],
    alpha: float,
    damping: float | Tensor,
    mode: str,
    extent: float,
    tolerance: float,
) -> None:
    """T of every matrix of the batches G (B_i, n, N_i), all of one n ≤ N_i, dtype and α, into ``out``.

    ``damping``: a number, or float64 on the device, flat over all; ``extent`` bounds σ_max²/d^{2/α}, infinite where the
    host does not know. There, beyond the reach of the poles, a matrix gets G/(‖G‖_F^α + d): finite, along the gradient.

    Raises:
        ValueError: more than MAX_POLES poles would be needed.
    """
    fits = device_fits(alpha, extent, tolerance)
    fit = fits[-1]
    n = G[0].shape[1]
    precision = precision_for(fit, extent, mode, n, G[0].dtype, tolerance)
    u, norm = units_of(G, mode, 0.2 * tolerance / alpha)
    zero = norm == 0
    u = torch.where(zero, 1.0, u)
    root = damping ** (1 / alpha)  # √δ in the unit u
    unit = 1 / (root * u)
    gain = root / damping * u ** (1 - alpha) * (norm / norm.clamp(min=torch.finfo(torch.float64).tiny))
    bounded = math.isfinite(extent) or fit.error == 0.0
    fallback = own = gain
    if not bounded:
        y_max = (norm * unit).square()
        width = max(len(f.poles) for f in fits)
        table = constants(tuple(_row(f, width) for f in fits), norm.device)
        reaches = constants(tuple(f.reach for f in fits), norm.device)
        own = table[torch.searchsorted(reaches, y_max.nan_to_num()).clamp(max=len(fits) - 1)]
        gain = torch.where(y_max > fit.reach, 0.0, gain)
        fallback = torch.where(zero, 0.0, 1 / (unit * (norm**alpha + damping)))
    counts = [len(g) for g in G]
    parts = [t.split(counts) for t in (unit, gain, fallback, own)]
    apply_rational([Batch(g, o, *t) for g, o, *t in zip(G, out, *parts)], fit, precision, bounded)
