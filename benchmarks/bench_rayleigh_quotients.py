"""All four Rayleigh quotients of K direction pairs: unfold, convolve, form C, or the fused op. One thread, float32.

The peer of a case (ratio 1) is what one would write today: `F.unfold` and matrix products for a convolution, matrix
products for a linear layer; N × K projections are squared and averaged. `form C` computes vᵀ C_A v and uᵀ C_δ u from
explicit factors and leaves the other two outputs out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import Row, interleaved, peak_extra_mebibytes
from spectral_ext import reference
from spectral_ext.ops import input_factor, output_factor, rayleigh_quotients

# (B, C, side, kernel, stride, m, K): the stages of a ResNet, a strided layer, a stem
CONVOLUTIONS = [
    (32, 64, 32, 3, 1, 64, 20),
    (64, 128, 16, 3, 1, 128, 20),
    (64, 256, 8, 3, 1, 256, 20),
    (128, 512, 4, 3, 1, 512, 20),
    (64, 64, 32, 3, 2, 64, 20),
    (64, 3, 64, 7, 2, 64, 20),
]
MORE_CONVOLUTIONS = [
    (32, 64, 32, 3, 1, 64, 1),
    (32, 64, 32, 3, 1, 64, 128),
    (128, 512, 4, 3, 1, 512, 128),
    (2, 64, 56, 3, 1, 64, 20),
    (16, 256, 14, 1, 1, 1024, 20),
    (16, 64, 16, 5, 1, 64, 20),
]
# (leading dimensions, n, m, K)
LINEAR = [((131072,), 64, 64, 20), ((128, 128), 768, 768, 20)]
MORE_LINEAR = [
    ((131072,), 64, 64, 1),
    ((131072,), 64, 64, 128),
    ((65536,), 64, 256, 64),
    ((128, 128), 512, 512, 20),
    ((128, 128), 768, 768, 128),
    ((64, 64), 3072, 768, 64),
]


def four_means(a: Tensor, d: Tensor) -> reference.RayleighQuotients:
    """From projections (B, S, K): the reference's formulas, with every pass that torch makes of them."""
    a2, d2 = a.square(), d.square()
    return reference.RayleighQuotients(
        d2.sum(1).mean(0), a2.mean((0, 1)), (d2 * a2).mean((0, 1)), (d * a).sum(1).square().mean(0)
    )


def unfold_and_multiply(x: Tensor, delta: Tensor, U: Tensor, V: Tensor, **geometry: Any) -> reference.RayleighQuotients:
    patches = F.unfold(x, **geometry).mT
    return four_means(patches @ V, delta.flatten(2).mT @ U)


def unfold_in_chunks(x: Tensor, delta: Tensor, U: Tensor, V: Tensor, **geometry: Any) -> reference.RayleighQuotients:
    parts = [unfold_and_multiply(a, d, U, V, **geometry) for a, d in zip(x.split(4), delta.split(4))]
    return reference.RayleighQuotients(*(torch.stack(field).mean(0) for field in zip(*parts)))


def convolve_with_directions(
    x: Tensor, delta: Tensor, U: Tensor, V: Tensor, **geometry: Any
) -> reference.RayleighQuotients:
    k = geometry.pop("kernel_size")
    a = F.conv2d(x, V.T.reshape(-1, x.shape[1], k, k), **geometry).flatten(2)
    return four_means(a.mT, (U.T @ delta.flatten(2)).mT)


def form_c_by_unfold(x: Tensor, delta: Tensor, U: Tensor, V: Tensor, **geometry: Any) -> tuple[Tensor, Tensor]:
    rows, errors = F.unfold(x, **geometry).mT.flatten(0, 1), delta.flatten(2).mT.flatten(0, 1)
    C_A, C_d = rows.T @ rows / len(rows), errors.T @ errors / len(x)
    return ((C_d @ U) * U).sum(0), ((C_A @ V) * V).sum(0)


def form_c_by_ours(x: Tensor, delta: Tensor, U: Tensor, V: Tensor, **geometry: Any) -> tuple[Tensor, Tensor]:
    C_A, C_d = input_factor(x, **geometry), output_factor(delta, convolution=True)
    return ((C_d @ U) * U).sum(0), ((C_A @ V) * V).sum(0)


