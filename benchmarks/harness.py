"""Honest timing of callables side by side: interleaved rounds, CPU time, medians of ratios; peak memory in a fork.

Every benchmark file has `bench(quick: bool) -> list[Row]`: peers and ours in the same run on the same input, with one
Row per (case, method). `python -m benchmarks` prints them all; `--json FOLDER` writes them with the machine's
description.
"""

from __future__ import annotations

import ctypes
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch


@dataclass
class Row:
    """One method on one case. `ratio` is peer time / this time: above 1 this method is faster than the case's peer."""

    case: str
    method: str
    milliseconds: float
    ratio: float
    error: float | None = None
    peak_mebibytes: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class Timing:
    seconds: float
    ratio: float
    spread: tuple[float, float]


def interleaved(
    methods: Mapping[str, Callable[[], Any]],
    peer: str,
    *,
    rounds: int = 7,
    warmup: int = 1,
    threads: int = 1,
    wall: bool = False,
    minimum_seconds: float = 0.02,
) -> dict[str, Timing]:
    """Median seconds of each method, and the median over rounds of peer time / method time, with its quartiles.

    Each round runs every method once (repeated until `minimum_seconds` have passed), so that a drifting machine
    drifts for all. CPU time of the process by default; wall time for GPU work, which is synchronised, and for threads.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    clock = time.perf_counter if wall or threads > 1 else time.process_time
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    try:
        repeats = {}
        for name, run in methods.items():
            for _ in range(max(warmup, 1)):
                synchronize()
                start = time.perf_counter()
                run()
                synchronize()
                once = time.perf_counter() - start
            repeats[name] = max(1, round(minimum_seconds / max(once, 1e-9)))
        seconds: dict[str, list[float]] = {name: [] for name in methods}
        for _ in range(rounds):
            for name, run in methods.items():
                synchronize()
                start = clock()
                for _ in range(repeats[name]):
                    run()
                synchronize()
                seconds[name].append((clock() - start) / repeats[name])
    finally:
        torch.set_num_threads(before)
    result = {}
    for name, values in seconds.items():
        ratios = sorted(p / max(v, 1e-12) for p, v in zip(seconds[peer], values))
        quartiles = (ratios[len(ratios) // 4], ratios[(3 * len(ratios)) // 4])
        result[name] = Timing(statistics.median(values), statistics.median(ratios), quartiles)
    return result


def peak_extra_mebibytes(run: Callable[[], Any], warm: Callable[[], Any] = lambda: None) -> float:
    """Growth of the resident set's high-water mark while `run` executes once, in a forked child (one thread).

    `warm`, the same on a small input, runs first: a forked child has none of the program's pages mapped.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            warm()
            ctypes.CDLL(None).malloc_trim(0)  # what warm() freed must be asked for again
            with open("/proc/self/clear_refs", "w") as handle:
                handle.write("5")  # resets VmHWM to the present resident set
            before = _status("VmRSS")
            run()
            os.write(writer, str((_status("VmHWM") - before) / 1024).encode())
        finally:
            os._exit(0)
    os.close(writer)
    text = os.read(reader, 64).decode()
    os.close(reader)
    os.waitpid(child, 0)
    return float(text) if text else float("nan")


def _status(key: str) -> int:
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def machine() -> dict[str, str]:
    """Where the numbers were taken."""
    with open("/proc/cpuinfo") as lines:
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": f"{names[0] if names else platform.machine()} × {os.cpu_count()}",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def as_json(rows: list[Row]) -> dict[str, Any]:
    return {"machine": machine(), "rows": [asdict(row) for row in rows]}
