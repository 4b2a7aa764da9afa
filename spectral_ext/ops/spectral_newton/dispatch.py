"""From checked matrices to results: chooses solvers, gathers what goes together, scatters what comes back."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from spectral_ext.ops.spectral_newton import decompositions
from spectral_ext.ops.spectral_newton import partial_fractions_cpu as cpu
from spectral_ext.ops.spectral_newton.choose_solver import choose_solver, default_tolerance
from spectral_ext.ops.spectral_newton.matrix_function import constants
from spectral_ext.ops.spectral_newton.partial_fractions import extent_of, rounded_reach
from spectral_ext.ops.spectral_newton.partial_fractions_torch import rational_


@dataclass
class Problem:
    """One tensor of matrices with its parameters: one number per matrix, or a float64 tensor (B, 1) on the device."""

    name: str
    G: Tensor
    alpha: list[float] | Tensor
    damping: list[float] | Tensor
    out: Tensor | None


@dataclass
class Item:
    """Matrices of one problem that are solved together: a batch (B, m, n) and where its results go."""

    name: str
    G: Tensor
    alpha: list[float] | Tensor
    damping: list[float] | Tensor
    result: Tensor
    index: list[int]
    solver: str


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
        target = result.view(-1, *G.shape[-2:])
        wanted = default_tolerance(G.device.type, G.dtype) if tolerance is None else tolerance
        for key, index in _by_solver(problem, mode, solver, wanted).items():
            whole = len(index) == len(flat)
            item = Item(
                problem.name,
                flat if whole else flat[index],
                _select(problem.alpha, index),
                _select(problem.damping, index),
                target,
                index,
                solver,
            )
            groups[(*key, wanted, G.dtype == torch.float64, G.device)].append(item)
    for (chosen, *_, device), items in groups.items():
        if chosen in ("eigh", "svd") and _is_capturing(device):
            raise RuntimeError(
                f"{items[0].name}: solver {chosen!r} waits for the device, and a graph is being captured. Give alpha "
                "and damping as numbers that solver='rational' can take, or solve this matrix outside of the graph"
            )
    for (chosen, alpha, extent, _, wanted, _, device), items in groups.items():
        if chosen in ("eigh", "svd"):
            for item in items:
                _decompose(item, chosen, mode, wanted)
        elif device.type == "cpu":
            _compiled(items, mode, wanted)
        else:
            _batched(items, alpha, extent, mode, wanted)
    finished = []
    for problem, result in zip(problems, results):
        finished.append(result if problem.out is None or problem.out is result else problem.out.copy_(result))
    return finished


def _is_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _writable(out: Tensor, G: Tensor, sources: set[int]) -> bool:
    """Whether results can go straight into ``out`` while the matrices, in the storages ``sources``, are still read."""
    apart = out.untyped_storage().data_ptr() not in sources
    return apart and out.is_contiguous() and out.dtype == G.dtype


def _select(values: list[float] | Tensor, index: list[int]) -> list[float] | Tensor:
    if isinstance(values, Tensor):
        return values if len(index) == len(values) else values[index]
    return [values[i] for i in index]


def _by_solver(problem: Problem, mode: str, solver: str, tolerance: float) -> dict[tuple, list[int]]:
    """Matrices of a problem by (solver, α, extent, n); on a CPU the compiled loop takes any mixture of the last three.

    Raises:
        ValueError: ``solver`` was asked for by name and cannot hold the tolerance.
    """
    count, n = problem.G.shape[:-2].numel(), min(problem.G.shape[-2:])
    device, dtype = problem.G.device.type, problem.G.dtype
    if isinstance(problem.alpha, Tensor):
        return {("eigh" if solver == "auto" else solver, None, None, None): list(range(count))}
    found: dict[tuple, list[int]] = defaultdict(list)
    dampings = problem.damping if isinstance(problem.damping, list) else [None] * count
    for i, (a, d) in enumerate(zip(problem.alpha, dampings)):
        chosen = solver
        if solver not in ("eigh", "svd"):
            choice = choose_solver(a, d, mode, device=device, dtype=dtype, tolerance=tolerance, small_side=n)
            chosen = choice.solver
            if solver != "auto" and chosen == "eigh":
                raise ValueError(refusal(problem.name, solver, a, tolerance, choice.reason))
        if chosen in ("eigh", "svd"):
            found[chosen, None, None, None].append(i)
        elif device == "cpu":
            found["rational", None, None, None].append(i)
        else:
            extent = extent_of(a, d, mode, n) if d is not None else math.inf
            found["rational", a, rounded_reach(extent) if math.isfinite(extent) else extent, n].append(i)
    return found


def refusal(name: str, solver: str, alpha: float, tolerance: float, reason: str) -> str:
    """What is said where a solver asked for by name cannot hold the tolerance."""
    remedy = "use solver='auto' or 'svd', " if solver != "svd" else "use "
    return (
        f"{name}: solver={solver!r} cannot hold the relative error {tolerance:g} at alpha = {alpha:g}: {reason}; "
        f"{remedy}a larger tolerance or a larger damping"
    )


def _store(item: Item, found: Tensor) -> None:
    if len(item.index) == len(item.result):
        item.result.copy_(found)
    else:
        item.result[item.index] = found.to(item.result.dtype)


def _compiled(items: list[Item], mode: str, tolerance: float) -> None:
    """The compiled path: results are written in place where that is possible."""
    matrices, outs = [], []
    for item in items:
        work = item.G if item.G.dtype in (torch.float32, torch.float64) else item.G.float()
        matrices.append(work)
        whole = len(item.index) == len(item.result) and item.result.dtype == work.dtype
        outs.append(item.result if whole else torch.empty_like(work, memory_format=torch.contiguous_format))
    alphas = [float(a) for item in items for a in item.alpha]
    dampings = [float(d) for item in items for d in item.damping]
    undone = cpu.partial_fractions_(matrices, outs, alphas, dampings, mode, tolerance)
    for i, b in undone:
        item = items[i]
        if item.solver != "auto":
            reason = "float64 is not enough for its singular values, or more poles than an eigendecomposition is worth"
            raise ValueError(refusal(item.name, item.solver, float(item.alpha[b]), tolerance, reason))
        alpha, damping = [float(item.alpha[b])], [float(item.damping[b])]
        single = Item(item.name, matrices[i][b : b + 1], alpha, damping, outs[i][b : b + 1], [0], "auto")
        _decompose(single, "eigh", mode, tolerance)
    for item, out in zip(items, outs):
        if out is not item.result:
            _store(item, out)


def _decompose(item: Item, solver: str, mode: str, tolerance: float) -> None:
    """eigh or svd in float64; with ``auto``, svd where the estimated error of eigh exceeds the tolerance.

    Raises:
        ValueError: the estimate of the solver asked for, or of svd, exceeds the tolerance.
    """
    wide = item.G if item.G.shape[1] <= item.G.shape[2] else item.G.mT
    a, d = (
        v if isinstance(v, Tensor) else torch.tensor(v, dtype=torch.float64, device=wide.device).unsqueeze(-1)
        for v in (item.alpha, item.damping)
    )
    a, d = a.expand(len(wide), 1), d.expand(len(wide), 1)
    found, error = getattr(decompositions, solver)(wide, a, d, mode)
    left = (error > tolerance).nonzero().flatten()
    if item.solver == "auto" and solver == "eigh" and len(left):
        found[left], error = decompositions.svd(wide[left], a[left], d[left], mode)
        left = left[error > tolerance]
    if len(left):
        raise ValueError(
            refusal(
                item.name,
                "svd" if item.solver == "auto" else solver,
                float(a[left[0]]),
                tolerance,
                "its small singular values, which carry T(G), are lost in the rounding of float64",
            )
        )
    _store(item, found if wide is item.G else found.mT)


def _batched(items: list[Item], alpha: float, extent: float, mode: str, tolerance: float) -> None:
    """The torch path of accelerators: all matrices of one n, α and pole set."""
    items = sorted(items, key=lambda item: max(item.G.shape[1:]))
    outs = []
    for item in items:
        whole = len(item.index) == len(item.result)
        outs.append(item.result if whole else torch.empty_like(item.G, memory_format=torch.contiguous_format))
    wide = [item.G.shape[1] <= item.G.shape[2] for item in items]
    known = [item.damping for item in items]
    numbers = {d for own in known if isinstance(own, list) for d in own}
    damping: float | Tensor
    if len(numbers) == 1 and all(isinstance(own, list) for own in known):
        damping = numbers.pop()
    else:
        device = items[0].G.device
        damping = torch.cat(
            [constants(tuple(own), device) if isinstance(own, list) else own.flatten() for own in known]
        )
    rational_(
        [item.G if w else item.G.mT for item, w in zip(items, wide)],
        [out if w else out.mT for out, w in zip(outs, wide)],
        alpha,
        damping,
        mode,
        extent,
        tolerance,
    )
    for item, out in zip(items, outs):
        if out is not item.result:
            _store(item, out)