def multiply(x: Tensor, delta: Tensor, U: Tensor, V: Tensor) -> reference.RayleighQuotients:
    flat = (x.flatten(1, -2), delta.flatten(1, -2)) if x.dim() > 2 else (x.unsqueeze(1), delta.unsqueeze(1))
    return four_means(flat[0] @ V, flat[1] @ U)


def multiply_in_chunks(x: Tensor, delta: Tensor, U: Tensor, V: Tensor) -> reference.RayleighQuotients:
    rows = max(1, 1024 * x.shape[0] * x.shape[-1] // x.numel())
    parts = [multiply(a, d, U, V) for a, d in zip(x.split(rows), delta.split(rows))]
    return reference.RayleighQuotients(*(torch.stack(field).mean(0) for field in zip(*parts)))


def form_c(x: Tensor, delta: Tensor, U: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    rows, errors = x.flatten(0, -2), delta.flatten(0, -2)
    C_A, C_d = rows.T @ rows / len(rows), errors.T @ errors / len(x)
    return ((C_d @ U) * U).sum(0), ((C_A @ V) * V).sum(0)


def exact(x: Tensor, delta: Tensor, U: Tensor, V: Tensor, **geometry: Any) -> reference.RayleighQuotients:
    """The reference in float64, a few samples at a time."""
    size = max(1, len(x) // 16)
    parts = [
        reference.rayleigh_quotients(a.double(), d.double(), U.double(), V.double(), **geometry)
        for a, d in zip(x.split(size), delta.split(size))
    ]
    return reference.RayleighQuotients(*(torch.stack(field).mean(0) for field in zip(*parts)))


def worst_error(found: Any, expected: reference.RayleighQuotients) -> float:
    return max(float(((a - b).abs() / b.abs()).max()) for a, b in zip(found, expected))


def rows_of(
    case: str, methods: dict[str, Callable[..., Any]], operands: tuple[Tensor, ...], **geometry: Any
) -> list[Row]:
    x, delta, U, V = operands
    calls = {name: lambda f=f: f(x, delta, U, V, **geometry) for name, f in methods.items()}
    timings = interleaved(calls, peer=next(iter(calls)), rounds=7)
    expected = exact(x, delta, U, V, **geometry)
    rows = []
    for name, timing in timings.items():
        peak = peak_extra_mebibytes(calls[name], lambda f=methods[name]: f(x[:1], delta[:1], U, V, **geometry))
        error = worst_error(calls[name](), expected)
        rows.append(Row(case, name, timing.seconds * 1e3, timing.ratio, error, peak, {"spread": timing.spread}))
    return rows


def bench(quick: bool = True) -> list[Row]:
    torch.manual_seed(0)
    rows: list[Row] = []
    for B, C, side, k, stride, m, K in CONVOLUTIONS + ([] if quick else MORE_CONVOLUTIONS):
        geometry = {"kernel_size": k, "stride": stride, "padding": k // 2}
        out = (side + 2 * (k // 2) - k) // stride + 1
        operands = (
            torch.randn(B, C, side, side),
            torch.randn(B, m, out, out),
            torch.randn(m, K),
            torch.randn(C * k * k, K),
        )
        methods = {
            "F.unfold, matmul": unfold_and_multiply,
            "F.unfold in chunks": unfold_in_chunks,
            "F.conv2d with V": convolve_with_directions,
            "form C by F.unfold (2 of 4)": form_c_by_unfold,
            "form C by input_factor (2 of 4)": form_c_by_ours,
            "rayleigh_quotients": rayleigh_quotients,
        }
        case = f"B={B} {C}@{side} k={k} s={stride} → {m}, K={K}"
        rows += rows_of(case, methods, operands, **geometry)
    for leading, n, m, K in LINEAR + ([] if quick else MORE_LINEAR):
        operands = (torch.randn(*leading, n), torch.randn(*leading, m), torch.randn(m, K), torch.randn(n, K))
        methods = {
            "matmul, square, mean": multiply,
            "matmul in chunks": multiply_in_chunks,
            "form C (2 of 4)": form_c,
            "rayleigh_quotients": rayleigh_quotients,
        }
        case = f"{'×'.join(map(str, leading))} rows {n} → {m}, K={K}"
        rows += rows_of(case, methods, operands)
    return rows
