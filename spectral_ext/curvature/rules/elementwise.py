"""Element-wise y = f(x): ẏ = f′(x)ẋ, second-order term Σ ȳ f″(x) ẋ². Piecewise-linear ones have f″ = 0."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_ext.curvature.rules.registry import Operation, Push, rule
from spectral_ext.curvature.sums import weighted_squares

aten = torch.ops.aten


def derivative(op: Operation, *, create_graph: bool = False) -> tuple[Tensor, Tensor]:
    """x (a leaf) and f′(x)."""
    with torch.enable_grad():
        x = op.args[0].detach().clone().requires_grad_()
        y = op.target(x, *op.args[1:], **op.kwargs)
        (first,) = torch.autograd.grad(y.sum(), x, create_graph=create_graph)
    return x, first


@rule(aten.relu.default, aten.leaky_relu.default, aten.threshold.default, aten.hardtanh.default, aten.abs.default,
      aten.clamp.default, aten.clamp_min.default, aten.clamp_max.default, aten.hardsigmoid.default,
      real_only=True)  # fmt: skip
def piecewise_linear(op: Operation) -> Push:
    slope = derivative(op)[1]
    return lambda d: (d * slope, None)


@rule(aten._prelu_kernel.default, differentiable_operands=(0,))
def prelu(op: Operation) -> Push:
    slope = derivative(op)[1]
    return lambda d, _: (d * slope, None)


@rule(
    aten.gelu.default, aten.tanh.default, aten.sigmoid.default, aten.silu.default, aten.mish.default, aten.elu.default,
    aten.softplus.default, aten.hardswish.default, aten.exp.default, aten.expm1.default, aten.log.default,
    aten.log1p.default, aten.log2.default, aten.sqrt.default, aten.rsqrt.default, aten.reciprocal.default,
    aten.pow.Tensor_Scalar, aten.erf.default, aten.sin.default, aten.cos.default, aten.atan.default,
    mechanism="activation", real_only=True,
)  # fmt: skip
def smooth(op: Operation) -> Push:
    x, first = derivative(op, create_graph=True)
    if first.requires_grad:
        (second,) = torch.autograd.grad(first.sum(), x)
    else:
        second = torch.zeros_like(first)
    slope = first.detach()
    if op.adjoint is None:
        return lambda d: (d * slope, None)
    weight = second * op.adjoint
    return lambda d: (d * slope, weighted_squares(d, weight))
