"""Random problems for spectral_newton and spectral_map against the float64 SVD.

`python -m benchmarks.fuzz_spectral_newton` counts what was right, what was refused, and every violation of the
tolerance, in random dtypes, layouts, spectra, modes, solvers, α, d and tolerances, with matrices that are zero,
denormal or not finite. The reference works with logarithms, so that no power of σ overflows, and allows for what
rounding of G itself does to singular values in float64.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spectral_ext.ops.spectral_newton import SOLVERS, SpectralMap, spectral_map, spectral_newton
from spectral_ext.ops.spectral_newton.choose_solver import default_tolerance
from spectral_ext.ops.spectral_newton.partial_fractions import extent_of
from spectral_ext.ops.spectral_newton.partial_fractions_torch import device_fits, rational_

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ROUNDING = {torch.float32: 1.2e-7, torch.float64: 2.3e-16, torch.bfloat16: 8e-3, torch.float16: 1e-3}
SIDES = (1, 2, 3, 5, 8, 13, 16, 17, 31, 33, 64, 65, 100, 130)
KINDS = ("gauss", "power", "low rank", "one", "equal", "tiny", "huge", "denormal", "spike", "zero", "not finite")
MAPS = (
    SpectralMap.named("spectral_newton", alpha=1.0, damping=0.1),
    SpectralMap.named("spectral_newton", alpha=3.0, damping=0.1),
    SpectralMap.named("polar", floor=1e-2),
    SpectralMap.named("power", exponent=0.5, floor=1e-3),
    SpectralMap.named("power", exponent=0.25, floor=1e-2),
    SpectralMap.named("soft_threshold", threshold=0.1),
    SpectralMap.named("hard_threshold", threshold=0.1, width=0.02),
    SpectralMap.named("wiener", noise=0.01),
    SpectralMap.named("clip", limit=0.3),
    SpectralMap.named("log", scale=10.0),
)


def matrices(rng: np.random.Generator, dtype: torch.dtype) -> tuple[str, Tensor]:
    """A kind of spectrum and a tensor (…, m, n) of it."""
    batch = [int(rng.integers(1, 4)) for _ in range(int(rng.choice([0, 1, 2], p=[0.5, 0.35, 0.15])))]
    m, n = (int(rng.choice(SIDES)) for _ in range(2))
    kind = str(rng.choice(KINDS))
    G = torch.from_numpy(rng.standard_normal((*batch, m, n)))
    k = torch.arange(1, min(m, n) + 1, dtype=torch.float64)
    spectra = {
        "power": k ** -rng.uniform(0.2, 4.0),
        "equal": torch.ones_like(k),
        "low rank": (k <= max(1, len(k) // 3)).double(),
        "spike": torch.where(k == 1, 1.0, 10.0 ** -rng.uniform(1, 6)),
    }
    if kind in spectra:
        U, _, Vh = torch.linalg.svd(G, full_matrices=False)
        G = (U * spectra[kind]) @ Vh
    half = dtype == torch.float16
    if kind == "one":
        G.zero_()[..., 0, 0] = 3.0
    elif kind == "zero":
        G.zero_()
    elif kind in ("tiny", "huge"):
        G *= 10.0 ** (rng.uniform(1, 3 if half else 30) * (1 if kind == "huge" else -1))
    elif kind == "denormal":
        G *= 1e-6 if half else 1e-41 if dtype != torch.float64 else 1e-310
    G = G.to(dtype)
    if kind == "not finite":
        G.view(-1)[int(rng.integers(G.numel()))] = [math.nan, math.inf, -math.inf][int(rng.integers(3))]
    return kind, G.mT.contiguous().mT if rng.random() < 0.2 else G


def verdict(G: Tensor, found: Tensor, alpha: float, damping: float, mode: str, tolerance: float) -> str | None:
    """None, or what is wrong with the result of one call."""
    if found.shape != G.shape or found.dtype != G.dtype:
        return "shape or dtype"
    info = np.finfo({torch.float64: np.float64, torch.float16: np.float16}.get(G.dtype, np.float32))
    flat = zip(G.double().reshape(-1, *G.shape[-2:]).numpy(), found.double().reshape(-1, *G.shape[-2:]).numpy())
    for A, T in flat:
        if not np.isfinite(A).all():
            if not np.isnan(T).all():
                return "a matrix that is not finite is not NaN throughout"
            continue
        if not A.any():
            if T.any():
                return "a zero matrix is not zero"
            continue
        scale = np.abs(A).max()
        U, s, Vh = np.linalg.svd(A / scale, full_matrices=False)

        def transfer(s: NDArray[Any], own: NDArray[Any] = s, scale: float = scale) -> NDArray[Any]:
            log, logs = (np.log(np.maximum(v, 1e-300)) + np.log(scale) for v in (s, own))
            unit = 0.0 if mode == "absolute" else logs.max()
            if mode == "rms":
                unit = 0.5 * np.log(np.mean(own**2)) + np.log(scale)
            return np.exp(np.clip(log - np.logaddexp(alpha * log, np.log(damping) + alpha * unit), -740, 700))

        exact = (U * transfer(s)) @ Vh
        norm = np.linalg.norm(exact)
        if not np.isfinite(norm) or norm > 0.5 * float(info.max):
            continue  # the result leaves the range of the dtype
        moved = 8 * np.finfo(float).eps * s[0] * max(A.shape) ** 0.5
        unsure = [np.abs(transfer(v) - transfer(s)) for v in (s + moved, np.maximum(s - moved, 0))]
        bound = (tolerance + ROUNDING[G.dtype]) * norm + 4 * np.linalg.norm(np.maximum(*unsure))
        error = np.linalg.norm(T - exact)
        if not error <= bound + float(info.tiny) * A.size**0.5:
            return f"error {error / norm:.2e}, allowed {bound / norm:.2e}"
    return None


def newton_problem(seed: int) -> tuple[str, str, dict[str, Any]]:
    """``(solver, verdict, problem)`` of one random call."""
    rng = np.random.default_rng(seed)
    dtype = DTYPES[int(rng.choice(4, p=[0.45, 0.25, 0.15, 0.15]))]
    kind, G = matrices(rng, dtype)
    alpha = float(rng.choice([2.0, 4.0, 1.0, 3.0, 0.5, 6.0, rng.uniform(0.05, 6), rng.uniform(0.5, 3)]))
    damping = float(10.0 ** rng.uniform(-6, 3))
    mode = str(rng.choice(["absolute", "spectral", "rms"]))
    solver = str(rng.choice([*SOLVERS, "torch"], p=[0.4, 0.1, 0.15, 0.1, 0.1, 0.15]))
    asked = None if rng.random() < 0.6 else float(10.0 ** rng.uniform(-9, -2))
    tolerance = default_tolerance("cpu", dtype) if asked is None else asked
    problem = dict(seed=seed, dtype=str(dtype), shape=list(G.shape), kind=kind, alpha=alpha, damping=damping)
    problem |= dict(mode=mode, solver=solver, tolerance=tolerance)
    try:
        if solver == "torch":  # the path of accelerators
            found = torch_path(G, alpha, damping, mode, tolerance)
        else:
            found = spectral_newton(G, alpha, damping, damping_mode=mode, solver=solver, tolerance=asked)
    except ValueError:
        return solver, "refused", problem
    wrong = verdict(G, found, alpha, damping, mode, tolerance)
    return solver, "right" if wrong is None else f"WRONG: {wrong}", problem


def torch_path(G: Tensor, alpha: float, damping: float, mode: str, tolerance: float) -> Tensor:
    """T(G) by the path of accelerators, on the CPU; ValueError where it promises nothing."""
    n, extent = min(G.shape[-2:]), extent_of(alpha, damping, mode, min(G.shape[-2:]))
    reach = device_fits(alpha, extent, tolerance)[-1].reach
    norms = torch.linalg.vector_norm(G, dim=(-2, -1), dtype=torch.float64).flatten().tolist()
    for norm in norms:
        if (norm < 1e-140 and G.any()) or (mode == "absolute" and norm / damping ** (1 / alpha) > math.sqrt(reach)):
            raise ValueError("float64 has no room, or beyond the reach of the poles")
    flat = G.reshape(-1, *G.shape[-2:])
    wide = flat if flat.shape[1] <= flat.shape[2] else flat.mT
    out = torch.empty_like(wide)
    rational_([wide], [out], alpha, damping, mode, extent, tolerance)
    return (out if flat.shape[1] == n else out.mT).reshape(G.shape)


def map_problem(seed: int) -> tuple[str, str, dict[str, Any]]:
    """``(map, verdict, problem)``: one map of one random matrix in float64, in units of its certified maximum."""
    rng = np.random.default_rng(seed)
    f = MAPS[seed % len(MAPS)]
    f = SpectralMap(f.name, f.parameters, unit=str(rng.choice(["absolute", "spectral", "rms", "frobenius"])))
    m, n = (int(rng.choice(SIDES)) for _ in range(2))
    U, _, Vh = np.linalg.svd(rng.standard_normal((m, n)), full_matrices=False)
    s = np.sort(10.0 ** -rng.uniform(0, rng.uniform(0.01, 8), min(m, n)))[::-1] * 10.0 ** rng.uniform(-1, 1)
    tolerance = float(10.0 ** rng.uniform(-3, -1.5))
    problem = dict(seed=seed, map=f.name, unit=f.unit, shape=[m, n], tolerance=tolerance)
    units = dict(absolute=1.0, spectral=s[0], rms=np.sqrt(np.mean(s**2)), frobenius=np.linalg.norm(s))
    bounds = dict(absolute=1.2 * s[0], spectral=1.0, rms=len(s) ** 0.5, frobenius=1.0)
    try:
        found = spectral_map(torch.from_numpy((U * s) @ Vh), f, tolerance).numpy()
    except ValueError:
        return f.name, "refused", problem
    exact = (U * f(s / units[f.unit])) @ Vh
    largest = f(np.linspace(0.0, bounds[f.unit], 4001)).max()
    error = np.linalg.norm(found - exact, 2) / largest
    return f.name, "right" if error <= tolerance else f"WRONG: {error:.2e} of {tolerance:.2e}", problem


def run(first: int, count: int, maps: int, seconds: float = math.inf) -> dict[str, Any]:
    """Counts by (solver or map, verdict), and every problem that went wrong."""
    counts: Counter[tuple[str, str]] = Counter()
    wrong = []
    start = time.monotonic()
    for problem, number in ((newton_problem, count), (map_problem, maps)):
        for seed in range(first, first + number):
            if time.monotonic() - start > seconds:
                break
            what, result, found = problem(seed)
            counts[what, result.split(":")[0]] += 1
            if result.startswith("WRONG"):
                wrong.append({**found, "verdict": result})
    return {"counts": {f"{what} {result}": n for (what, result), n in sorted(counts.items())}, "wrong": wrong}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--maps", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--out")
    arguments = parser.parse_args()
    result = run(arguments.first, arguments.count, arguments.maps, arguments.seconds)
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.out:
        with open(arguments.out, "w") as file:
            file.write(text)
    raise SystemExit(bool(result["wrong"]))
