"""A Kronecker factor in the smaller of its two forms: the matrix, or the rows that it is the second moment of."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from spectral_ext.factors.eigen import top_eigenpairs
from spectral_ext.ops import input_factor

FULL_SPECTRUM = 2048
"""Matrices up to this size are decomposed fully; of larger ones the top eigenvalues are computed."""
LARGEST_SIDE = 16384
"""A larger matrix is never formed: in float32 this one takes 1 GiB."""
TILE = 4096
"""Columns that are converted to float64 at a time."""


class FactorTooLargeError(ValueError):
    """The factor has as many rows as its side is long, and the matrix would take more than ``LARGEST_SIDE`` allows."""


class SecondMoment:
    """C = scale · Σ r rᵀ (n, n) over N rows r, symmetric and positive semidefinite.

    With fewer rows than n the rows R (N, n) themselves are kept, and C is never formed: its non-zero eigenvalues are
    those of the Gram matrix scale · R Rᵀ (N, N), which is computed in float64, and the others are exactly zero. From
    n rows on C is kept as a matrix in the rows' dtype.

    Attributes:
        size: n.
        scale: a factor for everything that is read; set it when all rows are in.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.scale = 1.0
        self.rows: list[Tensor] = []
        self.matrix: Tensor | None = None
        """Σ r rᵀ without ``scale``; None as long as the rows are kept."""

    @classmethod
    def of(cls, matrix: Tensor) -> SecondMoment:
        """Of a symmetric matrix (n, n)."""
        moment = cls(matrix.shape[-1])
        moment.matrix = matrix
        return moment

    # ---- feeding

    def add_rows(self, rows: Tensor) -> None:
        """Add Σ r rᵀ of rows (N, n). The tensor is kept as it is: nobody may change it afterwards.

        Raises:
            FactorTooLargeError: see there.
        """
        if self.matrix is not None:
            input_factor(rows, scale="sum", out=self.matrix, beta=1.0)
            return
        self.rows.append(rows)
        if self.count >= self.size:
            self.to_matrix()

    def add_matrix(self, total: Tensor) -> None:
        """Add a sum Σ r rᵀ (n, n)."""
        self.to_matrix()
        if self.matrix is None:
            self.matrix = total.clone()
        else:
            self.matrix.add_(total)

    def to_matrix(self) -> None:
        """Form the matrix of the rows."""
        if self.size > LARGEST_SIDE:
            self.rows = []
            raise FactorTooLargeError(
                f"with {self.size} rows or more the factor of side {self.size} would be formed, and {LARGEST_SIDE} is "
                "the limit: measure on fewer rows (tokens)"
            )
        rows, self.rows = self.rows, []
        for one in rows:
            if self.matrix is None:
                self.matrix = input_factor(one, scale="sum")
            else:
                input_factor(one, scale="sum", out=self.matrix, beta=1.0)

    # ---- reading

    @property
    def count(self) -> int:
        """The number of rows that are kept."""
        return sum(len(one) for one in self.rows)

    @property
    def is_empty(self) -> bool:
        return self.matrix is None and not self.rows

    @property
    def dtype(self) -> torch.dtype:
        return (self.rows[0] if self.matrix is None else self.matrix).dtype

    @property
    def nbytes(self) -> int:
        return sum(one.nbytes for one in ([self.matrix] if self.matrix is not None else self.rows))

    def dense(self) -> Tensor:
        """C as a new matrix (n, n)."""
        if self.matrix is not None:
            return self.matrix * self.scale
        rows = torch.cat(self.rows)
        return rows.mT @ rows * self.scale

    def trace(self) -> float:
        if self.matrix is not None:
            return float(self.matrix.diagonal().double().sum()) * self.scale
        return sum(float(one.norm(dtype=torch.float64)) ** 2 for one in self.rows) * self.scale

    def sum(self) -> float:
        """1ᵀ C 1."""
        if self.matrix is not None:
            return float(self.matrix.sum(dtype=torch.float64)) * self.scale
        return sum(float(one.sum(1, dtype=torch.float64).square().sum()) for one in self.rows) * self.scale

    def inner(self, other: SecondMoment) -> float:
        """⟨C, D⟩ = Σ_ij C_ij D_ij for another factor of the same size."""
        if self.matrix is None and other.matrix is None:
            product = float(_product(torch.cat(self.rows), torch.cat(other.rows)).square().sum())
        elif self.matrix is None or other.matrix is None:
            rows, matrix = (self.rows, other.matrix) if self.matrix is None else (other.rows, self.matrix)
            assert matrix is not None
            product = sum(float(((one @ matrix) * one).sum(dtype=torch.float64)) for one in rows)
        else:
            pairs = zip(self.matrix.split(TILE // 4), other.matrix.split(TILE // 4), strict=True)
            product = sum(float((a.double() * b.double()).sum()) for a, b in pairs)
        return product * self.scale * other.scale

    def norm(self) -> float:
        """‖C‖_F."""
        return self.inner(self) ** 0.5

    def eigenvalues(self, k: int) -> Tensor:
        """Eigenvalues in decreasing order, float64: all n of them where the rows are kept or n ≤ ``FULL_SPECTRUM``,
        else the max(k, 100) largest.
        """
        if self.matrix is None:
            values = torch.linalg.eigvalsh(self._gram()).flip(0)
            values = values.where(values > len(values) * torch.finfo(torch.float64).eps * values[0], 0.0)
            return torch.cat([values, values.new_zeros(self.size - len(values))])
        matrix = self.matrix
        if self.size <= FULL_SPECTRUM:
            values = torch.linalg.eigvalsh(matrix.double() if self.size <= FULL_SPECTRUM // 2 else matrix).flip(0)
        else:
            values = top_eigenpairs(matrix, max(k, 100)).values
        return values.double() * self.scale

    def eigenspace(self, k: int) -> Tensor:
        """Orthonormal eigenvectors of the k largest eigenvalues (n, k); fewer where C has lower rank."""
        if self.matrix is None:
            values, vectors = torch.linalg.eigh(self._gram())
            values, vectors = values.flip(0)[:k], vectors.flip(1)[:, :k]
            vectors = vectors[:, values > 1e-12 * values[0]]
            found = torch.cat(self.rows).mT @ vectors.to(self.dtype)
        else:
            found = top_eigenpairs(self.matrix, min(k, self.size)).vectors
        return torch.linalg.qr(found.double()).Q

    def mapped(self, shift: Tensor, factor: Tensor) -> SecondMoment:
        """The second moment of (r + shift) ⊙ factor where the rows are kept, both (n,), in float64."""
        moment = SecondMoment(self.size)
        moment.scale = self.scale
        moment.rows = [(one.double() + shift) * factor for one in self.rows]
        return moment

    def _gram(self) -> Tensor:
        rows = torch.cat(self.rows)
        return _product(rows, rows) * self.scale


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a bᵀ in float64, by tiles of columns."""
    total = a.new_zeros(len(a), len(b), dtype=torch.float64)
    for left, right in _tiles(a, b):
        total.addmm_(left, right.mT)
    return total


def _tiles(a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for left, right in zip(a.split(TILE, 1), b.split(TILE, 1), strict=True):
        yield left.double(), right.double()
