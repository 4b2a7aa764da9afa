"""From checked matrices to results: chooses solvers, gathers what goes together, scatters what comes back."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from spectral_ext.ops.spectral_newton import decompositions as solvers
from spectral_ext.ops.spectral_newton import partial_fractions_cpu as cpu
from spectral_ext.ops.spectral_newton.choose_solver import (
    choose_solver,
    default_tolerance,
    operand_type,
    pole_fits,
    product_fits,
)
from spectral_ext.ops.spectral_newton.partial_fractions_torch import needs_float64, rational
from spectral_ext.ops.spectral_newton.product_sum import Basis
from spectral_ext.ops.spectral_newton.product_sum_torch import product_sum


@dataclass
class Problem:
    """One tensor of matrices with its parameters: one number a matrix, or a float64 tensor (B, 1) on the device."""

    name: str
    G: Tensor
    alpha: list[float] | Tensor
    damping: list[float] | Tensor
    out: Tensor | None


@dataclass
class Item:
    """Matrices of one problem that share a solver and α: a batch (B, m, n) and where its results go."""

    G: Tensor
    alpha: list[float] | Tensor
    damping: list[float] | Tensor
    result: Tensor
    index: list[int]


def solve(problems: list[Problem], mode: str, solver: str, tolerance: float | None) -> list[Tensor]:
    """T(G) of every problem, in its ``out`` where it has one."""
    results = []
    groups: dict[tuple, list[Item]] = defaultdict(list)
    given = any(problem.out is not None for problem in problems)
    sources = {problem.G.untyped_storage().data_ptr() for problem in problems} if given else set()
    for problem in problems:
        G = problem.G
        direct = problem.out is not None and _writable(problem.out, G, sources)
        result = (
            problem.out
            if direct and problem.out is not None
            else torch.empty_like(G, memory_format=torch.contiguous_format)
        )
        results.append(result)
        if G.numel() == 0:
            continue
        flat = G.reshape(-1, *G.shape[-2:])
        work = flat if flat.dtype in (torch.float32, torch.float64) else flat.float()
        target = result.view(-1, *G.shape[-2:])
        wanted = default_tolerance(G.device.type, G.dtype) if tolerance is None else tolerance
        for key, index in _by_solver(problem, mode, solver, wanted).items():
            whole = len(index) == len(work)
            item = Item(
                work if whole else work[index],
                _select(problem.alpha, index),
                _select(problem.damping, index),
                target,
                index,
            )
            groups[(*key, wanted, work.dtype, work.device)].append(item)
    for (chosen, alpha, wanted, _, device), items in groups.items():
        if device.type == "cpu" and chosen in ("cholesky", "rational"):
            _compiled(items, mode, wanted)
        else:
            _batched(items, chosen, alpha, mode, wanted)
    finished = []
    for problem, result in zip(problems, results):
        finished.append(result if problem.out is None or problem.out is result else problem.out.copy_(result))
    return finished


def _writable(out: Tensor, G: Tensor, sources: set[int]) -> bool:
    """Whether results can go straight into ``out`` while the matrices, in the storages ``sources``, are still read."""
    apart = out.untyped_storage().data_ptr() not in sources
    return apart and out.is_contiguous() and out.dtype == G.dtype


def _select(values: list[float] | Tensor, index: list[int]) -> list[float] | Tensor:
    if isinstance(values, Tensor):
        return values if len(index) == len(values) else values[index]
    return [values[i] for i in index]


def _by_solver(problem: Problem, mode: str, solver: str, tolerance: float) -> dict[tuple[str, float | None], list[int]]:
    """Matrices of a problem by (solver, α); α is None where the solver takes any mixture of them."""
    count = problem.G.shape[:-2].numel()
    device, dtype = problem.G.device.type, problem.G.dtype
    if isinstance(problem.alpha, Tensor) or isinstance(problem.damping, Tensor):
        chosen = "eigh" if solver == "auto" else solver
        if chosen == "eigh" or chosen == "svd":
            return {(chosen, None): list(range(count))}
        if isinstance(problem.alpha, Tensor):
            raise ValueError(f"{problem.name}: solver={solver!r} needs alpha as a number, not a tensor on the device")
    found: dict[tuple[str, float | None], list[int]] = defaultdict(list)
    dampings = problem.damping if isinstance(problem.damping, list) else [None] * count
    for i, (a, d) in enumerate(zip(problem.alpha, dampings)):
        chosen = solver
        if solver == "auto":
            chosen = choose_solver(a, d, mode, device=device, dtype=dtype, tolerance=tolerance).solver
        mixed = chosen in ("eigh", "svd") or (device == "cpu" and chosen in ("cholesky", "rational"))
        if device == "cpu" and chosen == "cholesky":
            chosen = "rational"  # one compiled loop over all of them
        found[(chosen, None if mixed else a)].append(i)
    return found


def _compiled(items: list[Item], mode: str, tolerance: float) -> None:
    """The compiled path: results are written in place where that is possible."""
    outs = []
    for item in items:
        whole = len(item.index) == len(item.result) and item.result.dtype == item.G.dtype
        outs.append(item.result if whole else torch.empty_like(item.G, memory_format=torch.contiguous_format))
    alphas = [float(a) for item in items for a in item.alpha]
    dampings = [float(d) for item in items for d in item.damping]
    undone = cpu.partial_fractions_([item.G for item in items], outs, alphas, dampings, mode, tolerance)
    for i, b in undone:
        item = items[i]
        G = item.G[b : b + 1]
        wide = G.shape[1] <= G.shape[2]
        a, d = _column([float(item.alpha[b])], G), _column([float(item.damping[b])], G)
        found = solvers.exact(G if wide else G.mT, a, d, mode, tolerance)
        outs[i][b : b + 1] = found if wide else found.mT
    for item, out in zip(items, outs):
        if out is not item.result:
            item.result[item.index] = out.to(item.result.dtype)


def _column(values: list[float] | Tensor, G: Tensor, scale: float = 1.0) -> Tensor:
    if isinstance(values, Tensor):
        return values * scale
    return solvers.constants(tuple(value * scale for value in values), G.device).unsqueeze(-1)


def _batched(items: list[Item], solver: str, alpha: float | None, mode: str, tolerance: float) -> None:
    """One solver call a bucket of matrices, zero-padded to one shape."""
    for bucket in _buckets(items, one_damping=solver in ("polynomial", "iterates") and mode == "spectral"):
        n = max(min(item.G.shape[1:]) for item in bucket)
        N = max(max(item.G.shape[1:]) for item in bucket)
        parts, alphas, dampings = [], [], []
        for item in bucket:
            wide = item.G if item.G.shape[1] <= item.G.shape[2] else item.G.mT
            rows, columns = wide.shape[1:]
            padding = (0, N - columns, 0, n - rows)
            parts.append(torch.nn.functional.pad(wide, padding) if any(padding) else wide)
            # Padding adds zeros to the spectrum that ``mean`` averages.
            dampings.append(_column(item.damping, wide, n / rows if mode == "mean" else 1.0))
            alphas.append(_column(item.alpha, wide))
        stacked = parts[0] if len(parts) == 1 else torch.cat(parts)
        known = {d for item in bucket if isinstance(item.damping, list) for d in item.damping}
        result = _run(stacked, torch.cat(alphas), torch.cat(dampings), known, solver, alpha, mode, tolerance)
        start = 0
        for item in bucket:
            count, rows, columns = item.G.shape
            piece = result[start : start + count]
            start += count
            piece = piece[:, :rows, :columns] if rows <= columns else piece[:, :columns, :rows].mT
            if count == len(item.result):
                item.result.copy_(piece)
            else:
                item.result[item.index] = piece.to(item.result.dtype)


def _run(
    G: Tensor, a: Tensor, d: Tensor, known: set[float], solver: str, alpha: float | None, mode: str, tolerance: float
) -> Tensor:
    """One solver on a batch of wide matrices; ``known`` are the dampings that the host knows."""
    if solver == "svd":
        return solvers.svd(G, a, d, mode)
    if solver == "eigh":
        if G.device.type == "cpu":
            return solvers.exact(G, a, d, mode, tolerance)
        return solvers.eigh(G.double(), a, d, mode).to(G.dtype)  # nothing waits to learn whether float32 was enough
    assert alpha is not None
    if solver in ("cholesky", "rational"):
        levels = pole_fits(alpha, frozenset(known) if mode == "spectral" else None, tolerance)
        sides = (G.shape[-2], G.shape[-1])
        float64 = needs_float64(alpha, min(known, default=None), mode, sides, G.dtype, tolerance)
        return rational(G, alpha, d, mode, levels, float64)
    basis: Basis = "polynomial" if solver == "polynomial" else "iterates"
    table = product_fits(basis, alpha, next(iter(known)) if mode == "spectral" else None, tolerance)
    return product_sum(G, alpha, d, mode, table, operand_type(G.dtype))


def _buckets(items: list[Item], one_damping: bool) -> list[list[Item]]:
    """Items to stack: one shape on the CPU; elsewhere shapes whose padding costs less than a quarter more work."""
    if one_damping:
        items = [part for item in items for part in _by_damping(item)]
    sides = sorted(items, key=lambda item: (-min(item.G.shape[1:]), -max(item.G.shape[1:])))
    buckets: list[list[Item]] = []
    for item in sides:
        n, N = min(item.G.shape[1:]), max(item.G.shape[1:])
        for bucket in buckets:
            big_n, big_N = min(bucket[0].G.shape[1:]), max(bucket[0].G.shape[1:])
            same = (n, N) == (big_n, big_N)
            near = item.G.device.type != "cpu" and big_n <= 1.12 * n and N <= big_N <= 1.12 * N
            if (same or near) and (not one_damping or item.damping[0] == bucket[0].damping[0]):
                bucket.append(item)
                break
        else:
            buckets.append([item])
    return buckets


def _by_damping(item: Item) -> list[Item]:
    """The matrices of an item by their damping."""
    places: dict[float, list[int]] = defaultdict(list)
    for b, value in enumerate(item.damping):
        places[float(value)].append(b)
    if len(places) == 1:
        return [item]
    return [
        Item(item.G[own], _select(item.alpha, own), [value] * len(own), item.result, [item.index[b] for b in own])
        for value, own in places.items()
    ]
