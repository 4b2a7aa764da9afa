"""Second moments of a layer's inputs and errors along pairs of directions, without forming a Kronecker factor."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_ext._extension import compiled as _compiled  # registers torch.ops.spectral_ext
from spectral_ext.reference import IntOrTuple, RayleighQuotients, as_tuple

__all__ = ["RayleighQuotients", "rayleigh_quotients"]

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
DEFAULT_MEMORY_BUDGET = 1 << 20
"""Bytes of scratch a CPU thread works in: half an L2 cache of the common sizes."""


def rayleigh_quotients(
    x: Tensor,
    delta: Tensor,
    U: Tensor,
    V: Tensor,
    *,
    kernel_size: IntOrTuple | None = None,
    stride: IntOrTuple = 1,
    padding: IntOrTuple = 0,
    dilation: IntOrTuple = 1,
    output_padding: IntOrTuple = 0,
    transposed: bool = False,
    groups: int = 1,
    bias: bool = False,
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
) -> RayleighQuotients:
    r"""u_kᵀ C_δ u_k, v_kᵀ C_A v_k, the sum of products and the Gauss–Newton form for K pairs (u_k, v_k) in one pass.

    With input patches a_bs (n numbers), per-sample errors d_bs (m numbers), B samples of S positions::

        output          Σ_bs (u_k·d_bs)² / B
        input           Σ_bs (v_k·a_bs)² / (B·S)
        sum_of_products Σ_bs (u_k·d_bs)² (v_k·a_bs)² / (B·S)        §6.4
        gauss_newton    Σ_b (Σ_s (u_k·d_bs)(v_k·a_bs))² / B         u_kᵀ G_b v_k squared, G_b the gradient of sample b

    Definition: :func:`spectral_ext.reference.rayleigh_quotients`. On CPU neither patches nor the N × K projections
    exist: extra memory is ``memory_budget`` a thread and a copy of U and V. The result does not depend on the number
    of threads, bit by bit. No gradient is recorded.

    Args:
        x: the layer's input. Linear layer: (B, …, n), its S positions are the product of the middle dimensions.
            Convolution: (B, C, *spatial) with one to three spatial dimensions, in any memory format. Zero padding;
            for another padding mode pad x first.
        delta: per-sample errors at the layer's output (B times a hook's gradient under a mean loss): (B, …, m), or
            (B, M, *out).
        U: directions on the output side, (m, K) or (groups, m, K) with m = M / groups.
        V: directions on the input side, (n, K) or (groups, n, K); n counts one group's patch in the order of
            ``weight.flatten(1)``, and the bias, last, if there is one.
        kernel_size: of a convolution; None says linear layer.
        stride, padding, dilation: of the convolution.
        output_padding, transposed: a transposed convolution; the patch of output position y holds, for channel c and tap i,
            the input at h with h·stride = y + padding − i·dilation, or 0.
        groups: of the convolution. Each group has directions of its own.
        bias: patches end with a 1.
        memory_budget: bytes of scratch for each CPU thread. A single position's patch may exceed it.

    Returns:
        Four float64 tensors on the device of x, (K,), or (groups, K) where groups > 1. Zeros if there is no sample.
        Projections are computed in float64 if x or delta is float64, otherwise in float32; sums are float64.

    Raises:
        TypeError: a dtype that is not float32, float64, bfloat16 or float16.
        ValueError: shapes, geometry or devices that do not fit; the message names the argument.
    """
    for name, tensor in (("x", x), ("delta", delta), ("U", U), ("V", V)):
        if tensor.dtype not in FLOATING:
            raise TypeError(f"{name} has dtype {tensor.dtype}; convert it to float32, float64, bfloat16 or float16")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device} and x on {x.device}: move them to one device")
    if groups < 1:
        raise ValueError(f"groups must be at least 1, not {groups}")
    if kernel_size is None:
        geometry: list[list[int]] = [[], [], [], [], []]
        x, delta, n = _linear_operands(x, delta, groups, transposed)
    else:
        dims = x.dim() - 2
        if not 1 <= dims <= 3:
            raise ValueError(f"x must be (B, C, *spatial) with 1 to 3 spatial dimensions, not of shape {tuple(x.shape)}")
        geometry = [
            _sizes(name, value, dims, least)
            for name, value, least in (
                ("kernel_size", kernel_size, 1),
                ("stride", stride, 1),
                ("padding", padding, 0),
                ("dilation", dilation, 1),
                ("output_padding", output_padding, 0),
            )
        ]
        n = _check_convolution(x, delta, geometry, groups, transposed)
    m = delta.shape[-1 if kernel_size is None else 1] // groups
    compute = torch.float64 if torch.float64 in (x.dtype, delta.dtype) else torch.float32
    U = _directions("U", U, groups, m, "the layer has {} outputs" + (" a group" if groups > 1 else "")).to(compute)
    V = _directions("V", V, groups, n + bias, "a patch has {} entries" + (" with the bias" if bias else "")).to(compute)
    if U.shape[2] != V.shape[2]:
        raise ValueError(f"U has {U.shape[2]} directions and V {V.shape[2]}: they are pairs")
    if memory_budget < 0:
        raise ValueError(f"memory_budget must not be negative, and is {memory_budget}")
    result = torch.ops.spectral_ext.rayleigh_quotients(
        x.detach(), delta.detach(), U.detach(), V.detach(), *geometry, transposed, groups, bias, memory_budget
    )
    return RayleighQuotients(*(result[:, 0] if groups == 1 else result).unbind(0))


def _linear_operands(x: Tensor, delta: Tensor, groups: int, transposed: bool) -> tuple[Tensor, Tensor, int]:
    """(B, S, n) and (B, S, m) of a linear layer, and n."""
    if groups != 1 or transposed:
        raise ValueError("groups and transposed belong to a convolution: pass its kernel_size")
    if x.dim() < 2 or delta.dim() < 2:
        raise ValueError(f"x and delta must be (B, …, features), not {tuple(x.shape)} and {tuple(delta.shape)}")
    if x.shape[:-1] != delta.shape[:-1]:
        raise ValueError(
            f"delta has leading dimensions {tuple(delta.shape[:-1])} and x {tuple(x.shape[:-1])}: they must be equal"
        )
    return _flat_positions(x), _flat_positions(delta), x.shape[-1]


def _flat_positions(x: Tensor) -> Tensor:
    return x.unsqueeze(1) if x.dim() == 2 else x.flatten(1, -2)


def _sizes(name: str, value: IntOrTuple, dims: int, least: int) -> list[int]:
    if isinstance(value, str):
        raise ValueError(f"{name}={value!r}: pass numbers (for 'same', dilation·(kernel_size − 1)/2)")
    sizes = list(as_tuple(value, dims))
    if len(sizes) != dims or any(size < least for size in sizes):
        raise ValueError(f"{name} must be {dims} number(s) of at least {least}, not {value}")
    return sizes


def _check_convolution(x: Tensor, delta: Tensor, geometry: list[list[int]], groups: int, transposed: bool) -> int:
    """Raises if the shapes do not belong to the geometry; the length of a patch without bias."""
    if x.shape[1] % groups != 0:
        raise ValueError(f"x has {x.shape[1]} channels, which groups={groups} does not divide")
    if delta.dim() != x.dim() or delta.shape[0] != x.shape[0]:
        raise ValueError(f"delta has shape {tuple(delta.shape)}, x {tuple(x.shape)}: batch or dimensions differ")
    if delta.shape[1] % groups != 0:
        raise ValueError(f"delta has {delta.shape[1]} channels, which groups={groups} does not divide")
    out = []
    taps = 1
    for size, k, s, p, d, extra in zip(x.shape[2:], *geometry):
        reach = d * (k - 1) + 1
        if extra and (not transposed or extra >= max(s, d)):
            raise ValueError(f"output_padding={extra} needs transposed=True and a larger stride or dilation")
        out.append((size - 1) * s - 2 * p + reach + extra if transposed else (size + 2 * p - reach) // s + 1)
        taps *= k
    if any(size < 1 for size in out) and x.shape[0] > 0:
        raise ValueError(f"the geometry leaves no output: x has spatial size {tuple(x.shape[2:])}, output {tuple(out)}")
    if tuple(delta.shape[2:]) != tuple(out):
        raise ValueError(f"delta has spatial size {tuple(delta.shape[2:])}; x and the geometry give {tuple(out)}")
    return x.shape[1] // groups * taps


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
def _(
    x, delta, U, V, kernel_size, stride, padding, dilation, output_padding, transposed, groups, bias, memory_budget
):  # type: ignore[no-untyped-def]
    return x.new_empty((4, groups, U.shape[2]), dtype=torch.float64)
