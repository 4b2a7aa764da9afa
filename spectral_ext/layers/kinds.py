"""What a measurable layer is: the one place that knows how each kind of module holds and uses its weight.

A layer is a module with a weight that is a matrix by the paper's convention: Linear (out, in), convolutions flattened
to (out, in/groups · kernel). Its name is the module's path, as in ``model.named_modules()``. A kind is a class here
with an entry in :data:`KINDS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_ext.ops.geometry import geometry_of

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
MEASURABLE_TYPES = (nn.Linear, *CONVOLUTIONS)


@dataclass(frozen=True)
class Layer:
    """One layer. This base class is any module with a weight of two or more dimensions: it has a gradient and
    curvature in ``weight.flatten(1)``, but it is not known how it uses its input, so that it has no Kronecker factors.
    """

    name: str
    module: nn.Module

    @property
    def weight(self) -> Tensor:
        return self.module.weight  # type: ignore[return-value]

    @property
    def is_convolution(self) -> bool:
        return isinstance(self.module, CONVOLUTIONS)

    @property
    def kind(self) -> str:
        return type(self.module).__name__

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(m, n) = (out, in/groups · kernel): the shape of ``weight.flatten(1)``."""
        return self.weight.shape[0], self.weight[0].numel()

    @property
    def groups(self) -> int:
        return getattr(self.module, "groups", 1)


class LinearLayer(Layer):
    """z = x Wᵀ + b over the last dimension of x, W (out, in): ``nn.Linear``, and any module whose class is named
    "…Linear" and whose ``weight`` has two dimensions. Capture confirms that its gradient is Σ d aᵀ.
    """

    @staticmethod
    def claims(module: nn.Module) -> bool:
        if isinstance(module, nn.Linear):
            return True
        weight = dict(module.named_parameters(recurse=False)).get("weight")
        return weight is not None and weight.dim() == 2 and type(module).__name__.endswith("Linear")

    @property
    def geometry(self) -> dict[str, Any]:
        """The keyword arguments of the ops for this layer, without its bias."""
        return {"kernel_size": None, "bias": False}

    def rows(self, d: Tensor) -> int:
        """How many rows a_bs x has, of the error d at the layer's output (…, m)."""
        return d.numel() // d.shape[-1]

    def rows_without_error(self, d: Tensor) -> int:
        return self.rows(d) - int(d.flatten(0, -2).any(1).sum())

    def weight_gradient(self, x: Tensor, d: Tensor) -> Tensor:
        """Σ_bs d_bs a_bsᵀ (m, n), from the layer's own call."""
        return d.flatten(0, -2).mT @ x.flatten(0, -2)


class ConvolutionLayer(Layer):
    """``nn.Conv1d``, ``nn.Conv2d`` and ``nn.Conv3d``: the rows of x are the patches, one per output position."""

    @staticmethod
    def claims(module: nn.Module) -> bool:
        return isinstance(module, CONVOLUTIONS)

    @property
    def geometry(self) -> dict[str, Any]:
        """The keyword arguments of the ops for this layer, without its bias."""
        return geometry_of(self.module, bias=False)

    def rows(self, d: Tensor) -> int:
        """How many patches x has, of the error d at the layer's output (B, m, *spatial)."""
        return d.numel() // d.shape[1]

    def rows_without_error(self, d: Tensor) -> int:
        return self.rows(d) - int(d.any(1).sum())

    def weight_gradient(self, x: Tensor, d: Tensor) -> Tensor:
        """Σ_bs d_bs a_bsᵀ (m, n), from the layer's own call."""
        module: Any = self.module
        padding = module.padding
        if isinstance(padding, str):
            x, padding = F.pad(x, module._reversed_padding_repeated_twice), (0,) * len(module.kernel_size)
        _, gradient, _ = torch.ops.aten.convolution_backward(
            d, x, self.weight, None, module.stride, padding, module.dilation, False, [0] * len(padding), module.groups,
            [False, True, False],
        )  # fmt: skip
        return gradient.flatten(1)


KINDS = (LinearLayer, ConvolutionLayer)


def layer_of(name: str, module: nn.Module) -> LinearLayer | ConvolutionLayer | None:
    """The layer that a module is, or None where no kind claims it."""
    return next((kind(name, module) for kind in KINDS if kind.claims(module)), None)
