"""How a parameter is read as matrices: N-D weights flattened, leading batch dimensions kept, fused weights split.

T acts on singular values, so it commutes with transposition and with any permutation of rows or columns. The column
order is therefore free, and is taken from the strides: a channels_last convolution weight is read without a copy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

Split = int | tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """A tensor (*batch, rows, *columns) as matrices (…, m, n).

    Attributes:
        batch_dims: leading dimensions that count matrices (experts, heads); the next one is the rows, all others the
            columns.
        split: fused matrices along ``split_dim``: their number (equal parts: query, key, value; the groups of a
            convolution) or the tuple of their sizes (grouped-query attention).
        split_dim: 0 splits rows (``nn.Linear``: (3·d, d)), 1 splits columns (weights stored as (in, out)).
    """

    batch_dims: int = 0
    split: Split = 1
    split_dim: int = 0

    def check(self, name: str, shape: torch.Size) -> None:
        """Raise ValueError, naming the parameter, if a tensor of this shape cannot be read so."""
        b = self.batch_dims
        if not isinstance(b, int):
            raise TypeError(f"{name}: batch_dims must be an integer, not {b!r}")
        sizes = self.split if isinstance(self.split, tuple) else (self.split,)
        if not all(isinstance(size, int) for size in sizes):
            raise TypeError(f"{name}: split must be an integer or a tuple of integers, not {self.split!r}")
        if b < 0 or len(shape) < b + 2:
            raise ValueError(
                f"{name}: shape {tuple(shape)} with batch_dims={b} is no matrix; AdamW can take it (use_adamw)"
            )
        if self.split_dim not in (0, 1):
            raise ValueError(f"{name}: split_dim must be 0 (rows) or 1 (columns), not {self.split_dim!r}")
        length = shape[b] if self.split_dim == 0 else math.prod(shape[b + 1 :])
        if isinstance(self.split, int):
            if self.split < 1 or length % self.split:
                raise ValueError(f"{name}: split={self.split} does not divide {length}; give the sizes as a tuple")
        elif min(self.split, default=0) < 1 or sum(self.split) != length:
            raise ValueError(f"{name}: split={self.split} must be positive sizes that add up to {length}")
        elif self.split_dim == 1 and len(shape) > b + 2:
            raise ValueError(f"{name}: unequal splits of columns need a 2-D weight, not shape {tuple(shape)}")

    def part_sizes(self, shape: torch.Size) -> list[int]:
        """The lengths of the fused matrices along ``split_dim``."""
        if isinstance(self.split, tuple):
            return list(self.split)
        length = shape[self.batch_dims] if self.split_dim == 0 else math.prod(shape[self.batch_dims + 1 :])
        return [length // self.split] * self.split

    def _columns(self, t: Tensor) -> list[int]:
        """Column dimensions in memory order; in index order where columns are split, which the order must not mix."""
        dims = list(range(self.batch_dims + 1, t.dim()))
        if self.split_dim == 1 and self.split != 1:
            return dims
        strides = t.stride()
        return sorted(dims, key=lambda dim: (-strides[dim], dim))

    def matrices(self, t: Tensor) -> list[Tensor]:
        """The matrices of ``t``, each (…, m, n); a view wherever the strides allow it."""
        b = self.batch_dims
        matrix = t.permute(*range(b + 1), *self._columns(t)).flatten(b + 1)
        if not isinstance(self.split, int):
            return list(matrix.split(self.split, dim=b + self.split_dim))
        if self.split == 1:
            return [matrix]
        dim = b + self.split_dim
        return [matrix.unflatten(dim, (self.split, -1)).movedim(dim, b)]

    def tensor(self, matrices: list[Tensor], like: Tensor) -> Tensor:
        """The inverse of ``matrices(like)``."""
        b = self.batch_dims
        dim = b + self.split_dim
        if not isinstance(self.split, int):
            matrix = torch.cat(matrices, dim)
        elif self.split == 1:
            matrix = matrices[0]
        else:
            matrix = matrices[0].movedim(b, dim).flatten(dim, dim + 1)
        columns = self._columns(like)
        permuted = matrix.unflatten(b + 1, [like.shape[column] for column in columns])
        order = [*range(b + 1), *columns]
        return permuted.permute(*(order.index(dim) for dim in range(like.dim())))

    def cost(self, shape: torch.Size) -> float:
        """Operations of one update, up to a factor: n²(3N + n) per matrix of small side n and large side N."""
        b = self.batch_dims
        other = math.prod(shape[b + 1 :]) if self.split_dim == 0 else shape[b]
        sides = [(min(part, other), max(part, other)) for part in self.part_sizes(shape)]
        return math.prod(shape[:b]) * sum(n**2 * (3 * N + n) for n, N in sides)
