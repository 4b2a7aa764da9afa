"""The table of layers: how each kind of module holds a matrix, and where its input and its error can be seen.

A layer is one matrix parameter of a model. A kind is a class here with an entry in :data:`KINDS`; the first that claims
a parameter has it. The matrix is the paper's: out by in, a convolution's kernel among the inputs. A parameter that
holds E matrices (the groups of a convolution, experts) is one *family*, the block-diagonal matrix (E·m, E·n) of them.
Its singular values are those of all blocks together, and every singular pair lies in one block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_ext.ops.geometry import geometry_of

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED_CONVOLUTIONS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
MEASURABLE_TYPES = (nn.Linear, *CONVOLUTIONS)


@dataclass(frozen=True)
class Layer:
    """A matrix parameter. This base class reads ``weight.flatten(1)`` as the matrix."""

    name: str
    """The module's path for its ``weight``, else the parameter's path."""
    module: nn.Module
    parameter: str = "weight"
    """The parameter's name in ``module``."""

    layout: ClassVar[str] = "rows"
    """``rows``: the matrix is ``weight.flatten(1)``; ``columns``: its transpose; ``blocks``: anything else."""
    on_request: ClassVar[str] = ""
    """Why the layer is measured only where it is asked for by name; "" if it is measured always."""
    no_factors: ClassVar[str] = ""
    """Why the input and the error of the layer cannot be seen, so that it has no Kronecker factors; "" if they can."""

    @staticmethod
    def claims(module: nn.Module, own: str, parameter: nn.Parameter) -> bool:
        """Whether the parameter, named ``own`` in its module, is of this kind."""
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:
        return getattr(self.module, self.parameter)

    @property
    def is_convolution(self) -> bool:
        return self.parameter == "weight" and isinstance(self.module, CONVOLUTIONS)

    @property
    def has_output(self) -> bool:
        """Whether the output of the module is a Linear's or a convolution's, with this weight."""
        return self.parameter == "weight" and isinstance(self.module, MEASURABLE_TYPES)

    @property
    def kind(self) -> str:
        return type(self.module).__name__

    @property
    def groups(self) -> int:
        return getattr(self.module, "groups", 1)

    @property
    def block_shape(self) -> tuple[int, int, int]:
        """(E, m, n): the number of matrices and the shape of each."""
        return 1, self.weight.shape[0], self.weight[0].numel()

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(E·m, E·n): the shape of the block-diagonal matrix."""
        blocks, m, n = self.block_shape
        return blocks * m, blocks * n

    def matrices(self, tensor: Tensor) -> Tensor:
        """A tensor of the weight's shape as (E, m, n)."""
        return tensor.reshape(self.block_shape)

    def tensor(self, matrices: Tensor) -> Tensor:
        """The inverse of :meth:`matrices` for a stack (K, E, m, n): (K, *weight.shape)."""
        return matrices.reshape(-1, *self.weight.shape)

    def matrix(self, tensor: Tensor) -> Tensor:
        """A tensor of the weight's shape as the block-diagonal matrix (E·m, E·n)."""
        matrices = self.matrices(tensor)
        return matrices[0] if len(matrices) == 1 else torch.block_diag(*matrices)

    def tangents(self, U: Tensor, V: Tensor) -> Tensor:
        """u_k v_kᵀ of the columns of U (E·m, K) and V (E·n, K) as (K, *weight.shape); what lies outside of the blocks
        is dropped.
        """
        blocks, m, n = self.block_shape
        return self.tensor(torch.einsum("emk,enk->kemn", U.reshape(blocks, m, -1), V.reshape(blocks, n, -1)))


class LinearLayer(Layer):
    """z = x Wᵀ + b over the last dimension of x, W (out, in): ``nn.Linear``, and any module whose class is named
    "…Linear" and whose ``weight`` has two dimensions. Capture confirms that its gradient is Σ d aᵀ.
    """

    @staticmethod
    def claims(module: nn.Module, own: str, parameter: nn.Parameter) -> bool:
        named = isinstance(module, nn.Linear) or type(module).__name__.endswith("Linear")
        return own == "weight" and parameter.dim() == 2 and named

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


class TransposedLinearLayer(LinearLayer):
    """z = x W + b with W stored (in, out): Hugging Face's ``Conv1D``, as in GPT-2. The matrix is Wᵀ."""

    layout = "columns"

    @staticmethod
    def claims(module: nn.Module, own: str, parameter: nn.Parameter) -> bool:
        return own == "weight" and type(module).__name__ == "Conv1D" and hasattr(module, "nf")

    @property
    def block_shape(self) -> tuple[int, int, int]:
        return 1, self.weight.shape[1], self.weight.shape[0]

    def matrices(self, tensor: Tensor) -> Tensor:
        return tensor.reshape(self.weight.shape).mT.unsqueeze(0)

    def tensor(self, matrices: Tensor) -> Tensor:
        return matrices.squeeze(1).mT


class ConvolutionLayer(Layer):
    """``nn.Conv1d``, ``nn.Conv2d`` and ``nn.Conv3d``: the rows of x are the patches, one per output position."""

    @staticmethod
    def claims(module: nn.Module, own: str, parameter: nn.Parameter) -> bool:
        usual = isinstance(module, CONVOLUTIONS) and module.groups == 1 and module.padding_mode == "zeros"
        return own == "weight" and usual

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


class PaddedConvolutionLayer(Layer):
    """A convolution with another padding than zeros."""

    no_factors = "its patches are not padded with zeros (padding_mode)"

    @staticmethod
    def claims(module: nn.Module, own: str, parameter: nn.Parameter) -> bool:
        return own == "weight" and isinstance(module, CONVOLUTIONS) and module.groups == 1


