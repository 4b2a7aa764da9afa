"""How a layer's call looks to the ops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..layers import Layer


def geometry(layer: Layer, x: Tensor) -> dict[str, Any]:
    """The arguments that describe a convolution to the ops; empty for a linear layer."""
    if not layer.is_convolution:
        return {}
    module: Any = layer.module
    padding = (0,) * len(module.kernel_size) if isinstance(module.padding, str) else module.padding
    return dict(kernel_size=module.kernel_size, stride=module.stride, padding=padding, dilation=module.dilation)


def row_count(layer: Layer, d: Tensor) -> int:
    """Rows a_bs of x: output positions of a convolution, leading dimensions of a linear layer."""
    return d[:, 0].numel() if layer.is_convolution else d[..., 0].numel()


def weight_gradient(layer: Layer, x: Tensor, d: Tensor) -> Tensor:
    """Σ_bs d_bs a_bsᵀ (m, n), from the layer's own call."""
    if not layer.is_convolution:
        return d.flatten(0, -2).mT @ x.flatten(0, -2)
    module: Any = layer.module
    spec = geometry(layer, x)
    dims = len(module.kernel_size)
    _, gradient, _ = torch.ops.aten.convolution_backward(
        d, x, layer.weight, None, spec["stride"], spec["padding"], spec["dilation"], False, [0] * dims, 1,
        [False, True, False],
    )  # fmt: skip
    return gradient.flatten(1)
