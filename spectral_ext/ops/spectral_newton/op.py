"""Spectral Newton: T(G) = U diag(σ/(σ^α + d)) Vᵀ for one matrix, a batch, or a list of mixed shapes (§7.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor

from spectral_ext.ops.spectral_newton import dispatch as solve
from spectral_ext.ops.spectral_newton.choose_solver import SOLVERS, SolverChoice, choose_solver, usable_solver
from spectral_ext.ops.spectral_newton.transfer_function import check_damping, check_exponent

__all__ = ["DAMPING_MODES", "SOLVERS", "SolverChoice", "choose_solver", "spectral_newton"]

DAMPING_MODES = ("absolute", "spectral", "rms")
Scalar = float | Tensor
Scalars = Scalar | Sequence[Scalar]


@overload
def spectral_newton(
    G: Tensor,
    alpha: Scalars = ...,
    damping: Scalars = ...,
    *,
    damping_mode: str = ...,
    solver: str = ...,
    tolerance: float | None = ...,
    out: Tensor | None = ...,
) -> Tensor: ...
@overload
def spectral_newton(
    G: Sequence[Tensor],
    alpha: Scalars = ...,
    damping: Scalars = ...,
    *,
    damping_mode: str = ...,
    solver: str = ...,
    tolerance: float | None = ...,
    out: Sequence[Tensor] | None = ...,
) -> list[Tensor]: ...
@torch.no_grad()
def spectral_newton(
    G: Tensor | Sequence[Tensor],
    alpha: Scalars = 2.0,
    damping: Scalars = 0.1,
    *,
    damping_mode: str = "absolute",
    solver: str = "auto",
    tolerance: float | None = None,
    out: Tensor | Sequence[Tensor] | None = None,
) -> Tensor | list[Tensor]:
    """T(G) = U diag(σ_k/(σ_k^α + d)) Vᵀ for G = U diag(σ) Vᵀ.

    Args:
        G: one matrix (m, n), a batch (…, m, n), or a list of such tensors of any shapes. float16, bfloat16, float32 or
            float64; any strides. Computed in float32 or more, returned in the dtype of G.
        alpha: curvature exponent, 0 < α ≤ 6: a number, one value per matrix (a tensor or sequence that broadcasts to
            the batch dimensions of G), or for a list one entry per tensor.
        damping: d > 0, as ``alpha``.
        damping_mode: the unit of d. ``absolute``: d itself. ``spectral``: d·σ_max^α. ``rms``: d·(mean σ²)^{α/2}, the
            mean over the min(m, n) singular values, that is (‖G‖_F²/min(m, n))^{α/2}.
        solver: ``auto`` (see `choose_solver`); ``rational``, partial fractions; ``cholesky``, which is that with one
            inverse (α = 2, 4); ``eigh`` or ``svd``, in float64.
        tolerance: the relative error wanted, ‖T̂ − T(G)‖_F / ‖T(G)‖_F, beside the rounding of the result to the dtype of
            G; by default 1e-10 for float64, else 1e-3 on accelerators, on the CPU 1e-5 for float32 and 1e-4 for 16
            bits. On the CPU each matrix is checked against it: what float32 cannot do is done in float64, and what
            partial fractions cannot do, by ``eigh`` or ``svd``. On an accelerator nothing waits for the device: float64
            is chosen by what the host knows, d and the shape, so always in the mode ``absolute``. There, where
            ‖G‖_F²/d^{2/α} exceeds what the poles serve (1e14, less for small α and tolerances), a matrix gets
            G/(‖G‖_F^α + d), and float64 matrices need 1e-150 < ‖G‖_F < 1e150.
        out: where to write, of the shape of G and any floating dtype; a list for a list.

    Returns:
        T(G), of the shape of G; a list for a list. Zero matrices give zero. A matrix with a NaN or infinity gives NaN,
        and does not touch the others. No gradient is recorded. An α or d in a tensor on an accelerator is not checked,
        so as not to wait for it; a bad one gives NaN.

    Raises:
        ValueError: α outside (0, 6], d not positive and finite, an unknown mode or solver, fewer than two dimensions,
            a solver asked for by name that cannot do this α, or cannot hold the tolerance; ``auto`` where not even
            ``svd`` in float64 holds it.
        TypeError: G or ``out`` complex, sparse or integer, or not a tensor.
    """
    if damping_mode not in DAMPING_MODES:
        raise ValueError(f"damping_mode must be one of {DAMPING_MODES}, not {damping_mode!r}")
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {SOLVERS}, not {solver!r}")
    if tolerance is not None and not 0.0 < tolerance < 1.0:
        raise ValueError(f"tolerance must lie in (0, 1), not {tolerance!r}")
    if isinstance(G, Tensor):
        if out is not None and not isinstance(out, Tensor):
            raise TypeError("out must be a tensor where G is one")
        names, tensors, outs = ["G"], [G], [out]
        alphas, dampings = [alpha], [damping]
    else:
        tensors, names = list(G), [f"G[{i}]" for i in range(len(G))]
        outs = [None] * len(tensors) if out is None else list(out)  # type: ignore[list-item]
        if len(outs) != len(tensors):
            raise ValueError(f"out has {len(outs)} tensors, G has {len(tensors)}")
        alphas, dampings = _per_tensor(alpha, len(tensors), "alpha"), _per_tensor(damping, len(tensors), "damping")
    problems = []
    for name, g, a, d, o in zip(names, tensors, alphas, dampings, outs):
        _check_tensor(g, name, 2)
        if o is not None:
            _check_tensor(o, name.replace("G", "out", 1), 2)
            if o.shape != g.shape:
                raise ValueError(f"out has shape {tuple(o.shape)}, {name} has {tuple(g.shape)}")
        problems.append(solve.Problem(name, g, _values(a, g, "alpha", name), _values(d, g, "damping", name), o))
    for problem in problems:
        for a in problem.alpha if isinstance(problem.alpha, list) else [float("nan")]:
            reason = usable_solver(solver, a)
            if reason:
                raise ValueError(f"{problem.name}: {reason}")
    if torch.compiler.is_compiling() and all(
        isinstance(p.alpha, list) and isinstance(p.damping, list) for p in problems
    ):
        results = _compiled_call(problems, damping_mode, solver, tolerance)
    else:
        results = solve.solve(problems, damping_mode, solver, tolerance)
    return results[0] if isinstance(G, Tensor) else results


def _per_tensor(value: Scalars, count: int, name: str) -> list[Any]:
    """One entry per tensor of a list: a number or 0-d tensor for all, or a sequence of ``count``."""
    if isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.ndim == 0):
        return [value] * count
    entries = list(value)  # type: ignore[arg-type]
    if len(entries) != count:
        raise ValueError(f"{name} has {len(entries)} entries, G has {count} tensors")
    return entries


def _check_tensor(x: Any, name: str, dimensions: int) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(x).__name__}")
    if x.layout is not torch.strided:
        raise TypeError(f"{name} must be dense, not {x.layout}: call {name}.to_dense()")
    if not x.dtype.is_floating_point or x.dtype.itemsize == 1:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, not {x.dtype}")
    if x.ndim < dimensions:
        raise ValueError(f"{name} must have at least two dimensions, not shape {tuple(x.shape)}")


def _values(value: Scalars, G: Tensor, name: str, owner: str) -> list[float] | Tensor:
    """A parameter as checked numbers, one per matrix of G; a tensor on an accelerator stays there, float64 (B, 1)."""
    batch = G.shape[:-2]
    count = batch.numel()
    check = check_exponent if name == "alpha" else check_damping
    if isinstance(value, (int, float)):
        check(float(value), name)
        return [float(value)] * count
    if isinstance(value, str):
        raise TypeError(f"{name} must be a number, tensor or sequence of numbers, not {value!r}")
    if not isinstance(value, Tensor):
        value = torch.tensor([float(v) for v in value], dtype=torch.float64)
    try:
        spread = value.to(torch.float64).expand(batch).reshape(count)
    except RuntimeError:
        raise ValueError(
            f"{name} of shape {tuple(value.shape)} does not broadcast to the batch {tuple(batch)} of {owner}"
        ) from None
    if value.device.type != "cpu":
        return spread.to(G.device).unsqueeze(-1)
    numbers = spread.tolist()
    for number in set(numbers):
        check(number, name)
    return numbers


def _compiled_call(problems: list[solve.Problem], mode: str, solver: str, tolerance: float | None) -> list[Tensor]:
    """Through the registered op: one node of a compiled graph."""
    alphas = [a for problem in problems for a in problem.alpha]
    dampings = [d for problem in problems for d in problem.damping]
    found = torch.ops.spectral_ext.spectral_newton([p.G for p in problems], alphas, dampings, mode, solver, tolerance)
    return [y if p.out is None else p.out.copy_(y) for p, y in zip(problems, found)]


@torch.library.custom_op("spectral_ext::spectral_newton", mutates_args=())
def spectral_newton_op(
    G: list[Tensor], alpha: list[float], damping: list[float], damping_mode: str, solver: str, tolerance: float | None
) -> list[Tensor]:
    """The op behind `spectral_newton`: tensors (…, m, n), α and d flat, one per matrix in the order of the list."""
    problems, start = [], 0
    for i, g in enumerate(G):
        end = start + g.shape[:-2].numel()
        problems.append(solve.Problem(f"G[{i}]", g, alpha[start:end], damping[start:end], None))
        start = end
    return solve.solve(problems, damping_mode, solver, tolerance)


@spectral_newton_op.register_fake
def _(G, alpha, damping, damping_mode, solver, tolerance):  # type: ignore[no-untyped-def]
    return [torch.empty_like(g, memory_format=torch.contiguous_format) for g in G]
