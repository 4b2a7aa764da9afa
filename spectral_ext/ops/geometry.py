"""What a layer reads: the geometry arguments of a convolution, checked once for every op."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IntOrTuple = int | Sequence[int]

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type that sums of products are taken in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def spread(name: str, value: IntOrTuple, dims: int, least: int) -> list[int]:
    numbers = [value] * dims if isinstance(value, int) else list(value)
    if len(numbers) == 1:
        numbers *= dims
    if len(numbers) != dims:
        raise ValueError(f"{name}={value!r}: {dims} numbers are needed, one per spatial dimension")
    if any(not isinstance(number, (int, torch.SymInt)) for number in numbers):
        raise TypeError(f"{name}={value!r}: integers are needed")
    if any(number < least for number in numbers):
        raise ValueError(f"{name}={value!r}: every number must be at least {least}")
    return numbers


@dataclass(frozen=True)
class Geometry:
    """A convolution's shape arguments, one number per spatial dimension; no kernel_size stands for a linear layer.

    ``transposed`` describes ``nn.ConvTranspose*d``: a patch holds, for tap i of output position y, the input at
    (y + padding − i·dilation) / stride where that is an integer inside the input, in the order of
    ``weight.transpose(0, 1).flatten(1)``.
    """

    kernel_size: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    bias: bool = False
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    @property
    def arguments(self) -> tuple[list[int], list[int], list[int], list[int], int, bool, bool, list[int]]:
        """In the order of the op schemas."""
        lists = (list(self.kernel_size), list(self.stride), list(self.padding), list(self.dilation))
        return (*lists, self.groups, self.bias, self.transposed, list(self.output_padding))

    @property
    def dims(self) -> int:
        return len(self.kernel_size)

    def output_size(self, input_size: Sequence[int]) -> list[int]:
        """Output positions along each spatial dimension of an input of that spatial size."""
        sizes = []
        for i, size in enumerate(input_size):
            extent = self.dilation[i] * (self.kernel_size[i] - 1) + 1
            if self.transposed:
                grown = (size - 1) * self.stride[i] - 2 * self.padding[i]
                sizes.append(grown + extent + self.output_padding[i])
            else:
                sizes.append((size + 2 * self.padding[i] - extent) // self.stride[i] + 1)
        return sizes

    def side(self, channels: int) -> int:
        """n: the factor's side, patch elements and the bias column."""
        n = channels // self.groups
        for k in self.kernel_size:
            n *= k
        return n + int(self.bias)

    def positions(self, input_size: Sequence[int]) -> int:
        """S: output positions of one sample."""
        total = 1
        for size in self.output_size(input_size):
            total *= size
        return total


