"""Spectral Newton: T(G) = U diag(σ/(σ^α + d)) Vᵀ for one matrix, a batch, or a list of mixed shapes (§7.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor

from spectral_ext.ops import spectral_newton_solvers as solvers
from spectral_ext.transfer import check_damping, check_exponent

DAMPING_MODES = ("absolute", "spectral", "mean")
SOLVERS = ("auto", "cholesky", "rational", "polynomial", "iterates", "eigh", "svd")
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
        alpha: curvature exponent, 0 < α ≤ 6: a number, one value a matrix (a tensor or sequence that broadcasts to the
            batch dimensions of G), or for a list one entry a tensor.
        damping: d > 0, as ``alpha``.
        damping_mode: the unit of d. ``absolute``: d itself. ``spectral``: d·σ_max^α. ``mean``: d times the mean of σ_k^α
            over the min(m, n) singular values.
        solver: ``auto``, or one of ``cholesky``, ``rational``, ``polynomial``, ``iterates``, ``eigh``, ``svd``.
        tolerance: the relative error wanted, ‖T̂ − T(G)‖_F / ‖T(G)‖_F.
        out: where to write, of the shape of G and any floating dtype; a list for a list.

    Returns:
        T(G), of the shape of G; a list for a list. Zero matrices give zero. A matrix with a NaN or infinity gives NaN, and
        does not touch the others. No gradient is recorded.

    Raises:
        ValueError: α outside (0, 6], d not positive and finite, an unknown mode or solver, fewer than two dimensions.
        TypeError: G or ``out`` complex, sparse or integer, or not a tensor.
    """
    if damping_mode not in DAMPING_MODES:
        raise ValueError(f"damping_mode must be one of {DAMPING_MODES}, not {damping_mode!r}")
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {SOLVERS}, not {solver!r}")
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"tolerance must be positive, not {tolerance!r}")
    if isinstance(G, Tensor):
        if out is not None and not isinstance(out, Tensor):
            raise TypeError("out must be a tensor where G is one")
        return _single(G, alpha, damping, damping_mode, solver, tolerance, out, "G")
    count = len(G)
    alphas, dampings = _per_tensor(alpha, count, "alpha"), _per_tensor(damping, count, "damping")
    outs: Sequence[Tensor | None] = [None] * count if out is None else list(out)
    if len(outs) != count:
        raise ValueError(f"out has {len(outs)} tensors, G has {count}")
    return [
        _single(g, a, d, damping_mode, solver, tolerance, o, f"G[{i}]")
        for i, (g, a, d, o) in enumerate(zip(G, alphas, dampings, outs))
    ]


def _per_tensor(value: Scalars, count: int, name: str) -> list[Any]:
    """One entry a tensor of a list: a number or 0-d tensor for all, or a sequence of ``count``."""
    if isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.ndim == 0):
        return [value] * count
    entries = list(value)  # type: ignore[arg-type]
    if len(entries) != count:
        raise ValueError(f"{name} has {len(entries)} entries, G has {count} tensors")
    return entries


def _check_matrix(G: Any, name: str) -> None:
    if not isinstance(G, Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(G).__name__}")
    if G.layout is not torch.strided:
        raise TypeError(f"{name} must be dense, not {G.layout}: call {name}.to_dense()")
    if not G.dtype.is_floating_point or G.dtype.itemsize == 1:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, not {G.dtype}")
    if G.ndim < 2:
        raise ValueError(f"{name} must have at least two dimensions, not shape {tuple(G.shape)}")


def _parameter(value: Scalars, batch: torch.Size, device: torch.device, name: str) -> Tensor:
    """A parameter as float64 (B, 1). Values are checked unless they already live on an accelerator."""
    if not isinstance(value, Tensor):
        entries = list(value) if isinstance(value, Sequence) else [value]
        value = torch.stack([torch.as_tensor(v, dtype=torch.float64, device=device) for v in entries])
        value = value if len(entries) > 1 else value[0]
    if value.device.type == "cpu":
        check = check_exponent if name == "alpha" else check_damping
        for v in value.flatten().tolist():
            check(float(v), name)
    try:
        return value.to(device, torch.float64).expand(batch).reshape(-1, 1)
    except RuntimeError:
        shape = tuple(value.shape)
        raise ValueError(f"{name} of shape {shape} does not broadcast to the batch {tuple(batch)} of G") from None


def _single(
    G: Tensor,
    alpha: Scalars,
    damping: Scalars,
    mode: str,
    solver: str,
    tolerance: float | None,
    out: Tensor | None,
    name: str,
) -> Tensor:
    _check_matrix(G, name)
    a, d = _parameter(alpha, G.shape[:-2], G.device, "alpha"), _parameter(damping, G.shape[:-2], G.device, "damping")
    if G.numel() == 0:
        result = torch.zeros_like(G)
    else:
        wide = G.shape[-2] <= G.shape[-1]
        work = (G if wide else G.mT).reshape(-1, *sorted(G.shape[-2:]))
        work = work if work.dtype == torch.float64 else work.float()
        result = (solvers.svd if solver == "svd" else solvers.eigh)(work, a, d, mode)
        result = (result if wide else result.mT).reshape(G.shape).to(G.dtype)
    return result if out is None else out.copy_(result)
