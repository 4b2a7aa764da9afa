"""Times of the ops beside their peers at their best, with the error of each, and what the device could do at all.

    python tools/gpu_bench.py --out bench.json [--device cpu] [--only factors rayleigh newton] [--seconds 500]

Each method runs as a CUDA graph where it can be captured (else eagerly, and the row says so), interleaved with its
peers, with the L2 cache overwritten before each run; the figure is the median in milliseconds. ``error`` is the largest
deviation from float64, relative to the largest entry. ``MB`` and ``GFLOP`` are what the problem itself needs;
``limit_ms`` is the greater of both at the bandwidth and the float32 rate that this run measures for copy and cuBLAS.
Newton-Schulz approximates U V^T, another map than ours: its error shows how far apart they are, not how exact it is.
A row is written as soon as it is measured. ``--device cpu`` rehearses with small sizes.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from spectral_ext import reference
from spectral_ext.ops import input_factor
from spectral_ext.ops.rayleigh_quotients import rayleigh_quotients
from spectral_ext.ops.spectral_newton import spectral_newton
from spectral_ext.ops.spectral_newton.partial_fractions import extent_of
from spectral_ext.ops.spectral_newton.partial_fractions_torch import constants, device_fits
from spectral_ext.optim import SpectralNewton

Runs = dict[str, Callable[[], Any]]
FLUSH_BYTES = 256 << 20
"""Several times the L2 cache of any supported device."""
NEWTON_SETS: dict[str, list[tuple[int, int, int]]] = {  # count, rows, columns
    "ResNet-18": [
        *[(4, 64, 576), (1, 128, 576), (3, 128, 1152), (1, 128, 64), (1, 256, 1152), (3, 256, 2304), (1, 256, 128)],
        *[(1, 512, 2304), (3, 512, 4608), (1, 512, 256), (1, 1000, 512)],
    ],
    "GPT-2 small": [(12, 2304, 768), (12, 768, 768), (12, 3072, 768), (12, 768, 3072)],
    "1B": [(32, 2048, 2048), (32, 512, 2048), (32, 8192, 2048), (16, 2048, 8192)],
}
ALPHAS = (0.5, 1.0, 2.0, 3.0)


@contextlib.contextmanager
def tf32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def with_tf32(run: Callable[[], Any]) -> Callable[[], Any]:
    def inner() -> Any:
        with tf32():
            return run()

    return inner


class Bench:
    def __init__(self, device: str, out: Path, seconds: float) -> None:
        self.device, self.out, self.deadline = device, out, time.monotonic() + seconds
        self.cuda = device == "cuda"
        self.rounds = 15 if self.cuda else 2
        self.table: dict[str, Any] = {}
        self.flushed = torch.empty(FLUSH_BYTES if self.cuda else 1, dtype=torch.uint8, device=device)
        self.bytes_per_ms, self.flop_per_ms = self.limits()

    def limits(self) -> tuple[float, float]:
        """Bandwidth of a copy and float32 rate of cuBLAS, as measured here."""
        count, n = (1 << 28, 8192) if self.cuda else (1 << 20, 256)
        big, square = torch.empty(count, device=self.device), torch.randn(n, n, device=self.device)
        times = self.times({"copy": lambda: big.clone(), "matmul": lambda: square @ square})[0]
        self.table["limits"] = {
            "GB/s": round(8 * count / times["copy"] / 1e6, 1),
            "float32 TFLOP/s": round(2 * n**3 / times["matmul"] / 1e9, 2),
        }
        return 8 * count / times["copy"], 2 * n**3 / times["matmul"]

    def prepared(self, run: Callable[[], Any]) -> tuple[Callable[[], Any], bool]:
        """The run as a graph where it can be captured; whether it could."""
        for _ in range(2):
            run()
        if not self.cuda:
            return run, False
        try:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                run()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                run()
            return graph.replay, True
        except Exception:
            torch.cuda.synchronize()
            return run, False

    def once(self, run: Callable[[], Any]) -> float:
        self.flushed.fill_(1)
        if not self.cuda:
            start = time.perf_counter()
            run()
            return (time.perf_counter() - start) * 1e3
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)

    def times(self, runs: Runs) -> tuple[dict[str, float], list[str]]:
        """Median milliseconds of each, and which of them ran eagerly."""
        ready = {name: self.prepared(run) for name, run in runs.items()}
        found: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(self.rounds):
            for name, (run, _) in ready.items():
                found[name].append(self.once(run))
        eager = [name for name, (_, graphed) in ready.items() if not graphed]
        return {name: statistics.median(values) for name, values in found.items()}, eager

    def row(self, name: str, runs: Runs, want: Tensor | None, needed: tuple[float, float], pick: Any = None) -> None:
        """``needed``: bytes and operations of the problem; ``pick`` takes what ``want`` is compared with."""
        if time.monotonic() > self.deadline:
            self.table[name] = {"skipped": "no time left in this call"}
        else:
            try:
                row: dict[str, Any] = {"MB": round(needed[0] / 1e6, 2), "GFLOP": round(needed[1] / 1e9, 3)}
                row["limit_ms"] = round(max(needed[0] / self.bytes_per_ms, needed[1] / self.flop_per_ms), 4)
                times, eager = self.times(runs)
                row["ms"] = {key: round(value, 4) for key, value in times.items()}
                if want is not None:
                    row["error"] = {key: self.error(run, want, pick) for key, run in runs.items()}
                if self.cuda and eager:
                    row["eager"] = eager
                self.table[name] = row
            except Exception as problem:
                self.table[name] = {"failed": f"{type(problem).__name__}: {problem}"[:500]}
        print(name, self.table[name], flush=True)
        self.out.write_text(json.dumps(self.table, indent=1) + "\n")
        if self.cuda:
            torch.cuda.empty_cache()

    @staticmethod
    def error(run: Callable[[], Any], want: Tensor, pick: Any) -> float:
        got = run() if pick is None else pick(run())
        return float((got.double() - want).abs().max() / want.abs().max().clamp_min(1e-300))


def gram_of_patches(x: Tensor, dtype: torch.dtype) -> Tensor:
    patches = F.unfold(x.to(dtype), 3, padding=1).transpose(1, 2).reshape(-1, 9 * x.shape[1])
    return patches.mT @ patches / len(patches)


def factors(bench: Bench) -> None:
    shapes = [(64, 32), (128, 16), (256, 8), (512, 4)] if bench.cuda else [(8, 6)]
    for batch in (128, 2048) if bench.cuda else (4,):
        for C, H in shapes:
            torch.manual_seed(0)
            x = torch.randn(batch, C, H, H, device=bench.device)
            parts = [reference.input_factor(part.double(), kernel_size=3, padding=1) for part in x.split(64)]
            want = torch.stack(parts).mean(0)  # of equal size
            n, rows = 9 * C, batch * H * H
            needed = (4.0 * (x.numel() + n * n), 1.0 * rows * n * (n + 1))
            last, half = x.contiguous(memory_format=torch.channels_last), x.bfloat16()
            runs: Runs = {
                "ours": lambda x=x: input_factor(x, kernel_size=3, padding=1),
                "ours, channels_last": lambda x=last: input_factor(x, kernel_size=3, padding=1),
                "ours, bf16": lambda x=half: input_factor(x, kernel_size=3, padding=1),
                "unfold + cuBLAS": lambda x=x: gram_of_patches(x, torch.float32),
                "unfold + cuBLAS, TF32": with_tf32(lambda x=x: gram_of_patches(x, torch.float32)),
                "unfold + cuBLAS, bf16": lambda x=half: gram_of_patches(x, torch.bfloat16),
            }
            bench.row(f"input_factor {C}@{H} 3x3 B{batch}", runs, want, needed)
    for rows, n in ((16384, 768), (16384, 3072)) if bench.cuda else ((40, 24),):
        x = torch.randn(rows, n, device=bench.device)
        half = x.bfloat16()
        runs = {
            "ours": lambda x=x: input_factor(x),
            "ours, bf16": lambda x=half: input_factor(x),
            "x.T @ x": lambda x=x: x.mT @ x / len(x),
            "x.T @ x, TF32": with_tf32(lambda x=x: x.mT @ x / len(x)),
            "x.T @ x, bf16": lambda x=half: x.mT @ x / len(x),
        }
        want = x.double().mT @ x.double() / rows
        bench.row(f"input_factor {rows}x{n}", runs, want, (4.0 * (x.numel() + n * n), 1.0 * rows * n * (n + 1)))


def rayleigh(bench: Bench) -> None:
    K = 20
    shapes = [(64, 32), (256, 8)] if bench.cuda else [(6, 5)]
    for batch in (128, 2048) if bench.cuda else (3,):
        for C, H in shapes:
            torch.manual_seed(0)
            x, delta = (torch.randn(batch, C, H, H, device=bench.device) for _ in range(2))
            U, V = torch.randn(C, K, device=bench.device), torch.randn(9 * C, K, device=bench.device)

            def peer(x: Tensor = x, delta: Tensor = delta, U: Tensor = U, V: Tensor = V) -> Any:
                return reference.rayleigh_quotients(x, delta, U, V, kernel_size=3, padding=1)

            parts = zip(x.double().split(64), delta.double().split(64))  # of equal size
            exact = [peer(a, d, U.double(), V.double()).sum_of_products for a, d in parts]
            want = torch.stack(exact).mean(0)
            runs: Runs = {
                "ours": lambda x=x, d=delta, U=U, V=V: rayleigh_quotients(x, d, U, V, kernel_size=3, padding=1),
                "unfold + cuBLAS": peer,
                "unfold + cuBLAS, TF32": with_tf32(peer),
            }
            needed = (8.0 * x.numel(), 2.0 * batch * H * H * K * 10 * C)
            bench.row(f"rayleigh {C}@{H} 3x3 K{K} B{batch}", runs, want, needed, lambda r: r.sum_of_products)


def newton_schulz(G: Tensor) -> Tensor:
    """Muon's five iterations, on the wide side, of the normalised matrices in bfloat16."""
    X = G.bfloat16() if G.shape[-2] <= G.shape[-1] else G.mT.bfloat16()
    X = X / (X.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        A = X @ X.mT
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
    return X if G.shape[-2] <= G.shape[-1] else X.mT


def own_kernels(stacks: list[Tensor], alpha: float, damping: float) -> list[Tensor]:
    """T in the mode rms, α ≤ 2, by the CUDA kernels alone: in registers up to a small side of 160, blocked beyond."""
    results = []
    for G in stacks:
        n = min(G.shape[-2:])
        fit = device_fits(alpha, extent_of(alpha, damping, "rms", n), 1e-3)[-1]
        unit = torch.linalg.vector_norm(G, dim=(-2, -1)) / n**0.5
        root = damping ** (1 / alpha)
        gain = root / damping * unit ** (1 - alpha)
        scaled = G / (root * unit)[:, None, None]
        poles, residues = (constants(numbers, G.device).float() for numbers in (fit.poles, fit.residues))
        out, status = torch.empty_like(G), torch.empty(len(G), dtype=torch.int32, device=G.device)
        torch.ops.spectral_ext.spectral_newton_poles_(
            out,
            status,
            scaled,
            fit.constant * gain,
            gain[:, None] * residues,
            poles.expand(len(G), -1).contiguous(),
            1.0,
            0.0,
        )
        results.append(out)
    return results


def newton(bench: Bench) -> None:
    settings = inspect.signature(SpectralNewton).parameters
    mode, damping = settings["damping_mode"].default, settings["damping"].default
    sets = NEWTON_SETS if bench.cuda else {"small": [(2, 12, 20), (1, 30, 9)]}
    compiled = torch.compile(newton_schulz) if bench.cuda else newton_schulz
    for name, shapes in sets.items():
        torch.manual_seed(0)
        # Entries fall off along both sides: spectra that decay, as gradients have.
        stacks = [torch.randn(count, m, n, device=bench.device) for count, m, n in shapes]
        for G in stacks:
            G *= torch.linspace(0, -4, G.shape[-1], device=bench.device).exp() / G.shape[-1]
        for alpha in ALPHAS:

            def ours(stacks: list[Tensor] = stacks, alpha: float = alpha) -> list[Tensor]:
                return spectral_newton(stacks, alpha, damping, damping_mode=mode, tolerance=1e-3)

            def library(stacks: list[Tensor] = stacks, alpha: float = alpha) -> list[Tensor]:
                return spectral_newton(stacks, alpha, damping, damping_mode=mode, solver="eigh")

            first = stacks[0][:1]
            want = spectral_newton(first.double(), alpha, damping, damping_mode=mode, solver="svd")
            runs: Runs = {
                "ours": ours,
                "cuSOLVER": library,
                "Newton-Schulz 5, bf16, compiled": lambda stacks=stacks: [compiled(G) for G in stacks],
            }
            if bench.cuda and alpha <= 2 and mode == "rms":

                def kernels(stacks: list[Tensor] = stacks, alpha: float = alpha) -> list[Tensor]:
                    return own_kernels(stacks, alpha, damping)

                runs["own kernels, blocked beyond n = 160"] = kernels
            if name == "1B":
                del runs["cuSOLVER"]  # minutes
            small = [(c, min(m, n), max(m, n)) for c, m, n in shapes]
            needed = (8.0 * sum(G.numel() for G in stacks), float(sum(3 * c * m * m * n for c, m, n in small)))
            bench.row(
                f"spectral_newton {name}, alpha {alpha:g}, {mode} {damping:g}", runs, want, needed, lambda r: r[0][:1]
            )


GROUPS = {"factors": factors, "newton": newton, "rayleigh": rayleigh}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--seconds", type=float, default=500, help="no row is begun after them")
    arguments = parser.parse_args()
    bench = Bench(arguments.device, arguments.out, arguments.seconds)
    for group in arguments.only:
        GROUPS[group](bench)
    return 1 if any("failed" in row for row in bench.table.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
