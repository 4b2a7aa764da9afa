"""spectral_newton on an H100 by count, beside Newton–Schulz: `python -m benchmarks.predict_newton_gpu --out FILE`.

No GPU has run this. A time is the sum over operand types of counted operations divided by the peak rate of that type,
or the bytes divided by the peak bandwidth where that is more; launches, latency and imperfect use come on top, for us
as for the peer. Counted are

- the library path: calls, bytes and operations of `count_newton_calls`, in the widest dtype that it takes
  (`library_dtype`), without tensor cores;
- the blocked kernel (csrc/cuda/spectral_newton_blocked.cu), α ≤ 2: n(n + 128)N for R, n³ for each pole and 2n²N for
  f(R) G, three bfloat16 products each; matrices of n ≤ 160 in float32. Bytes: G twice, T once, R and M written and
  read once; the sweeps of a chunk stay in the L2 cache, whose traffic counts apart;
- Newton–Schulz: five steps of 4n²N + 2n³ in bfloat16, bytes of five times X, A and B once each.

Poles are those of the default tolerance of accelerators, 1e-3, in the mode rms. `spectral_newton` does not choose the
blocked kernel: its products err by 1e-5, and the bound for the worst matrix asks for float64 at d = 0.1 and n ≥ 512.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.count_newton_calls import MODELS
from benchmarks.count_newton_calls import count as count_calls
from spectral_ext.ops.spectral_newton.partial_fractions import extent_of
from spectral_ext.ops.spectral_newton.partial_fractions_torch import device_fits, precision_for

RATES = {"bfloat16": 989e12, "float32": 67e12, "float64": 34e12, "bytes": 3.35e12, "L2": 5.5e12}
"""Peaks of an H100 SXM: dense tensor cores, float32 and float64 without them, HBM3; L2 as microbenchmarks report it."""
ALPHAS = (0.5, 1.0, 1.5, 2.0)
DAMPING, MODE, TOLERANCE = 0.1, "rms", 1e-3
TILE, REGISTERS, CHUNK_BYTES = 128, 160, 32 * 2**20


def sides(shapes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    return [(min(shape), max(shape)) for shape in shapes]


def poles(alpha: float, n: int) -> int:
    return max(1, len(device_fits(alpha, extent_of(alpha, DAMPING, MODE, n), TOLERANCE)[-1].poles))


def blocked(shapes: Sequence[tuple[int, int]], alpha: float) -> dict[str, float]:
    """Operations in products of each type, and bytes."""
    total = dict.fromkeys(("bfloat16", "float32", "bytes", "L2"), 0.0)
    for n, columns in sides(shapes):
        terms, padded = poles(alpha, n), -(-n // TILE) * TILE
        total["bytes"] += 4 * (3 * n * columns + 2 * n * n)
        if n <= REGISTERS:
            total["float32"] += 4 * n * n * columns + 2 * n**3 * terms
            continue
        total["bfloat16"] += 3 * (padded * (padded + TILE) * columns + terms * padded**3 + 2 * padded**2 * columns)
        total["float32"] += terms * (padded / TILE) * 2 * TILE**3  # the pivots
        total["bytes"] += 4 * (1 + terms) * padded**2
        total["L2"] += terms * (padded / TILE) * 4 * (padded**2 + 4 * padded * TILE)
    return total


def launches(shapes: Sequence[tuple[int, int]], alpha: float) -> int:
    """One call per shape, in chunks of CHUNK_BYTES."""
    total = 0
    for (n, _), count in Counter(sides(shapes)).items():
        side = -(-n // TILE)
        each = 4 * (side * (side + 1) // 2 + 2 * side + 1) * TILE**2
        chunks = -(-count * poles(alpha, n) // max(1, CHUNK_BYTES // each))
        total += 4 if n <= REGISTERS else 4 + 3 * side * chunks
    return total


def newton_schulz(shapes: Sequence[tuple[int, int]]) -> dict[str, float]:
    return {
        "bfloat16": float(sum(5 * (4 * n * n * columns + 2 * n**3) for n, columns in sides(shapes))),
        "bytes": float(sum(5 * 2 * (3 * n * columns + 4 * n * n) for n, columns in sides(shapes))),
    }


def milliseconds(counted: dict[str, float]) -> float:
    moved = ("bytes", "L2")
    arithmetic = sum(number / RATES[key] for key, number in counted.items() if key not in moved)
    return 1e3 * max(arithmetic, *(counted.get(key, 0.0) / RATES[key] for key in moved))


def precision(alpha: float, n: int) -> str:
    extent = extent_of(alpha, DAMPING, MODE, n)
    fit = device_fits(alpha, extent, TOLERANCE)[-1]
    return "float64" if precision_for(fit, extent, MODE, n, torch.float32, TOLERANCE).float64 else "float32"


def row(name: str, alpha: float) -> dict[str, Any]:
    shapes = MODELS[name]
    library, kernel, peer = count_calls(shapes, alpha, MODE), blocked(shapes, alpha), newton_schulz(shapes)
    dtypes = {precision(alpha, n) for n, _ in sides(shapes)}
    work = {max(dtypes): library["GFLOP"] * 1e9, "bytes": library["GB"] * 1e9}
    times = {"library": milliseconds(work), "blocked": milliseconds(kernel), "newton_schulz": milliseconds(peer)}
    return {
        "set": name,
        "alpha": alpha,
        "library_calls": library["calls"],
        "library_GB": library["GB"],
        "library_GFLOP": library["GFLOP"],
        "library_dtype": max(dtypes),
        "blocked_GB": round(kernel["bytes"] / 1e9, 2),
        "blocked_L2_GB": round(kernel["L2"] / 1e9, 2),
        "blocked_bfloat16_GFLOP": round(kernel["bfloat16"] / 1e9, 1),
        "blocked_launches": launches(shapes, alpha),
        "newton_schulz_GFLOP": round(peer["bfloat16"] / 1e9, 1),
        "ms": {key: round(value, 3) for key, value in times.items()},
        "blocked_over_newton_schulz": round(times["blocked"] / times["newton_schulz"], 2),
        "library_over_newton_schulz": round(times["library"] / times["newton_schulz"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out")
    arguments = parser.parse_args()
    rows = [row(name, alpha) for name in MODELS for alpha in ALPHAS]
    for found in rows:
        print("  ".join(f"{key} {value}" for key, value in found.items()))
    if arguments.out:
        with open(arguments.out, "w") as file:
            json.dump({"measured": False, "rates": RATES, "damping": DAMPING, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
