"""The input Kronecker factor C_A of Linear and (transposed) convolution layers, without unfolding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spectral_ext._extension import compiled
from spectral_ext.ops.geometry import (
    Geometry,
    IntOrTuple,
    accumulator_dtype,
    check_finite,
    check_one_device,
    check_out,
    prepare,
)
from spectral_ext.ops.scales import check_scale, input_scale

ORDERS = ("unfold", "channels_last")


def input_factor(
    x: Tensor,
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
    order: str = "unfold",
    reduction: str = "expand",
    scale: str = "curvlinops",
    num_classes: int | None = None,
    out: Tensor | None = None,
    beta: float = 0.0,
    alpha: float = 1.0,
    finite: bool = False,
) -> Tensor:
    r"""C_A = Σ_bs a_bs a_bsᵀ / (B·S): the second moment of a layer's input patches.

    Unfolding a 3×3 convolution multiplies every pair of pixels up to 9 times. Here each product is taken once, in 13
    lag sums that are cut where the zero padding makes windows differ, and every block of C_A is a sum of such pieces
    (csrc/common/lag_plan.h). Layers where that saves nothing take a symmetric rank-k update.

    Args:
        x: (B, …, n) of a linear layer; (B, C, *spatial) of a convolution in one to three dimensions, any strides
            (``channels_last`` is read as it is). float32, float64, bfloat16 or float16; never modified.
        kernel_size: None for a linear layer. With ``stride``, ``padding`` (numbers, ``"same"`` or ``"valid"``),
            ``dilation``, ``groups``, ``transposed``, ``output_padding`` and ``padding_mode`` as in ``nn.Conv*d``
            and ``nn.ConvTranspose*d``; ``geometry_of(module)`` gives them all.
        bias: append a one to every patch: the last row and column.
        order: ``"unfold"``, that of ``weight.flatten(1)`` (``weight.transpose(0, 1).flatten(1)`` if transposed), or
            ``"channels_last"``, that of ``weight.movedim(1, -1).flatten(1)``, which is cheaper to write.
        reduction: ``"expand"``: every position is a row; ``"reduce"``: the mean patch of a sample is
            (Eschenhagen et al. 2023).
        scale: see :mod:`spectral_ext.ops.scales`; ``num_classes`` only for ``"nngeometry"``.
        out: (groups, n, n), or (n, n) of one group, contiguous: becomes ``beta · out + alpha · C_A`` and is returned.
            Exponential average: ``beta=0.95, alpha=0.05``. Sum: ``beta=1``. Not read where ``beta`` is 0.
        finite: raise for input that is not finite: one more pass.

    Returns:
        (n, n), or (groups, n, n) where groups > 1; float64 for float64 x, else float32. Exactly symmetric. Zero where
        there is no row. On the CPU independent of the number of threads. No gradient is recorded, as by every op here:
        differentiate :func:`spectral_ext.reference.input_factor`.

    Raises:
        TypeError, ValueError: x, geometry, ``out`` or names that do not fit, each with the remedy.
    """
    if order not in ORDERS:
        raise ValueError(f"order must be 'unfold' or 'channels_last', not {order!r}")
    check_scale(scale, reduction, num_classes)
    if finite:
        check_finite(x, "x")
    x, geometry = prepare(
        x.detach() if isinstance(x, Tensor) else x,
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
    samples, positions = count_rows(x, geometry)
    if reduction == "reduce":
        rows, geometry, positions = mean_patches(x, geometry, order, positions), Geometry(bias=bias), min(positions, 1)
    elif not geometry.kernel_size:
        rows = x.reshape(samples * positions, x.shape[-1])
    else:
        rows = x
    factor = input_scale(scale, samples, positions, num_classes) * alpha
    if reduction == "reduce" and groups > 1:
        return grouped_rows(rows, geometry, groups, out, beta, factor)
    return run(rows, geometry, order, out, beta, factor)


def run(x: Tensor, geometry: Geometry, order: str, out: Tensor | None, beta: float, scale: float) -> Tensor:
    """beta · out + scale · Σ a aᵀ of prepared input."""
    arguments, channels_last = geometry.arguments, order == "channels_last"
    if out is None:
        factor = torch.ops.spectral_ext.input_factor(x, *arguments, channels_last, scale)
        return factor if geometry.groups > 1 else factor[0]
    n = geometry.side(x.shape[1])
    check_out(out, (geometry.groups, n, n) if geometry.groups > 1 or out.dim() == 3 else (n, n), x)
    target = out if out.dim() == 3 else out[None]
    torch.ops.spectral_ext.input_factor_(target, x, *arguments, channels_last, beta, scale)
    return out


def grouped_rows(
    rows: Tensor, geometry: Geometry, groups: int, out: Tensor | None, beta: float, scale: float
) -> Tensor:
    """Reduced patches (B, groups · n): one linear factor per group."""
    parts = rows.chunk(groups, 1)
    n = parts[0].shape[1] + int(geometry.bias)
    if out is None:
        return torch.stack([run(part, geometry, "unfold", None, 0.0, scale) for part in parts])
    check_out(out, (groups, n, n), rows)
    for part, target in zip(parts, out):
        run(part, geometry, "unfold", target, beta, scale)
    return out


def count_rows(x: Tensor, geometry: Geometry) -> tuple[int, int]:
    """B and S."""
    if geometry.kernel_size:
        return x.shape[0], geometry.positions(x.shape[2:])
    if x.dim() == 1:
        return 1, 1
    positions = 1
    for size in x.shape[1:-1]:
        positions *= size
    return x.shape[0], positions


def mean_patches(x: Tensor, geometry: Geometry, order: str, positions: int) -> Tensor:
    """(B, groups · n) without bias: Σ_s a_bs / S, by sums over the pixels of each tap, axis by axis."""
    wide = x.to(accumulator_dtype(x.dtype))
    if not geometry.kernel_size:
        rows = wide.reshape(x.shape[0] if x.dim() > 1 else 1, positions, x.shape[-1])
        return rows.sum(1) / max(positions, 1)
    for axis in range(geometry.dims):
        read = [wide[:, :, window].sum(2) for window in windows(geometry, axis, x.shape[2 + axis])]
        wide = torch.stack(read, -1)  # the next axis takes the place of this one, whose taps go last
    patches = wide.unflatten(1, (geometry.groups, x.shape[1] // geometry.groups)) / positions
    if order == "channels_last":
        patches = patches.movedim(2, -1)
    return patches.flatten(1)


def windows(geometry: Geometry, axis: int, size: int) -> list[slice]:
    """For every tap along one axis, the pixels that it reads: one per output position inside the input."""
    s, p, d = geometry.stride[axis], geometry.padding[axis], geometry.dilation[axis]
    out = geometry.output_size([0] * axis + [size] + [0] * (geometry.dims - axis - 1))[axis]
    found = []
    for tap in range(geometry.kernel_size[axis]):
        if geometry.transposed:  # pixel h at output h·s − p + tap·d
            first, last, step = -((tap * d - p) // s), (out - 1 + p - tap * d) // s, 1
        else:  # output y at pixel y·s + tap·d − p
            first, last, step = tap * d - p, (out - 1) * s + tap * d - p, s
        first += max(-(first // step), 0) * step
        found.append(slice(first, max(min(last, size - 1) + 1, first), step))
    return found


def lag_state_size(input_size: Sequence[int], geometry: Geometry) -> int:
    """Numbers of the lag-sum state of inputs of size (channels, *spatial)."""
    return compiled.lag_state_size(list(input_size), *geometry.arguments)


def lag_sums_(state: Tensor, x: Tensor, geometry: Geometry, *, beta: float = 1.0, scale: float = 1.0) -> Tensor:
    """state ← beta · state + scale · (lag sums of x), in place: linear in Σ a aᵀ, so it can be averaged, all-reduced.

    Args:
        state: ``lag_state_size(x.shape[1:], geometry)`` numbers, contiguous, float64 for float64 x, else float32.
        x, geometry: from :func:`spectral_ext.ops.geometry.prepare`; the spatial size must not change between calls.
    """
    check_out(state, (lag_state_size(x.shape[1:], geometry),), x)
    torch.ops.spectral_ext.lag_sums_(state, x.detach(), *geometry.arguments, beta, scale)
    return state


def expand_lag_sums(state: Tensor, input_size: Sequence[int], geometry: Geometry, *, order: str = "unfold") -> Tensor:
    """The factor that a lag-sum state stands for: (n, n), or (groups, n, n) where groups > 1."""
    if order not in ORDERS:
        raise ValueError(f"order must be 'unfold' or 'channels_last', not {order!r}")
    check_out(state, (lag_state_size(input_size, geometry),), state.new_empty(0))
    arguments = geometry.arguments
    factor = torch.ops.spectral_ext.expand_lag_sums(state, list(input_size), *arguments, order == "channels_last")
    return factor if geometry.groups > 1 else factor[0]


def _side(x_channels: int, kernel_size: list[int], groups: int, bias: bool) -> int:
    n = x_channels // groups
    for k in kernel_size:
        n *= k
    return n + int(bias)


@torch.library.register_fake("spectral_ext::input_factor")
def _(x, kernel_size, stride, padding, dilation, groups, bias, transposed, output_padding, channels_last_order, scale):
    n = _side(x.shape[1], kernel_size, groups, bias)
    return x.new_empty((groups, n, n), dtype=accumulator_dtype(x.dtype))


@torch.library.register_fake("spectral_ext::expand_lag_sums")
def _(
    state, input_size, kernel_size, stride, padding, dilation, groups, bias, transposed, output_padding,
    channels_last_order,
):  # fmt: skip
    n = _side(input_size[0], kernel_size, groups, bias)
    return state.new_empty((groups, n, n))


@torch.library.register_fake("spectral_ext::input_factor_")
def _(out, x, *arguments):
    check_one_device(out=out, x=x)


@torch.library.register_fake("spectral_ext::lag_sums_")
def _(state, x, *arguments):
    check_one_device(state=state, x=x)
