"""Operations that move numbers and change none, and those that pass no tangent at all."""

from __future__ import annotations

import operator

import torch
from torch import Tensor

from spectral_ext.curvature.rules.registry import Operation, Push, align, rule

aten = torch.ops.aten


@rule(aten.view.default, aten._unsafe_view.default, aten.reshape.default)
def view(op: Operation) -> Push:
    shape = op.value.shape
    return lambda d: (d.reshape(d.shape[0], *shape), None)


@rule(aten.clone.default, aten.alias.default, aten.contiguous.default, aten.lift_fresh_copy.default)
def same(op: Operation) -> Push:
    return lambda d: (d, None)


@rule(aten._to_copy.default, aten.to.dtype)
def cast(op: Operation) -> Push:
    dtype = op.value.dtype
    return lambda d: (d.to(dtype), None)


@rule(aten.t.default)
def transpose_matrix(op: Operation) -> Push:
    return lambda d: (d.transpose(-1, -2) if d.dim() == 3 else d, None)


@rule(aten.transpose.int)
def transpose(op: Operation) -> Push:
    dims = op.value.dim()
    a, b = (axis % dims + 1 if dims else 0 for axis in op.args[1:3])
    return lambda d: (d.transpose(a, b), None)


@rule(aten.permute.default)
def permute(op: Operation) -> Push:
    order = [0, *(axis % op.value.dim() + 1 for axis in op.args[1])]
    return lambda d: (d.permute(order), None)


@rule(aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default)
def insert_or_drop(op: Operation) -> Push:
    shape = op.value.shape
    return lambda d: (d.reshape(d.shape[0], *shape), None)


@rule(aten.expand.default)
def expand(op: Operation) -> Push:
    shape = op.value.shape

    def push(d: Tensor) -> tuple[Tensor, None]:
        missing = len(shape) + 1 - d.dim()
        return d.reshape(d.shape[0], *(1,) * missing, *d.shape[1:]).expand(-1, *shape), None

    return push


def _axis(op: Operation, position: int, default: int = 0) -> int:
    axis = op.args[position] if len(op.args) > position else default
    return axis % op.args[0].dim() + 1


@rule(aten.select.int)
def select(op: Operation) -> Push:
    axis, index = _axis(op, 1), op.args[2]
    return lambda d: (d.select(axis, index), None)


@rule(aten.slice.Tensor)
def slice_(op: Operation) -> Push:
    axis, rest = _axis(op, 1), op.args[2:]
    return lambda d: (aten.slice.Tensor(d, axis, *rest), None)


@rule(aten.unbind.int)
def unbind(op: Operation) -> Push:
    axis = _axis(op, 1)
    return lambda d: (d.unbind(axis), None)


@rule(aten.split.Tensor, aten.split_with_sizes.default, aten.split.sizes)
def split(op: Operation) -> Push:
    axis, sizes = _axis(op, 2), op.args[1]
    return lambda d: (d.split(sizes, axis), None)


@rule(aten.cat.default)
def cat(op: Operation) -> Push:
    tensors = op.args[0]
    dims = op.value.dim()
    axis = (op.args[1] if len(op.args) > 1 else 0) % op.value.dim() + 1

    def push(*tangents: Tensor | None) -> tuple[Tensor, None]:
        number = next(d.shape[0] for d in tangents if d is not None)
        blocks = [
            x.new_zeros(()).expand(number, *x.shape) if d is None else d
            for x, d in zip(tensors, tangents, strict=True)
            if x.dim() == dims  # cat skips empty vectors
        ]
        return torch.cat(blocks, axis), None

    return push


@rule(operator.getitem)
def getitem(op: Operation) -> Push:
    index = op.args[1]
    return lambda d: (d[index], None)


@rule(aten.slice_scatter.default, aten.select_scatter.default)
def written_slice(op: Operation) -> Push:
    """A slice of the first operand replaced by the second. (vmap of slice_scatter refuses an open end.)"""
    axis, rest = _axis(op, 2), op.args[3:]
    cut = aten.select.int if op.target is aten.select_scatter.default else aten.slice.Tensor
    whole_shape = op.args[0].shape
    has = [hasattr(arg, "users") for arg in op.node.args[:2]]

    def push(*tangents: Tensor | None) -> tuple[Tensor, None]:
        given = iter(tangents)
        whole, part = (next(given) if node else None for node in has)
        if whole is None:
            assert part is not None
            total = part.new_zeros(part.shape[0], *whole_shape)
        else:
            total = whole.clone()
        written = cut(total, axis, *rest)
        if part is None:
            written.zero_()
        else:
            written.copy_(part)
        return total, None

    return push


@rule(aten.constant_pad_nd.default)
def pad(op: Operation) -> Push:
    width = op.args[1]
    return lambda d: (aten.constant_pad_nd.default(d, width, 0), None)


@rule(aten.masked_fill.Scalar, differentiable_operands=(0,))
def masked_fill(op: Operation) -> Push:
    mask = op.args[1]
    return lambda d, *_: (d.masked_fill(mask, 0), None)


@rule(aten.where.self)
def where(op: Operation) -> Push:
    mask, shape, zero = op.args[0], op.value.shape, op.value.new_zeros(())

    def push(_: None, yes: Tensor | None = None, no: Tensor | None = None) -> tuple[Tensor, None]:
        number = (yes if yes is not None else no).shape[0]  # type: ignore[union-attr]
        grown = [zero if d is None else align(d, len(shape)) for d in (yes, no)]
        return torch.where(mask, grown[0], grown[1]).expand(number, *shape), None

    return push


@rule(aten.embedding.default, differentiable_operands=(0,))
def embedding(op: Operation) -> Push:
    index = op.args[1]
    return lambda d, *_: (d[:, index], None)


CONSTANT = {
    aten.detach.default,
    aten.sign.default,
    aten.round.default,
    aten.floor.default,
    aten.ceil.default,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.full_like.default,
    aten.empty_like.default,
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.new_full.default,
    aten.new_empty.default,
    aten.fill.Scalar,
    aten.zero.default,
}
"""No tangent leaves these; a detached value is a constant, for double backward too."""
