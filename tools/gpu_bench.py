"""Times of the CUDA kernels beside their peers, as medians of CUDA-graph replays, interleaved; the last line is JSON.

Run by tools/gpu_check.py. Ratios are peer / ours; bytes and operations give the share of what the device can do.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from spectral_ext.ops import input_factor
from spectral_ext.ops.rayleigh_quotients import rayleigh_quotients

ROUNDS, INNER = 15, 10


def unfold_matmul(x: torch.Tensor, k: int, padding: int) -> torch.Tensor:
    patches = F.unfold(x, k, padding=padding).transpose(1, 2).reshape(-1, x.shape[1] * k * k)
    return patches.mT @ patches / len(patches)


def graph_of(run: Callable[[], object]) -> Callable[[], None]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(INNER):
            run()
    return graph.replay


def interleaved(runs: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median milliseconds of each."""
    graphs = {name: graph_of(run) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, replay in graphs.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            replay()
            end.record()
            end.synchronize()
            times[name].append(start.elapsed_time(end) / INNER)
    return {name: statistics.median(values) for name, values in times.items()}


def guarded(table: dict, name: str, runs: dict[str, Callable[[], object]], **extra: float) -> None:
    try:
        table[name] = {**{key: round(ms, 4) for key, ms in interleaved(runs).items()}, **extra}
    except Exception as problem:
        table[name] = {"failed": f"{type(problem).__name__}: {problem}"}
    print(name, table[name], flush=True)
    torch.cuda.empty_cache()


def with_tf32(run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    def inner() -> torch.Tensor:
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            return run()
        finally:
            torch.backends.cuda.matmul.allow_tf32 = False

    return inner


def main() -> None:
    torch.manual_seed(0)
    table: dict[str, dict] = {}
    big = torch.empty(1 << 28, device="cuda")
    guarded(table, "copy of 1 GiB", {"ms": lambda big=big: big.clone()}, GB=2 * big.numel() * 4 / 1e9)
    del big
    for C, H in ((64, 32), (128, 16), (256, 8), (512, 4)):
        x = torch.randn(128, C, H, H, device="cuda")
        for dtype in (torch.float32, torch.bfloat16):
            y = x.to(dtype)
            last = y.contiguous(memory_format=torch.channels_last)
            runs = {
                "ours": lambda y=y: input_factor(y, kernel_size=3, padding=1),
                "ours, channels_last in and out": lambda y=last: input_factor(
                    y, kernel_size=3, padding=1, order="channels_last"
                ),
                "unfold + matmul": lambda y=y: unfold_matmul(y, 3, 1),
            }
            if dtype == torch.float32:
                runs["unfold + matmul, TF32"] = with_tf32(lambda y=y: unfold_matmul(y, 3, 1))
            guarded(table, f"input_factor {C}@{H} k3 B128 {dtype}", runs)
    rows = torch.randn(16384, 768, device="cuda")
    guarded(table, "input_factor 16384x768", {"ours": lambda: input_factor(rows), "x.T @ x": lambda: rows.T @ rows})
    for B, C, H, K in ((128, 64, 32, 20), (128, 256, 8, 20)):
        x, delta = torch.randn(B, C, H, H, device="cuda"), torch.randn(B, C, H, H, device="cuda")
        U, V = torch.randn(C, K, device="cuda"), torch.randn(9 * C, K, device="cuda")

        def unfolded(x=x, delta=delta, U=U, V=V) -> torch.Tensor:
            a = F.unfold(x, 3, padding=1).transpose(1, 2) @ V
            d = delta.flatten(2).mT @ U
            return torch.stack([(d * d).sum((0, 1)), (a * a).sum((0, 1)), (d * d * a * a).sum((0, 1))])

        def ours(x=x, delta=delta, U=U, V=V) -> object:
            return rayleigh_quotients(x, delta, U, V, kernel_size=3, padding=1)

        gigabytes = 2 * x.numel() * 4 / 1e9
        guarded(table, f"rayleigh {C}@{H} K{K}", {"ours": ours, "unfold + matmul": unfolded}, GB=gigabytes)
    for batch, m, n in ((8, 64, 576), (8, 128, 1152)):
        G = torch.randn(batch, m, n, device="cuda")
        one = torch.ones(batch, 1, device="cuda")
        out, status = torch.empty_like(G), torch.empty(batch, dtype=torch.int32, device="cuda")

        def small(G=G, one=one, out=out, status=status) -> None:
            torch.ops.spectral_ext.spectral_newton_poles_(out, status, G, 0 * one[:, 0], one, one, 1.0, 0.0)

        def library(G=G, m=m) -> torch.Tensor:
            R = torch.baddbmm(torch.eye(m, device="cuda"), G, G.mT)
            return torch.cholesky_solve(G, torch.linalg.cholesky_ex(R).L)

        def newton_schulz(G=G) -> torch.Tensor:
            X = G.bfloat16()
            for _ in range(5):
                A = X @ X.mT
                X = 3.4445 * X + (-4.775 * A + 2.0315 * A @ A) @ X
            return X

        guarded(
            table,
            f"spectral_newton alpha=2 {batch}x{m}x{n}",
            {"ours": small, "torch cholesky": library, "Newton-Schulz bf16": newton_schulz},
        )
    print(json.dumps(table))


if __name__ == "__main__":
    main()
