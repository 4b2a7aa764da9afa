"""How a layer's call looks to the ops."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spectral_ext.layers import Layer
from spectral_ext.ops import geometry_of


def geometry(layer: Layer) -> dict[str, Any]:
    """The keyword arguments of the ops for this layer, without its bias."""
    return geometry_of(layer.module, bias=False)


def row_count(layer: Layer, d: Tensor) -> int:
    """Rows a_bs of x: output positions of a convolution, leading dimensions of a linear layer."""
    return d[:, 0].numel() if layer.is_convolution else d[..., 0].numel()


def weight_gradient(layer: Layer, x: Tensor, d: Tensor) -> Tensor:
    """Σ_bs d_bs a_bsᵀ (m, n), from the layer's own call."""
    if not layer.is_convolution:
        return d.flatten(0, -2).mT @ x.flatten(0, -2)
    module: Any = layer.module
    padding = module.padding
    if isinstance(padding, str):
        x, padding = F.pad(x, module._reversed_padding_repeated_twice), (0,) * len(module.kernel_size)
    _, gradient, _ = torch.ops.aten.convolution_backward(
        d, x, layer.weight, None, module.stride, padding, module.dilation, False, [0] * len(padding), 1,
        [False, True, False],
    )  # fmt: skip
    return gradient.flatten(1)
