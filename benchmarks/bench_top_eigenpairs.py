"""The k largest eigenpairs of a factor: full decompositions, ARPACK, LOBPCG and block Krylov. One thread, float32.

Run it with OMP_NUM_THREADS=1: idle BLAS threads of SciPy spin, and CPU time is what is measured.
Factors have power-law spectra, λ_i = i^-p, in a random basis. Errors: the worst residual ‖C v − λ v‖ / λ_1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import scipy.linalg
import scipy.sparse.linalg
import torch
from torch import Tensor

from benchmarks.harness import Row, interleaved
from spectral_ext.factors import top_eigenpairs


def power_law(n: int, exponent: float) -> Tensor:
    C = torch.diag(torch.arange(1, n + 1, dtype=torch.float64) ** -exponent)
    for _ in range(3):  # reflections: a random basis without a QR of n columns
        v = torch.randn(n, 1, dtype=torch.float64)
        v /= v.norm()
        w = 2 * (C @ v - v * (v.T @ C @ v))
        C = C - w @ v.T - v @ w.T
    return ((C + C.T) / 2).float()


def residual(C: Tensor, values: Tensor, vectors: Tensor) -> float:
    return float((C @ vectors - vectors * values).norm(dim=0).max() / values.max())


def methods_of(C: Tensor, k: int) -> dict[str, Callable[[], Any]]:
    n, array = C.shape[0], C.numpy()

    def full() -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(C)
        return values[-k:], vectors[:, -k:]

    def subset() -> tuple[Tensor, Tensor]:
        values, vectors = scipy.linalg.eigh(array, subset_by_index=[n - k, n - 1])
        return torch.from_numpy(values), torch.from_numpy(vectors)

    def arpack() -> tuple[Tensor, Tensor]:
        values, vectors = scipy.sparse.linalg.eigsh(array, k, which="LA", tol=1e-5)
        return torch.from_numpy(values), torch.from_numpy(vectors)

    def lobpcg() -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        return torch.lobpcg(C, k, X=torch.randn(n, k, generator=generator), niter=60, tol=1e-5)

    return {
        "torch.linalg.eigh": full,
        "scipy.linalg.eigh, k only": subset,
        "scipy eigsh (ARPACK)": arpack,
        "torch.lobpcg": lobpcg,
        "top_eigenpairs": lambda: top_eigenpairs(C, k)[:2],
    }


def bench(quick: bool = True) -> list[Row]:
    torch.manual_seed(0)
    cases = [(576, 20), (1152, 20), (1152, 100), (2304, 20), (2304, 100)] + ([] if quick else [(4608, 20), (4608, 100)])
    rows: list[Row] = []
    for n, k in cases:
        for exponent in (0.7, 1.5):
            C = power_law(n, exponent)
            methods = methods_of(C, k)
            if n > 1152:
                del methods["torch.lobpcg"], methods["scipy.linalg.eigh, k only"]
            timings = interleaved(methods, "torch.linalg.eigh", rounds=5 if n < 2304 else 3)
            rows += [
                Row(f"n={n} k={k} p={exponent}", name, t.seconds * 1e3, t.ratio, residual(C, *methods[name]()))
                for name, t in timings.items()
            ]
    return rows
