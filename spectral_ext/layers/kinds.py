"""What a measurable layer is.

A layer is a module with a weight that is a matrix along the paper's convention: Linear (out, in), convolutions
flattened to (out, in/groups · kernel). Its name is the module's path, as in ``model.named_modules()``.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
MEASURABLE_TYPES = (nn.Linear, *CONVOLUTIONS)


@dataclass(frozen=True)
class Layer:
    """One measurable layer."""

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
        """(out, in/groups · kernel): the shape of ``weight.flatten(1)``."""
        return self.weight.shape[0], self.weight[0].numel()

    @property
    def groups(self) -> int:
        return getattr(self.module, "groups", 1)
