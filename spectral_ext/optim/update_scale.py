"""The size of an update: the factor of T(D) with which one learning rate suits all layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

UpdateScale = str | Callable[[Tensor], Tensor | float] | None
UPDATE_SCALES = (None, "spectral", "match_rms_adamw")
ADAMW_RMS = 0.2
POWER_STEPS = 8
NEAR_ONE = 1e5
"""Root mean squares between 1/NEAR_ONE and NEAR_ONE: T and its norm stay in the range of float32 for every α."""


def largest_singular_value(G: Tensor, steps: int = POWER_STEPS) -> Tensor:
    """A lower bound of σ_max of (…, m, n), shape (…, 1, 1), mostly within 5 %: power iteration from the longest row."""
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


def matrix_norms(matrices: Sequence[Tensor]) -> list[Tensor]:
    """‖·‖_F of each matrix of (…, m, n): () for one matrix, (…, 1, 1) for a batch."""
    if all(matrix.dim() == 2 for matrix in matrices):
        return list(torch._foreach_norm(list(matrices)))
    return [torch.linalg.vector_norm(matrix, dim=(-2, -1), keepdim=True) for matrix in matrices]


def to_unit_scale(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Each matrix of (…, m, n) times a power of two that brings its largest element to [1, 2).

    Where d is relative and the update's size is fixed, c·T(D) does not depend on the scale of D, but T(D) itself goes
    as its power 1 − α: past the range of float32 where momentum without gradient has decayed. On a host, matrices of
    ordinary scale are left as they are; elsewhere a look would wait for the device.
    """
    result = list(matrices)
    far = []
    for i, (matrix, norm) in enumerate(zip(matrices, matrix_norms(matrices) if matrices else [])):
        rms = norm / max(1, matrix.shape[-2] * matrix.shape[-1]) ** 0.5
        if matrix.numel() and (rms.device.type != "cpu" or not ((rms > 1 / NEAR_ONE) & (rms < NEAR_ONE)).all()):
            far.append(i)
    for i in far:
        peak = torch.linalg.vector_norm(matrices[i], math.inf, (-2, -1), keepdim=True)
        # 2^126 is finite in float32 and float64 and lifts the smallest denormal of float32 to 1e-7.
        result[i] = matrices[i] * torch.exp2(-peak.log2().floor().clamp(min=-126))
    return result


def transfer_bound(D: Tensor, norm: Tensor, alpha: float, damping: float, mode: str) -> Tensor:
    """An upper bound of max_k T(σ_k; α, d) for D (…, m, n) with ‖D‖_F = ``norm``, of the shape of ``norm``.

    For α > 1, T is largest at σ* = (d/(α−1))^{1/α}, and no σ is above ‖D‖_F. ``spectral`` damping, d·σ_max^α, and
    α < 1, where T is largest at σ_max, take power iteration: it falls a little short of σ_max, which makes the bound
    larger for α > 1, and up to 3 % too small for α < 1.
    """
    reach = norm if alpha >= 1 and mode != "spectral" else largest_singular_value(D).view(norm.shape)
    reach = reach.double()
    if mode == "absolute":
        d: Tensor | float = damping
    elif mode == "spectral":
        d = damping * reach**alpha
    else:
        d = damping * (norm.double().square() / min(D.shape[-2:])) ** (alpha / 2)
    at = torch.clamp(reach, max=(d / (alpha - 1)) ** (1 / alpha)) if alpha > 1 else reach
    return at / (at**alpha + d)


def _of_matrices(factor: Tensor | float, update: Tensor) -> Tensor | float:
    """A callable's factor, refused where it would spread over rows or columns."""
    if isinstance(factor, Tensor) and factor.dim() and factor.shape[-2:] != (1, 1):
        raise ValueError(
            f"update_scale returned shape {tuple(factor.shape)} for updates of shape {tuple(update.shape)}: return a "
            "number or one factor per matrix, (…, 1, 1), as norms with keepdim=True are"
        )
    return factor


def scale_factors(
    updates: Sequence[Tensor],
    directions: Sequence[Tensor],
    transfers: Sequence[tuple[float, float, str] | None],
    update_scale: UpdateScale,
) -> list[Tensor | float]:
    """The factor of each update T(D), (…, m, n): a number, or a tensor of shape () or (…, 1, 1).

    ``None``: 1. ``match_rms_adamw``: the spectral norm of the update becomes 0.2·√max(m, n), that of Muon's setting of
    this name. An orthogonal matrix of that norm has root mean square 0.2, as AdamW's updates have; T is not flat, so
    its root mean square is lower. ``spectral``: √max(1, m/n), Muon's other setting. A callable gets T(D) and returns
    its factor; ValueError for another shape. Zero updates stay zero.

    The spectral norm is taken as min(max T, ‖T(D)‖_F), an upper bound in closed form that equals it where a singular
    value lies near the maximum of T, and for one singular value alone. ``transfers``: (α, d, mode) of each matrix; None
    for a map whose maximum is not known, which takes power iteration instead.
    """
    if update_scale is None:
        return [1.0] * len(updates)
    if callable(update_scale):
        return [_of_matrices(update_scale(update), update) for update in updates]
    factors: list[Tensor | float] = []
    norms = zip(matrix_norms(directions), matrix_norms(updates))
    for update, D, (norm, total), transfer in zip(updates, directions, norms, transfers):
        m, n = update.shape[-2:]
        size = ADAMW_RMS * max(m, n) ** 0.5 if update_scale == "match_rms_adamw" else max(1.0, m / max(1, n)) ** 0.5
        top = total.double()
        if update.numel():
            bound = transfer_bound(D, norm, *transfer) if transfer else largest_singular_value(update).view(top.shape)
            top = torch.minimum(top, bound)
        factor = (size / top).to(update.dtype)
        factors.append(torch.where(factor.isfinite(), factor, torch.zeros_like(factor)))
    return factors
