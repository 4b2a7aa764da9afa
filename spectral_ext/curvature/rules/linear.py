"""Linear maps with constant coefficients, and the products: linear in each operand, bilinear in both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spectral_ext.curvature.rules.registry import Operation, Push, align, rule
from spectral_ext.curvature.sums import inner_products

aten = torch.ops.aten


@rule(
    aten.mean.dim, aten.sum.dim_IntList, aten.sum.default, aten.mean.default, aten.cumsum.default, aten.flip.default,
    aten.roll.default, aten.index.Tensor, aten.index_select.default, aten.gather.default, aten.tril.default,
    aten.triu.default, aten.stack.default, aten.repeat.default,
    aten.scatter.src, aten.index_put.default, aten.im2col.default, aten.col2im.default, aten.diagonal.default,
    aten.pixel_shuffle.default, aten.pixel_unshuffle.default, aten.masked_fill.Tensor, aten.nll_loss_forward.default,
    aten.nll_loss2d_forward.default, aten.unfold.default, aten.as_strided.default, aten.diagonal_scatter.default,
    aten.as_strided_scatter.default, aten.index_add.default, aten.scatter_add.default, aten.diag_embed.default,
    aten.trace.default, aten._unsafe_index.Tensor, aten._fft_r2c.default, aten._fft_c2c.default, aten._fft_c2r.default,
    aten._conj.default, aten._conj_physical.default, aten.view_as_real.default, aten.view_as_complex.default,
    aten.complex.default,
)  # fmt: skip
def linear(op: Operation) -> Push:
    """Linear in all its floating-point operands together: f(ẋ), with zero for an operand without tangent."""
    from torch.utils import _pytree as pytree

    leaves, tree = pytree.tree_flatten((op.args, op.kwargs))
    where = [i for i, leaf in enumerate(pytree.tree_leaves((op.node.args, op.node.kwargs))) if hasattr(leaf, "users")]

    def push(*tangents: Tensor | None) -> tuple[Any, None]:
        moving = [i for i, d in zip(where, tangents, strict=True) if d is not None]

        def one_direction(*values: Tensor) -> Any:
            full = list(leaves)
            for i, d in zip(where, tangents, strict=True):
                linear_operand = isinstance(full[i], Tensor) and _differentiable(full[i]) and i not in coefficients
                if d is None and linear_operand:
                    full[i] = torch.zeros_like(full[i])
            for i, value in zip(moving, values, strict=True):
                full[i] = value
            args, kwargs = pytree.tree_unflatten(full, tree)
            return op.target(*args, **kwargs)

        return torch.vmap(one_direction)(*(d for d in tangents if d is not None)), None

    coefficients = {2} if op.target in (aten.nll_loss_forward.default, aten.nll_loss2d_forward.default) else set()
    return push


def _differentiable(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


@rule(aten.avg_pool2d.default, aten._adaptive_avg_pool2d.default, aten.avg_pool3d.default, aten.avg_pool1d.default,
      aten._adaptive_avg_pool3d.default, aten.upsample_nearest1d.default, aten.upsample_nearest1d.vec,
      aten.upsample_nearest2d.default, aten.upsample_nearest2d.vec, aten.upsample_nearest3d.default,
      aten.upsample_nearest3d.vec, aten.upsample_linear1d.default, aten.upsample_linear1d.vec,
      aten.upsample_bilinear2d.default, aten.upsample_bilinear2d.vec, aten.upsample_bicubic2d.default,
      aten.upsample_bicubic2d.vec, aten.upsample_trilinear3d.default, aten.upsample_trilinear3d.vec,
      aten.reflection_pad1d.default, aten.reflection_pad2d.default, aten.reflection_pad3d.default,
      aten.replication_pad1d.default, aten.replication_pad2d.default, aten.replication_pad3d.default)  # fmt: skip
def per_sample(op: Operation) -> Push:
    """Linear and separate for each sample, so that the directions fold into the batch."""
    rest = op.args[1:]
    return lambda d: (op.target(d.flatten(0, 1), *rest, **op.kwargs).unflatten(0, d.shape[:2]), None)


@rule(aten.neg.default)
def negative(op: Operation) -> Push:
    return lambda d: (-d, None)


@rule(aten.mul.Scalar, aten.div.Scalar, aten.div.Tensor, differentiable_operands=(0,))
def scale(op: Operation) -> Push:
    factor = op.args[1] if op.target is aten.mul.Scalar else 1 / op.args[1]
    return lambda d, *_: (d * factor, None)


@rule(aten.add.Scalar, aten.sub.Scalar)
def shift(op: Operation) -> Push:
    return lambda d: (d, None)


@rule(aten.rsub.Scalar)
def shift_negative(op: Operation) -> Push:
    alpha = op.args[2] if len(op.args) > 2 else op.kwargs.get("alpha", 1)
    return lambda d: (d * -alpha, None)


@rule(aten.add.Tensor, aten.sub.Tensor)
def add(op: Operation) -> Push:
    alpha = op.kwargs.get("alpha", 1) * (-1 if op.target is aten.sub.Tensor else 1)
    shape = op.value.shape
    has = [hasattr(arg, "users") for arg in op.node.args[:2]]

    def push(*tangents: Tensor | None) -> tuple[Tensor, None]:
        given = iter(tangents)
        a, b = (next(given) if node else None for node in has)
        a, b = (None if d is None else align(d, len(shape)) for d in (a, b))
        if a is None or b is None:
            total = a if b is None else b if alpha == 1 else b * alpha  # type: ignore[operator]
        else:
            total = torch.add(a, b, alpha=alpha)
        return total.expand(-1, *shape), None  # type: ignore[union-attr]

    return push


def product(op: Operation, multiply: Callable[[Any, Any], Tensor], first: int) -> Push:
    """f(a, b) bilinear: ẏ = f(ȧ, b) + f(a, ḃ), term 2⟨ȳ, f(ȧ, ḃ)⟩; a and b are arguments ``first`` and the next."""
    a, b = op.args[first : first + 2]
    adjoint, shape = op.adjoint, op.value.shape
    has = [hasattr(arg, "users") for arg in op.node.args]

    def push(*tangents: Tensor | None) -> tuple[Tensor, Tensor | None]:
        given = iter(tangents)
        by_argument = [next(given) if node else None for node in has]
        da, db = by_argument[first : first + 2]
        total = None if da is None else multiply(da, b)
        if db is not None:
            other = multiply(a, db)
            total = other if total is None else total + other
        term = None
        if da is not None and db is not None:
            term = 2 * inner_products(multiply(da, db).expand(-1, *shape), adjoint)
        return total.expand(-1, *shape), term  # type: ignore[union-attr]

    return push


@rule(aten.mul.Tensor, mechanism="bilinear", bilinear=True)
def multiply_elements(op: Operation) -> Push:
    dims = op.value.dim()
    a, b = op.args[:2]

    def multiply(x: Any, y: Any) -> Tensor:
        return (x if x is a else align(x, dims)) * (y if y is b else align(y, dims))

    return product(op, multiply, 0)


@rule(aten.mm.default, aten.bmm.default, mechanism="bilinear", bilinear=True)
def multiply_matrices(op: Operation) -> Push:
    return product(op, torch.matmul, 0)


@rule(aten.addmm.default, mechanism="bilinear", bilinear=True, differentiable_operands=(1, 2))
def affine(op: Operation) -> Push:
    alpha = op.kwargs.get("alpha", 1)
    return product(op, torch.matmul if alpha == 1 else lambda a, b: alpha * torch.matmul(a, b), 1)
