"""Second moments of a layer's inputs and errors along pairs of directions, without forming a Kronecker factor."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_ext.ops.geometry import FLOATING, Geometry, IntOrTuple, check_one_device, prepare
from spectral_ext.reference import RayleighQuotients

__all__ = ["RayleighQuotients", "rayleigh_quotients"]

DEFAULT_SCRATCH_BYTES = 1 << 20
"""Bytes of scratch of each CPU thread: half an L2 cache of the common sizes."""


def rayleigh_quotients(
    x: Tensor,
    delta: Tensor,
    U: Tensor,
    V: Tensor,
    *,
    kernel_size: IntOrTuple | None = None,
    stride: IntOrTuple = 1,
    padding: IntOrTuple | str = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
    bias: bool = False,
    transposed: bool = False,
    output_padding: IntOrTuple = 0,
    padding_mode: str = "zeros",
    scratch_bytes: int = DEFAULT_SCRATCH_BYTES,
) -> RayleighQuotients:
    r"""u_kᵀ C_δ u_k, v_kᵀ C_A v_k, the sum of products and the Gauss–Newton form for K pairs (u_k, v_k) in one pass.

    With input patches a_bs (n numbers), per-sample errors d_bs (m numbers), B samples of S positions::

        output          Σ_bs (u_k·d_bs)² / B
        input           Σ_bs (v_k·a_bs)² / (B·S)
        sum_of_products Σ_bs (u_k·d_bs)² (v_k·a_bs)² / (B·S)        §6.4
        gauss_newton    Σ_b (Σ_s (u_k·d_bs)(v_k·a_bs))² / B         u_kᵀ G_b v_k squared, G_b the gradient of sample b

    Definition: :func:`spectral_ext.reference.rayleigh_quotients`. On CPU neither patches nor the N × K projections
    exist: extra memory is ``scratch_bytes`` per thread and a copy of U and V. On CUDA x and delta are read in place, in
    their own dtype, once per 64 directions, and the projections stay on chip but for few rows, where some MiB of them
    are written. The result does not depend on the number of threads, bit by bit. No gradient is recorded.

    Args:
        x: the layer's input. Linear layer: (B, …, n), its S positions are the product of the middle dimensions.
            Convolution: (B, C, *spatial) with one to three spatial dimensions, in any memory format.
        delta: per-sample errors at the layer's output (B times a hook's gradient under a mean loss): (B, …, m), or
            (B, M, *out).
        U: directions on the output side, (m, K) or (groups, m, K) with m = M / groups.
        V: directions on the input side, (n, K) or (groups, n, K); n counts one group's patch in the order of
            ``weight.flatten(1)`` (``weight.transpose(0, 1).flatten(1)`` if transposed), and the bias last.
        kernel_size: None for a linear layer. With ``stride``, ``padding``, ``dilation``, ``groups``, ``transposed``,
            ``output_padding`` and ``padding_mode`` as in :func:`spectral_ext.ops.input_factor`. Each group has
            directions of its own.
        bias: patches end with a 1.
        scratch_bytes: bytes of scratch for each CPU thread. A single position's patch may exceed it.

    Returns:
        Four float64 tensors on the device of x, (K,), or (groups, K) where groups > 1. Zeros if there is no sample.
        Projections are computed in float64 if x or delta is float64, otherwise in float32; sums are float64.

    Raises:
        TypeError: a dtype that is not float32, float64, bfloat16 or float16.
        ValueError: shapes, geometry or devices that do not fit; the message names the argument.
    """
    for name, tensor in (("x", x), ("delta", delta), ("U", U), ("V", V)):
        if not isinstance(tensor, Tensor) or tensor.dtype not in FLOATING:
            raise TypeError(f"{name} must be a float32, float64, bfloat16 or float16 tensor")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device} and x on {x.device}: move them to one device")
    if scratch_bytes < 0:
        raise ValueError(f"scratch_bytes must not be negative, and is {scratch_bytes}")
    x, geometry = prepare(
        x.detach(),
        kernel_size=kernel_size,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=bias,
        transposed=transposed,
        output_padding=output_padding,
        padding_mode=padding_mode,
    )
    delta = delta.detach()
    if geometry.kernel_size:
        _check_errors(x, delta, geometry)
        channels, outputs = x.shape[1], delta.shape[1]
    else:
        x, delta = _linear_operands(x, delta)
        channels, outputs = x.shape[2], delta.shape[2]
    compute = torch.float64 if torch.float64 in (x.dtype, delta.dtype) else torch.float32
    n, m = geometry.side(channels), outputs // groups
    U = _directions("U", U, groups, m, "the layer has {} outputs" + (" a group" if groups > 1 else ""))
    V = _directions("V", V, groups, n, "a patch has {} entries" + (" with the bias" if bias else ""))
    if U.shape[2] != V.shape[2]:
        raise ValueError(f"U has {U.shape[2]} directions and V {V.shape[2]}: they are pairs")
    result = torch.ops.spectral_ext.rayleigh_quotients(
        x, delta, U.detach().to(compute), V.detach().to(compute), *geometry.arguments, scratch_bytes
    )
    return RayleighQuotients(*(result[:, 0] if groups == 1 else result).unbind(0))


def _linear_operands(x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """(B, S, n) and (B, S, m)."""
    if x.dim() < 2 or delta.dim() < 2:
        raise ValueError(f"x and delta must be (B, …, features), not {tuple(x.shape)} and {tuple(delta.shape)}")
    if x.shape[:-1] != delta.shape[:-1]:
        raise ValueError(
            f"delta has leading dimensions {tuple(delta.shape[:-1])} and x {tuple(x.shape[:-1])}: they must be equal"
        )
    return (x.unsqueeze(1), delta.unsqueeze(1)) if x.dim() == 2 else (x.flatten(1, -2), delta.flatten(1, -2))


def _check_errors(x: Tensor, delta: Tensor, geometry: Geometry) -> None:
    if delta.dim() != x.dim() or delta.shape[0] != x.shape[0]:
        raise ValueError(f"delta has shape {tuple(delta.shape)}, x {tuple(x.shape)}: batch or dimensions differ")
    if delta.shape[1] % geometry.groups != 0:
        raise ValueError(f"groups={geometry.groups} does not divide the {delta.shape[1]} channels of delta")
    out = tuple(geometry.output_size(x.shape[2:]))
    if tuple(delta.shape[2:]) != out:
        raise ValueError(f"delta has spatial size {tuple(delta.shape[2:])}; x and the geometry give {out}")


def _directions(name: str, directions: Tensor, groups: int, size: int, where: str) -> Tensor:
    """(groups, size, K), or an error that says what was expected."""
    if directions.dim() == 2 and groups == 1:
        directions = directions.unsqueeze(0)
    if directions.dim() != 3 or directions.shape[0] != groups:
        expected = f"({size}, K)" if groups == 1 else f"({groups}, {size}, K): one set of directions a group"
        raise ValueError(f"{name} must be {expected}, not of shape {tuple(directions.shape)}")
    if directions.shape[1] != size:
        raise ValueError(f"{name} has {directions.shape[1]} rows; {where.format(size)}")
    return directions


@torch.library.register_fake("spectral_ext::rayleigh_quotients")
def _(x, delta, U, V, *arguments):  # type: ignore[no-untyped-def]
    check_one_device(x=x, delta=delta, U=U, V=V)
    return x.new_empty((4, U.shape[0], U.shape[2]), dtype=torch.float64)
