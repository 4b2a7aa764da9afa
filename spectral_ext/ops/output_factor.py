"""The output Kronecker factor C_δ of Linear and convolution layers."""

from __future__ import annotations

from torch import Tensor

from spectral_ext.ops.geometry import FLOATING, Geometry, accumulator_dtype, check_finite, check_out
from spectral_ext.ops.input_factor import run
from spectral_ext.ops.scales import check_scale, output_scale


def output_factor(
    delta: Tensor,
    *,
    convolution: bool = False,
    groups: int = 1,
    reduction: str = "expand",
    scale: str = "curvlinops",
    num_classes: int | None = None,
    out: Tensor | None = None,
    beta: float = 0.0,
    alpha: float = 1.0,
    finite: bool = False,
) -> Tensor:
    """C_δ = Σ_bs d_bs d_bsᵀ / B: the second moment of per-sample errors at a layer's output.

    Args:
        delta: (B, …, m) of a linear layer, (B, m, *spatial) of a convolution: B times what a hook sees under a mean
            loss. float32, float64, bfloat16 or float16; never modified.
        convolution: whether dimension 1 holds the m channels.
        groups: one factor for each group of m / groups channels (convolutions).
        reduction: ``"expand"``: every position is a row; ``"reduce"``: d is summed over positions first.
        scale: see :mod:`spectral_ext.ops.scales`.
        out, beta, alpha: as in :func:`spectral_ext.ops.input_factor`: out ← beta · out + alpha · C_δ.
        finite: raise for errors that are not finite: one more pass.

    Returns:
        (m, m), or (groups, m / groups, m / groups) where groups > 1; float64 for float64 delta, else float32.

    Raises:
        TypeError, ValueError: delta, groups, ``out`` or names that do not fit.
    """
    check_scale(scale, reduction, num_classes)
    if not isinstance(delta, Tensor) or delta.dtype not in FLOATING:
        raise TypeError("delta must be a float32, float64, bfloat16 or float16 tensor")
    if convolution and not 3 <= delta.dim() <= 5:
        raise ValueError(f"delta of a convolution must be (B, m, *spatial), not {tuple(delta.shape)}")
    if delta.dim() < 1 or (not convolution and groups != 1):
        raise ValueError("delta of a linear layer must be (B, …, m), and groups 1")
    if groups < 1 or (convolution and delta.shape[1] % groups):
        raise ValueError(f"groups={groups} does not divide the {delta.shape[1]} channels of delta")
    if finite:
        check_finite(delta, "delta")
    samples = delta.shape[0] if delta.dim() > 1 else 1
    positions = 1
    for size in delta.shape[2:] if convolution else delta.shape[1:-1]:
        positions *= size
    if reduction == "reduce" or scale == "backpack":
        delta = summed(delta, convolution, positions)
        positions = min(positions, 1)
        delta = delta if positions else delta[:0]
    factor = output_scale(scale, samples, positions, num_classes) * alpha
    if not convolution:
        return run(delta.reshape(samples * positions, delta.shape[-1]), Geometry(), "unfold", out, beta, factor)
    if positions == 0 or delta.numel() == 0:
        return empty(delta, groups, out, beta)
    dims = delta.dim() - 2
    one, zero = (1,) * dims, (0,) * dims
    return run(delta, Geometry(one, one, zero, one, groups, False, False, zero), "unfold", out, beta, factor)


def summed(delta: Tensor, convolution: bool, positions: int) -> Tensor:
    """Σ_s d_bs, in the layout of delta with one position."""
    wide = delta.to(accumulator_dtype(delta.dtype))
    if convolution:
        return wide.flatten(2).sum(2, keepdim=True)
    return wide.reshape(delta.shape[0], positions, delta.shape[-1]).sum(1) if delta.dim() > 1 else wide.unsqueeze(0)


def empty(delta: Tensor, groups: int, out: Tensor | None, beta: float) -> Tensor:
    m = delta.shape[1] // groups
    if out is None:
        zero = delta.new_zeros(groups, m, m, dtype=accumulator_dtype(delta.dtype))
        return zero if groups > 1 else zero[0]
    check_out(out, (groups, m, m) if groups > 1 or out.dim() == 3 else (m, m), delta)
    return out.mul_(beta) if beta else out.zero_()