class GroupedConvolutionLayer(Layer):
    """A grouped or depthwise convolution: one matrix (out/groups, in/groups · kernel) per group."""

    layout = "blocks"
    no_factors = "each group of the convolution would have factors of its own"

    @staticmethod
    def claims(module: nn.Module, own: str, parameter: nn.Parameter) -> bool:
        return own == "weight" and isinstance(module, CONVOLUTIONS)

    @property
    def block_shape(self) -> tuple[int, int, int]:
        return self.groups, self.weight.shape[0] // self.groups, self.weight[0].numel()


class TransposedConvolutionLayer(Layer):
    """A transposed convolution, stored (in, out/groups, *kernel): one matrix (in/groups, out/groups · kernel) per
    group. It maps errors to inputs; its singular values are those of the transpose.
    """

    layout = "blocks"
    no_factors = "a transposed convolution has patches at its output, not at its input"

    @staticmethod
    def claims(module: nn.Module, own: str, parameter: nn.Parameter) -> bool:
        return own == "weight" and isinstance(module, TRANSPOSED_CONVOLUTIONS)

    @property
    def block_shape(self) -> tuple[int, int, int]:
        return self.groups, self.weight.shape[0] // self.groups, self.weight[0].numel()


class AttentionLayer(Layer):
    """The input projections of ``nn.MultiheadAttention``: ``in_proj_weight`` (3·d, d) as stored, or one matrix for each
    of query, key and value where they are stored apart.
    """

    no_factors = "nn.MultiheadAttention uses it inside a function of its own"

    @staticmethod
    def claims(module: nn.Module, own: str, parameter: nn.Parameter) -> bool:
        return isinstance(module, nn.MultiheadAttention) and own.endswith("proj_weight")


@dataclass(frozen=True)
class AttentionPart(AttentionLayer):
    """The query, key or value matrix (d, d) in ``in_proj_weight``: ``<path>.in_proj_weight.q``, ``.k`` and ``.v``."""

    layout = "blocks"
    on_request = "a part of in_proj_weight"
    part: int = 0
    """0, 1 or 2: query, key or value."""

    @property
    def block_shape(self) -> tuple[int, int, int]:
        return 1, self.weight.shape[0] // 3, self.weight.shape[1]

    def matrices(self, tensor: Tensor) -> Tensor:
        return tensor.reshape(3, *self.block_shape[1:])[self.part].unsqueeze(0)

    def tensor(self, matrices: Tensor) -> Tensor:
        whole = matrices.new_zeros(len(matrices), 3, *self.block_shape[1:])
        whole[:, self.part] = matrices[:, 0]
        return whole.flatten(1, 2)


class RecurrentLayer(Layer):
    """``weight_ih``, ``weight_hh`` and ``weight_hr`` of a recurrent module or cell, as stored: the gates above each
    other.
    """

    no_factors = "a recurrent weight is used at every step, inside a function of its own"

    @staticmethod
    def claims(module: nn.Module, own: str, parameter: nn.Parameter) -> bool:
        return isinstance(module, (nn.RNNBase, nn.RNNCellBase)) and own.startswith("weight_")


class TableLayer(Layer):
    """An embedding: ``nn.Embedding``, and any module whose class name has "Embedding" and that holds a ``weight``."""

    on_request = "an embedding, or tied to one"
    no_factors = "a table of vectors is looked up, not multiplied"

    @staticmethod
    def claims(module: nn.Module, own: str, parameter: nn.Parameter) -> bool:
        return own == "weight" and parameter.dim() == 2 and "Embedding" in type(module).__name__


class ElementwiseLayer(Layer):
    """Biases and gains of two or more dimensions."""

    on_request = "a bias or a gain, which acts entry by entry"
    no_factors = "it acts entry by entry"

    @staticmethod
    def claims(module: nn.Module, own: str, parameter: nn.Parameter) -> bool:
        return "Norm" in type(module).__name__ or "bias" in own


class ExpertsLayer(Layer):
    """A bare parameter (E, m, n) with all three above 1: E matrices, the experts of a mixture for example."""

    layout = "blocks"
    no_factors = "a bare parameter: which inputs meet which of its matrices is not visible"

    @staticmethod
    def claims(module: nn.Module, own: str, parameter: nn.Parameter) -> bool:
        return parameter.dim() == 3 and min(parameter.shape) > 1

    @property
    def block_shape(self) -> tuple[int, int, int]:
        blocks, m, n = self.weight.shape
        return blocks, m, n


class BareLayer(Layer):
    """Any other parameter with two dimensions above 1. Dimensions of 1 are dropped, and those after the first large one
    are taken together.
    """

    no_factors = "a bare parameter: how it meets its input is not visible"

    @staticmethod
    def claims(module: nn.Module, own: str, parameter: nn.Parameter) -> bool:
        return sum(size > 1 for size in parameter.shape) > 1

    layout = "blocks"

    @property
    def block_shape(self) -> tuple[int, int, int]:
        m = next(size for size in self.weight.shape if size > 1)
        return 1, m, self.weight.numel() // m


KINDS: tuple[type[Layer], ...] = (
    LinearLayer,
    TransposedLinearLayer,
    ConvolutionLayer,
    PaddedConvolutionLayer,
    GroupedConvolutionLayer,
    TransposedConvolutionLayer,
    AttentionLayer,
    RecurrentLayer,
    TableLayer,
    ElementwiseLayer,
    ExpertsLayer,
    BareLayer,
)


def layer_of(name: str, module: nn.Module, own: str = "weight") -> Layer | None:
    """The layer that a parameter of a module is, or None where no kind claims it."""
    parameter = dict(module.named_parameters(recurse=False)).get(own)
    if parameter is None or parameter.dim() < 2:
        return None
    return next((kind(name, module, own) for kind in KINDS if kind.claims(module, own, parameter)), None)
