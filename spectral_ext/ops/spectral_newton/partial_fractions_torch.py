"""Partial fractions in batched torch calls: spectral_newton on accelerators, and every spectral map.

All matrices of a call share the small side n and one rational function φ. With G in the unit of its own damping,
Z = (G/√δ)(G/√δ)ᵀ, the poles are numbers that the host knows, the same for all matrices. Nothing waits for the device.
Scratch is bounded by bytes: matrices go in chunks, their columns in blocks, and the poles in a loop.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby

import torch
from torch import Tensor

from spectral_ext.ops.spectral_newton.matrix_function import (
    Precision,
    Rational,
    Terms,
    constants,
    full_float32,
    is_one_solve,
    largest_eigenvalue,
    matrix_function,
    one_factor,
    terms_of,
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
SCRATCH_BYTES, MIN_BLOCK_BYTES = 240 * 2**20, 32 * 2**20
"""Scratch beyond G and the results; where a few (n, n) matrices of one G are more, those and two blocks of columns."""
FLOAT32_FROM, LEAST_EXTENT = 1e-8, 1e-60
"""Poles, residues and the unit √δ have no room in float32 where y_max is below the first, nor in float64 below the
second."""
FUSED_SIDE = 160
"""The small side up to which the CUDA kernel holds a matrix on chip."""


@lru_cache(maxsize=1024)
def device_fits(alpha: float, extent: float, tolerance: float) -> tuple[PartialFractions, ...]:
    """The poles for σ_max²/d^{2/α} ≤ extent. Where the host does not know (infinity), a set for each power of 16, from
    where T(G) = G/d as far as MAX_POLES and MAX_REACH go, of which the device takes one for each matrix.

    Raises:
        ValueError: more than MAX_POLES poles, or numbers that leave the range of float64.
    """
    if extent < LEAST_EXTENT and alpha not in (2.0, 4.0, 6.0):
        raise ValueError(f"sigma_max²/damping^(2/alpha) ≤ {extent:.3g} leaves the range of float64: use solver='svd'")
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
    if dtype == torch.float64 or not FLOAT32_FROM < extent < math.inf:
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


Block = tuple[slice, list[Tensor], Tensor]
Pair = tuple[Tensor, Tensor]
"""Wide matrices G (B, n, N), and where their results go, (B, n, N), of any dtype and strides."""


@dataclass
class Scales:
    """(B,) float64 on the device, flat over all matrices: 1/√δ, which brings G into the unit of φ; what φ(Z) G/√δ is
    multiplied by. Where the host had no bound for y also what G/√δ is multiplied by where φ(Z) fails or does not serve,
    which ``beyond`` says, and the coefficients of each matrix, as in `matrix_function`."""

    unit: Tensor
    gain: Tensor
    fallback: Tensor | None = None
    beyond: Tensor | None = None
    own: Tensor | None = None

    def __getitem__(self, places: slice) -> Scales:
        """Those of some of the matrices."""
        return Scales(*(None if value is None else value[places] for value in vars(self).values()))  # type: ignore


def frobenius_norms(G: Sequence[Tensor]) -> list[Tensor]:
    """‖G_b‖_F (B,) in float64 of each (B, n, N), one pass: NaN or infinite where G is."""
    if all(len(g) == 1 for g in G):
        return [norm.reshape(1) for norm in torch._foreach_norm(list(G), 2, dtype=torch.float64)]
    return [torch.linalg.vector_norm(g, dim=(-2, -1), dtype=torch.float64) for g in G]


def _chunks(pairs: Sequence[Pair], square: int, column: int = 0) -> Iterator[tuple[list[Pair], slice]]:
    """Matrices in order, and their places, as many at a time as fit into SCRATCH_BYTES with ``square`` bytes each and
    ``column`` for each of their columns."""
    chunk: list[Pair] = []
    first = end = used = 0
    for G, out in pairs:
        each = square + column * G.shape[2]
        most = max(1, SCRATCH_BYTES // each)
        for start in range(0, len(G), most):
            part = slice(start, start + most)
            more = len(G[part])
            if chunk and used + more * each > SCRATCH_BYTES:
                yield chunk, slice(first, end)
                chunk, first, used = [], end, 0
            chunk.append((G[part], out[part]))
            end, used = end + more, used + more * each
    if chunk:
        yield chunk, slice(first, end)


def _blocks(chunk: Sequence[Pair], dtype: torch.dtype, unit: Tensor | None, limit: int) -> Iterator[Block]:
    """``(matrices, results, G · unit)`` by blocks of columns, of at most ``limit`` bytes each, in ``dtype``."""
    first = 0
    for columns, same in groupby(chunk, key=lambda pair: pair[0].shape[2]):
        items = list(same)
        while items:
            size = items[0][0].shape[1] * columns * dtype.itemsize
            taken = [items.pop(0)]
            total = len(taken[0][0])
            while items and (total + len(items[0][0])) * size <= limit:
                taken.append(items.pop(0))
                total += len(taken[-1][0])
            width = max(1, min(columns, limit * columns // (total * size)))
            own = slice(first, first + total)
            for start in range(0, columns, width):
                parts = [G[..., start : start + width] for G, _ in taken]
                block = torch.empty(total, *parts[0].shape[1:], dtype=dtype, device=parts[0].device)
                torch._foreach_copy_(list(block.split([len(part) for part in parts])), parts)
                if unit is not None:  # in float64: 1/√δ may leave the range of float32 where G/√δ does not
                    block.mul_(unit[own, None, None])
                yield own, [out[..., start : start + width] for _, out in taken], block
                del block  # before the next one is made
            first += total


def _store(outs: list[Tensor], found: Tensor) -> None:
    torch._foreach_copy_(outs, list(found.split([len(out) for out in outs])))


def gram_(Z: Tensor, blocks: Iterable[Block]) -> Tensor:
    """Z ← X Xᵀ of every matrix X, from blocks of its columns."""
    known = 0
    for own, _, block in blocks:
        if own.stop > known:
            torch.bmm(block, block.mT, out=Z[own])
            known = own.stop
        else:
            Z[own].baddbmm_(block, block.mT)
        del block
    return Z


def apply_rational(pairs: Sequence[Pair], phi: Rational, precision: Precision, scales: Scales) -> None:
    """φ(Z) G/√δ · gain of every matrix G into its result; all of one n and one dtype, sorted by N.

    A matrix whose Z + p is not positive definite is NaN, or takes the fallback where there is one.
    """
    n, widest = pairs[0][0].shape[1], pairs[-1][0].shape[2]
    work = torch.float64 if pairs[0][0].dtype == torch.float64 else torch.float32
    dtype = torch.float64 if precision.float64 else work
    alone = is_one_solve(phi)
    last = torch.float64 if precision.apply64 or (alone and precision.float64) else work
    unit, gain, square = scales.unit, scales.gain, torch.ones_like(scales.unit)
    inner: Tensor | None = unit
    if dtype != work:  # float64 has room for R of any float32 matrix: what scales G goes into the (n, n) matrices
        square, inner = unit.square(), None
        if last == torch.float64:
            gain = gain * unit
            scales = replace(scales, fallback=None if scales.fallback is None else scales.fallback * unit)
    outer = inner if last == dtype else unit
    fused = n <= FUSED_SIDE and pairs[0][0].is_cuda and n * widest * 4 <= SCRATCH_BYTES // 2
    if fused and phi.form == 0 and not phi.pairs and phi.poles and dtype == torch.float32:
        for chunk, places in _chunks(pairs, 2 * n * n, 8 * n):
            _apply_fused(chunk, phi, unit[places], gain[places])
        return
    terms = terms_of(phi, precision, square, gain, scales.own, n, dtype)
    size = n * dtype.itemsize
    keep = alone and (n + 2 * widest) * size <= SCRATCH_BYTES
    with full_float32():
        # Alive at once: R, φ(R), what is inverted and its inverse, and what a quadratic factor needs.
        alive = 6 if phi.form or phi.pairs else 4
        for chunk, places in _chunks(pairs, *((n * size, 2 * size) if keep else (alive * n * size,))):
            own, inside = terms[places], None if inner is None else inner[places]
            room = SCRATCH_BYTES - (places.stop - places.start) * n * size
            if alone:
                _solve(chunk, phi, own, inside, SCRATCH_BYTES if keep else max(room // 3, MIN_BLOCK_BYTES), keep)
            else:
                outside, half = None if outer is None else outer[places], max(room // 2, MIN_BLOCK_BYTES)
                F = _function(chunk, phi, own, inside, max(room, MIN_BLOCK_BYTES), scales[places]).to(last)
                _apply(_blocks(chunk, last, outside, half), F)
                del F


def _gram(blocks: Iterable[Block], terms: Terms) -> Tensor:
    """X Xᵀ of every matrix X, from blocks of its columns."""
    n = (len(terms.one) + 1) // 2
    return gram_(terms.one.new_empty(len(terms.gain), n, n), blocks)


def _solve(chunk: Sequence[Pair], phi: Rational, terms: Terms, unit: Tensor | None, limit: int, keep: bool) -> None:
    """The results of a φ that is one solve; with ``keep`` from the blocks that gave the Gram matrix."""
    blocks: Iterable[Block] = _blocks(chunk, terms.one.dtype, unit, limit)
    kept = list(blocks) if keep else []
    L = one_factor(_gram(kept or blocks, terms), phi, terms)
    again = (kept.pop() for _ in range(len(kept))) if keep else _blocks(chunk, terms.one.dtype, unit, limit)
    for own, outs, block in again:
        half = torch.linalg.solve_triangular(L[own], block, upper=False)
        del block
        _store(outs, torch.linalg.solve_triangular(L[own].mT, half, upper=True))
        del half


def _function(
    chunk: Sequence[Pair], phi: Rational, terms: Terms, unit: Tensor | None, limit: int, scales: Scales
) -> Tensor:
    """What G is to be multiplied by, (B, n, n)."""
    blocks = _blocks(chunk, terms.one.dtype, unit, limit)
    F, failed = matrix_function(_gram(blocks, terms), phi, terms, SCRATCH_BYTES)
    diagonal = F.diagonal(dim1=-2, dim2=-1)
    if scales.fallback is None or scales.beyond is None:
        diagonal.masked_fill_(failed[:, None], torch.nan)
    else:
        failed = failed | scales.beyond
        F.masked_fill_(failed[:, None, None], 0.0)
        diagonal.add_((scales.fallback * failed)[:, None])
    return F


def _apply(blocks: Iterable[Block], F: Tensor) -> None:
    for own, outs, block in blocks:
        _store(outs, F[own] @ block)


def _apply_fused(chunk: Sequence[Pair], phi: Rational, unit: Tensor, gain: Tensor) -> None:
    """The CUDA kernel for n ≤ FUSED_SIDE: Gram matrices, inverses and last product of a block in three launches."""
    numbers = constants((phi.poles, phi.residues), unit.device)
    constant, weights = (phi.constant * gain).float(), (gain[:, None] * numbers[1]).float()
    poles = numbers[0].expand(len(unit), -1).float().contiguous()
    for own, outs, block in _blocks(chunk, torch.float32, unit, SCRATCH_BYTES // 2):
        product, status = torch.empty_like(block), torch.empty(len(block), dtype=torch.int32, device=block.device)
        torch.ops.spectral_ext.spectral_newton_poles_(
            product, status, block, constant[own], weights[own], poles[own], 1.0, 0.0
        )
        product.masked_fill_((status != 0)[:, None, None], torch.nan)
        _store(outs, product)


def _row(fit: PartialFractions, count: int) -> tuple[float, ...]:
    """constant, poles, residues, padded to ``count`` terms by 0/(y + 1); b stays first."""
    spare = count - len(fit.poles)
    return (fit.constant, *fit.poles, *[1.0] * spare, *fit.residues, *[0.0] * spare)


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
    inverse = torch.where(norm == 0, torch.ones_like(norm), 1 / norm)
    dtype = torch.float64 if G[0].dtype == torch.float64 or accuracy < 1e-5 else torch.float32
    size, found = n * n * dtype.itemsize, []
    with full_float32():
        for chunk, places in _chunks([(g, g) for g in G], 6 * size):
            count = places.stop - places.start
            Z = torch.empty(count, n, n, dtype=dtype, device=norm.device)
            gram_(Z, _blocks(chunk, dtype, inverse[places], max(SCRATCH_BYTES // 4, MIN_BLOCK_BYTES)))
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
    gain = root / damping * u ** (1 - alpha) + 0.0 * norm
    scales = Scales(unit, gain)
    if not math.isfinite(extent) and fit.error > 0.0:
        y_max = (norm * unit).square()
        width = max(len(f.poles) for f in fits)
        table = constants(tuple(_row(f, width) for f in fits), norm.device)
        reaches = constants(tuple(f.reach for f in fits), norm.device)
        own = table[torch.searchsorted(reaches, y_max.nan_to_num()).clamp(max=len(fits) - 1)]
        fallback = torch.where(zero, 0.0, 1 / (unit * (norm**alpha + damping)))
        scales = Scales(unit, gain, fallback, y_max > fit.reach, own)
    apply_rational(list(zip(G, out)), fit, precision, scales)
