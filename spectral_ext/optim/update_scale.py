"""The size of an update: the factor of T(G) with which one learning rate suits all layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from spectral_ext.ops.spectral_newton import transfer_maximum

UpdateScale = str | Callable[[Tensor], Tensor | float] | None
UPDATE_SCALES = (None, "spectral", "match_rms_adamw")
ADAMW_RMS = 0.2
POWER_STEPS = 8


def largest_singular_value(G: Tensor, steps: int = POWER_STEPS) -> Tensor:
    """A lower bound of σ_max of (…, m, n), shape (…, 1, 1): power iteration from the longest row."""
    rows = torch.linalg.vector_norm(G, dim=-1, keepdim=True)
    longest = rows.argmax(-2, keepdim=True).expand(*G.shape[:-2], 1, G.shape[-1])
    v = G.gather(-2, longest).mT
    norm = rows.amax(-2, keepdim=True)
    for _ in range(steps):
        v = v / torch.linalg.vector_norm(v, dim=-2, keepdim=True).clamp(min=torch.finfo(G.dtype).tiny)
        u = G @ v
        norm = torch.maximum(norm, torch.linalg.vector_norm(u, dim=-2, keepdim=True))
        v = G.mT @ u
    return norm


def transfer_bound(G: Tensor, alpha: float, damping: float, mode: str) -> Tensor | float:
    """An upper bound of max_k T(σ_k; α, d) for G (…, m, n): T at σ* = (d/(α−1))^{1/α}, or at σ_max where that comes
    first.

    ``absolute`` with α > 1: the closed form σ*(α−1)/(αd), 1/(2√d) at α = 2, which does not look at G.
    σ_max comes from eight power steps, which fall up to 5 % short of it; for α < 1, T may exceed the bound by 3 %.
    ``spectral``: d·σ_max^α. ``rms``: d·s^{α/2} with s = ‖G‖_F²/min(m, n).
    """
    if mode == "absolute" and alpha > 1:
        return transfer_maximum(alpha, damping)[1]
    G = G.to(torch.promote_types(G.dtype, torch.float32))
    top = largest_singular_value(G)
    if mode == "absolute":
        d: Tensor = torch.full_like(top, damping)
    elif mode == "spectral":
        d = damping * top**alpha
    else:
        square = torch.linalg.vector_norm(G, dim=(-2, -1), keepdim=True).square() / min(G.shape[-2:])
        d = damping * square ** (alpha / 2)
    at = torch.minimum(top, (d / (alpha - 1)) ** (1 / alpha)) if alpha > 1 else top
    return at / (at**alpha + d)


def to_unit_scale(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Each matrix of (…, m, n) times a power of two that brings its largest element to [1, 2); float16 as float32.

    Where d is relative and the update's size is fixed, c·T(G) does not depend on the scale of G, but T(G) itself goes
    as its power 1 − α: past float16 at elements of 1e-5, past float32 where momentum without gradient has decayed.
    """
    if not matrices:
        return []
    whole = [m.float() if m.dtype == torch.float16 else m for m in matrices]
    if all(m.dim() == 2 and m.numel() for m in whole):
        peaks = list(torch._foreach_norm(whole, math.inf))
    else:
        peaks = [
            torch.linalg.vector_norm(m, math.inf, (-2, -1), keepdim=True) if m.numel() else m.new_ones(())
            for m in whole
        ]
    flat = torch.cat([peak.reshape(-1) for peak in peaks])
    # 2^126 is finite in all these dtypes and lifts the smallest denormal of float32 to 1e-7.
    powers = torch.exp2(-flat.to(torch.promote_types(flat.dtype, torch.float32)).log2().floor().clamp(min=-126))
    scales = [power.view(peak.shape) for power, peak in zip(powers.split([p.numel() for p in peaks]), peaks)]
    return list(torch._foreach_mul(whole, [scale.to(m.dtype) for scale, m in zip(scales, whole)]))


def _inverse(value: Tensor | float, factor: float) -> Tensor | float:
    """factor/value, zero where value is zero or its inverse overflows."""
    if not isinstance(value, Tensor):
        return factor / value
    inverse = factor / value
    return torch.where(inverse.isfinite(), inverse, torch.zeros_like(inverse))


def _of_matrices(factor: Tensor | float, update: Tensor) -> Tensor | float:
    """A callable's factor, refused where it would spread over rows or columns."""
    if isinstance(factor, Tensor) and factor.dim() and factor.shape[-2:] != (1, 1):
        raise ValueError(
            f"update_scale returned shape {tuple(factor.shape)} for updates of shape {tuple(update.shape)}: return a "
            "number or one factor a matrix, (…, 1, 1), as norms with keepdim=True are"
        )
    return factor


def scale_factors(
    updates: Sequence[Tensor],
    gradients: Sequence[Tensor],
    alphas: Sequence[float],
    dampings: Sequence[float],
    modes: Sequence[str],
    update_scale: UpdateScale,
) -> list[Tensor | float]:
    """The factor of each update T(G), (…, m, n): a number, or a tensor of shape () or (…, 1, 1).

    ``None``: 1. ``match_rms_adamw``: the root mean square of each matrix becomes 0.2, that of AdamW's updates, so that
    a learning rate of AdamW can be kept: 0.2·√(mn)/‖T(G)‖_F. ``spectral``: √max(1, m/n)/max T, so that the spectral
    norm is at most √max(1, m/n), Muon's, by the bound of ``transfer_bound``. A callable gets T(G) and returns its
    factor; ValueError for another shape. Zero updates stay zero.
    """
    if update_scale is None:
        return [1.0] * len(updates)
    if callable(update_scale):
        return [_of_matrices(update_scale(update), update) for update in updates]
    if update_scale == "spectral":
        return [
            _inverse(transfer_bound(G, alpha, damping, mode), max(1.0, G.shape[-2] / G.shape[-1]) ** 0.5)
            for G, alpha, damping, mode in zip(gradients, alphas, dampings, modes)
        ]
    if all(update.dim() == 2 for update in updates):
        norms = list(torch._foreach_norm(list(updates)))
    else:
        norms = [torch.linalg.vector_norm(update, dim=(-2, -1), keepdim=True) for update in updates]
    sizes = [ADAMW_RMS * (update.shape[-2] * update.shape[-1]) ** 0.5 for update in updates]
    return [_inverse(norm, size) for norm, size in zip(norms, sizes)]
