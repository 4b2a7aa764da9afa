"""Directions D_k in a layer's weight, and what they do to the layer's output: ż_k = D_k a."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spectral_ext.curvature.sums import inner_products, sum_in_float64
from spectral_ext.layers import Layer


@dataclass(frozen=True)
class Directions:
    """K directions of one weight: u_k v_kᵀ, the columns of U (m, K) and V (n, K), or ``dense`` (K, *weight.shape)."""

    shape: torch.Size
    U: Tensor | None = None
    V: Tensor | None = None
    dense: Tensor | None = None
    layer: Layer | None = None
    """Whose matrix U and V belong to; None for ``weight.flatten(1)``."""

    def __len__(self) -> int:
        return self.dense.shape[0] if self.dense is not None else self.U.shape[1]  # type: ignore[union-attr]

    def __getitem__(self, part: slice | list[int]) -> Directions:
        if self.dense is not None:
            return Directions(self.shape, dense=self.dense[part])
        return Directions(self.shape, self.U[:, part], self.V[:, part], layer=self.layer)  # type: ignore[index]

    @property
    def transposed(self) -> Directions:
        """D_kᵀ, of a matrix."""
        shape = torch.Size(reversed(self.shape))
        return Directions(shape, self.V, self.U, None if self.dense is None else self.dense.mT)

    def to(self, dtype: torch.dtype) -> Directions:
        """The same directions in another precision."""
        U, V, dense = (None if t is None else t.to(dtype) for t in (self.U, self.V, self.dense))
        return Directions(self.shape, U, V, dense, self.layer)

    @property
    def stored(self) -> Directions:
        """The same directions in the layout of the weight, ``weight.flatten(1)``; dense where that is no u vᵀ."""
        if self.dense is not None or self.layer is None or self.layer.layout == "rows":
            return Directions(self.shape, self.U, self.V, self.dense)
        if self.layer.layout == "columns":
            return Directions(self.shape, self.V, self.U)
        return Directions(self.shape, dense=self.weight_tangents())

    def weight_tangents(self) -> Tensor:
        """(K, *weight.shape)."""
        if self.dense is not None:
            return self.dense
        if self.layer is not None:
            assert self.U is not None and self.V is not None
            return self.layer.tangents(self.U, self.V)
        return torch.einsum("mk,nk->kmn", self.U, self.V).reshape(-1, *self.shape)

    def along(self, gradient: Tensor) -> Tensor:
        """⟨G, D_k⟩ of a gradient G of the weight's shape: (K,) float64."""
        if self.dense is not None:
            return inner_products(self.dense, gradient.reshape(self.shape))
        assert self.U is not None and self.V is not None
        if self.layer is None:
            return sum_in_float64(((gradient.flatten(1) @ self.V) * self.U).mT)
        G = self.layer.matrices(gradient)
        blocks, m, n = G.shape
        images = G @ self.V.reshape(blocks, n, -1)
        return sum_in_float64((images * self.U.reshape(blocks, m, -1)).flatten(0, 1).mT)

    def norms(self) -> Tensor:
        """‖D_k‖, (K,) float64."""
        if self.dense is not None:
            return self.dense.double().flatten(1).norm(dim=1)
        assert self.U is not None and self.V is not None
        return self.U.double().norm(dim=0) * self.V.double().norm(dim=0)

    def linear_output(self, x: Tensor) -> Tensor:
        """ż = x D_kᵀ for x (…, n): (K, …, m)."""
        if self.dense is not None:
            return (x @ self.dense.flatten(0, 1).T).unflatten(-1, self.dense.shape[:2]).movedim(-2, 0)
        assert self.U is not None and self.V is not None
        rows = (x @ self.V).movedim(-1, 0).contiguous()
        return rows.unsqueeze(-1) * self.U.T.reshape(len(self), *(1,) * (x.dim() - 1), -1)

    def convolution_output(self, convolve: Callable[[Tensor], Tensor], groups: int) -> Tensor:
        """ż (K, B, m, *spatial); ``convolve`` takes a weight and applies it to the layer's input with its geometry."""
        m, rest = self.shape[0], self.shape[1:]
        if self.dense is not None:
            filters = self.dense.unflatten(1, (groups, m // groups)).transpose(0, 1).reshape(-1, *rest)
            z = convolve(filters).unflatten(1, (groups, len(self), m // groups))
            return z.movedim(2, 0).flatten(2, 3).contiguous()
        assert self.U is not None and self.V is not None
        filters = self.V.T.reshape(len(self), *rest).repeat(groups, *(1,) * len(rest))
        z = convolve(filters).unflatten(1, (groups, len(self))).movedim(2, 0)  # (K, B, groups, *spatial)
        u = self.U.T.reshape(len(self), 1, groups, m // groups, *(1,) * (z.dim() - 3))
        return (z.unsqueeze(3) * u).flatten(2, 3)


def given_directions(directions: Mapping[str, Any], chosen: dict[str, Layer]) -> dict[str, Directions]:
    """The caller's directions, checked against the weights and brought to their dtype and device.

    Raises:
        KeyError: a name that is not a measured layer.
        ValueError: a wrong shape, or NaN or Inf.
    """
    return {name: _given(name, value, chosen) for name, value in directions.items()}


def _given(name: str, value: Any, chosen: dict[str, Layer]) -> Directions:
    if name not in chosen:
        raise KeyError(f"directions: {name!r} is not a measurable layer; there are {', '.join(list(chosen)[:8])}")
    layer = chosen[name]
    weight, (m, n) = layer.weight, layer.matrix_shape
    tensors = [value] if isinstance(value, Tensor) else list(value)
    tensors = [tensor.detach().to(weight) for tensor in tensors]
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise ValueError(f"directions[{name!r}] hold NaN or Inf")
    if isinstance(value, Tensor):
        (dense,) = tensors
        if dense.dim() == 3 and dense.shape[1:] != weight.shape and layer.block_shape == (1, *dense.shape[1:]):
            dense = layer.tensor(dense.unsqueeze(1))
        if dense.dim() == weight.dim() + 1 and dense.shape[1:] == weight.shape and len(dense):
            return Directions(weight.shape, dense=dense)
        raise ValueError(
            f"directions[{name!r}] has shape {tuple(dense.shape)}, not (K, *{tuple(weight.shape)}) with K ≥ 1"
        )
    if len(tensors) == 2:
        U, V = tensors
        if U.dim() == V.dim() == 2 and U.shape[0] == m and V.shape[0] == n and U.shape[1] == V.shape[1] > 0:
            return Directions(weight.shape, U, V, layer=layer)
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
    raise ValueError(f"directions[{name!r}] has shapes {shapes}, not a pair U ({m}, K), V ({n}, K) with K ≥ 1")