def prepare(
    x: Tensor,
    *,
    kernel_size: IntOrTuple | None,
    stride: IntOrTuple = 1,
    padding: IntOrTuple | str = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
    bias: bool = False,
    transposed: bool = False,
    output_padding: IntOrTuple = 0,
    padding_mode: str = "zeros",
) -> tuple[Tensor, Geometry]:
    """Checked geometry, and x as the ops take it: padded where ``padding_mode`` or an uneven ``"same"`` asks for it.

    Raises:
        TypeError: x is not a floating-point tensor of a supported type.
        ValueError: a wrong number of dimensions, groups that do not divide the channels, no output position, …
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, not {type(x).__name__}")
    if x.dtype not in FLOATING:
        raise TypeError(f"x must be float32, float64, bfloat16 or float16, not {x.dtype}")
    if padding_mode not in PADDING_MODES:
        raise ValueError(f"padding_mode must be one of {', '.join(PADDING_MODES)}, not {padding_mode!r}")
    if kernel_size is None:
        if groups != 1 or transposed:
            raise ValueError("groups and transposed belong to a convolution: give its kernel_size")
        if x.dim() < 1:
            raise ValueError("x of a linear layer must have at least one dimension, (…, n)")
        return x, Geometry(bias=bias)
    dims = x.dim() - 2
    if not 1 <= dims <= 3:
        raise ValueError(f"x of a convolution must be (B, C, one to three spatial sizes), not {tuple(x.shape)}")
    kernel = spread("kernel_size", kernel_size, dims, 1)
    steps, spacing = spread("stride", stride, dims, 1), spread("dilation", dilation, dims, 1)
    outer = spread("output_padding", output_padding, dims, 0)
    if groups < 1 or x.shape[1] % groups:
        raise ValueError(f"groups={groups} does not divide the {x.shape[1]} channels of x")
    if not transposed and any(outer):
        raise ValueError("output_padding belongs to a transposed convolution")
    if transposed and (padding_mode != "zeros" or isinstance(padding, str)):
        raise ValueError("a transposed convolution takes padding_mode='zeros' and padding as numbers")
    if isinstance(padding, str):
        if padding not in ("same", "valid"):
            raise ValueError(f"padding must be numbers, 'same' or 'valid', not {padding!r}")
        if padding == "same" and any(s != 1 for s in steps):
            raise ValueError("padding='same' needs stride 1")
        total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(spacing, kernel)]
    else:
        total = [2 * p for p in spread("padding", padding, dims, 0)]
    if padding_mode != "zeros" or any(p % 2 for p in total):
        x = pad(x, total, padding_mode)
        total = [0] * dims
    margin = tuple(p // 2 for p in total)
    geometry = Geometry(tuple(kernel), tuple(steps), margin, tuple(spacing), groups, bias, transposed, tuple(outer))
    size = list(x.shape[2:])
    if any(s < 1 for s in size) or any(s < 1 for s in geometry.output_size(size)):
        raise ValueError(
            f"spatial size {tuple(size)} leaves no output position for kernel_size={tuple(kernel)}, "
            f"stride={tuple(steps)}, padding={margin}, dilation={tuple(spacing)}"
        )
    return x, geometry


def pad(x: Tensor, total: list[int], mode: str) -> Tensor:
    """x with ``total`` pixels more per dimension, the odd one last, as ``nn.Conv*d`` pads."""
    widths = [width for t in reversed(total) for width in (t // 2, t - t // 2)]
    return F.pad(x, widths, mode="constant" if mode == "zeros" else mode)


def geometry_of(module: nn.Module, *, bias: bool | None = None) -> dict[str, object]:
    """The keyword arguments of :func:`spectral_ext.ops.input_factor` that describe a Linear or (transposed) Conv layer.

    ``bias=None`` includes the bias column where the module has a bias.
    """
    with_bias = getattr(module, "bias", None) is not None if bias is None else bias
    if isinstance(module, nn.Linear):
        return {"kernel_size": None, "bias": with_bias}
    if not isinstance(module, nn.modules.conv._ConvNd):
        raise TypeError(f"{type(module).__name__} is neither Linear nor a convolution")
    return {
        "kernel_size": module.kernel_size,
        "stride": module.stride,
        "padding": module.padding,
        "dilation": module.dilation,
        "groups": module.groups,
        "bias": with_bias,
        "transposed": module.transposed,
        "output_padding": module.output_padding,
        "padding_mode": module.padding_mode,
    }


def check_finite(x: Tensor, name: str) -> None:
    """Raises ValueError with the count and the first position of what is not finite: one pass, one synchronisation."""
    finite = torch.isfinite(x)
    if not bool(finite.all()):
        bad = (~finite).nonzero()
        raise ValueError(
            f"{name} has {len(bad)} of {x.numel()} numbers that are not finite, the first at {tuple(bad[0].tolist())}"
        )


def check_one_device(**tensors: Tensor) -> None:
    """Raises RuntimeError, as the compiled ops do: a fake op runs where any of its tensors is on the meta device."""
    (first, x), *others = tensors.items()
    for name, tensor in others:
        if tensor.device != x.device:
            raise RuntimeError(f"{name} is on {tensor.device} and {first} on {x.device}: move them to one device")


def check_out(out: Tensor, shape: Sequence[int], like: Tensor) -> None:
    """An ``out=`` must be exactly what the op would allocate, and share no memory with its input."""
    dtype = accumulator_dtype(like.dtype)
    if tuple(out.shape) != tuple(shape):
        raise ValueError(f"out has shape {tuple(out.shape)}, this geometry needs {tuple(shape)}")
    if out.dtype != dtype:
        raise TypeError(f"out is {out.dtype}, for {like.dtype} input it must be {dtype}")
    if out.device != like.device:
        raise ValueError(f"out is on {out.device}, x on {like.device}")
    if not out.is_contiguous():
        raise ValueError("out must be contiguous: pass out.contiguous() and copy it back")
    if out.requires_grad:
        raise ValueError("out must not require a gradient: pass out.detach()")
    if torch.compiler.is_compiling() or out.numel() == 0 or like.numel() == 0:
        return
    if out.untyped_storage().data_ptr() == like.untyped_storage().data_ptr():
        first, last = memory_range(out), memory_range(like)
        if first[0] < last[1] and last[0] < first[1]:
            raise ValueError("out overlaps the memory of x: pass a buffer of its own")


def memory_range(x: Tensor) -> tuple[int, int]:
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride()))
    return x.data_ptr(), x.data_ptr() + (last + 1) * x.element_size()
