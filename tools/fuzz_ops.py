"""Random geometries for every CPU op except spectral_newton, against an independent float64 reference.

    python -m tools.fuzz_ops --count 20000 --seed 0 --seconds 3600

Problem i of a seed is always the same: ``--first i --count 1`` repeats one, and ``--first`` continues a run that ended.
The reference (python_tests/dense_reference.py) takes patches from torch's own convolutions and shares no code with the
ops. Prints how many problems were right, how many geometries torch and the op refused together, and each that is wrong:
a result outside the tolerance, an asymmetric factor, a modified input, or a refusal by one of the two only.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python_tests"))

import dense_reference

from spectral_ext._extension import compiled
from spectral_ext.ops import output_factor

ops = torch.ops.spectral_ext
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LAYOUTS = ("plain", "transposed", "slice", "expanded", "channels last", "offset")
LEVELS = ("baseline", "avx2", "avx512")
FACTOR_TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-11}
"""Of the Frobenius norm of the factor, by the type of the sums: far above rounding, far below a wrong pixel."""
QUOTIENT_TOLERANCE = {torch.float32: 5e-4, torch.float64: 1e-10}


@dataclass
class Problem:
    """What a seed draws: an input, the eight geometry arguments of the op schemas, and the options of each op."""

    x: Tensor
    arguments: tuple[Any, ...]
    directions: int
    outputs: int
    """Of a group."""
    layout: str
    channels_last_order: bool
    beta: float
    scale: float
    scratch_bytes: int
    level: str

    def __str__(self) -> str:
        x = f"x {tuple(self.x.shape)} {self.x.dtype} strides {self.x.stride()}"
        return f"{x}, geometry {self.arguments}, K {self.directions}, {self.layout}, {self.level}, beta {self.beta}"


def laid_out(shape: list[int], dtype: torch.dtype, layout: str) -> Tensor:
    """Normal numbers in a memory layout of that name."""
    if layout == "transposed":
        return torch.randn(shape[::-1]).to(dtype).permute(*range(len(shape) - 1, -1, -1))
    if layout == "slice":
        return torch.randn([2 * size + 1 for size in shape]).to(dtype)[tuple(slice(1, None, 2) for _ in shape)]
    if layout == "expanded":
        return torch.randn(1, *shape[1:]).to(dtype).expand(shape)
    if layout == "channels last":
        return torch.randn(shape[0], *shape[2:], shape[1]).to(dtype).movedim(-1, 1)
    if layout == "offset":
        return torch.randn(1 + torch.Size(shape).numel()).to(dtype)[1:].view(shape)
    return torch.randn(shape).to(dtype)


def draw(seed: int, index: int) -> Problem:
    """Problem ``index`` of a seed. One in twelve is a linear layer; some geometries leave no output position."""
    rng = random.Random(seed * 1_000_003 + index)
    torch.manual_seed(rng.getrandbits(40))
    dtype, layout = rng.choice(DTYPES), rng.choice(LAYOUTS)
    batch = rng.choice([0, 1, 2, 3, 7, 20, 33])
    if rng.random() < 1 / 12:
        shape = [rng.choice([batch, 513, 1025]), rng.choice([1, 3, 8, 17, 33, 70])]
        arguments: tuple[Any, ...] = ([], [], [], [], 1, rng.random() < 0.5, False, [])
    else:
        dims = rng.choice([1, 2, 2, 2, 3])
        transposed, groups = rng.random() < 0.3, rng.choice([1, 1, 2, 3, 19])
        channels = groups * rng.choice([1, 1, 2, 3, 5, 17, 33] if groups < 19 else [1, 2])
        shape = [batch, channels, *(rng.randint(1, 9 if dims < 3 else 5) for _ in range(dims))]
        stride = [rng.randint(1, 3) for _ in range(dims)]
        dilation = [rng.randint(1, 3) for _ in range(dims)]
        outer = [rng.randrange(max(s, d)) if transposed else 0 for s, d in zip(stride, dilation)]
        kernel = [rng.randint(1, 4 if dims < 3 else 3) for _ in range(dims)]
        padding = [rng.randint(0, 3) for _ in range(dims)]
        arguments = (kernel, stride, padding, dilation, groups, rng.random() < 0.5, transposed, outer)
    return Problem(
        laid_out(shape, dtype, layout),
        arguments,
        directions=rng.choice([1, 2, 5, 17, 33]),
        outputs=rng.choice([1, 2, 3, 9]),
        layout=layout,
        channels_last_order=rng.random() < 0.3,
        beta=rng.choice([0.0, 0.0, 1.0, 0.5]),
        scale=rng.choice([1.0, 0.25, -2.0]),
        scratch_bytes=1 << rng.choice([0, 8, 14, 20]),
        level=rng.choice(LEVELS),
    )


def reordered(factor: Tensor, problem: Problem) -> Tensor:
    """A factor in the order of weight.movedim(1, -1).flatten(1)."""
    kernel, bias = problem.arguments[0], problem.arguments[5]
    channels = (factor.shape[-1] - bias) // torch.Size(kernel).numel()
    order = torch.arange(factor.shape[-1] - bias).view(channels, -1).t().flatten()
    if bias:
        order = torch.cat([order, torch.tensor([len(order)])])
    return factor[:, order][:, :, order]


def distance(found: Tensor, exact: Tensor, tolerance: float, what: str) -> str | None:
    if found.shape != exact.shape:
        return f"{what}: shape {tuple(found.shape)} instead of {tuple(exact.shape)}"
    error, bound = float((found.double() - exact).norm()), tolerance * float(exact.norm()) + 1e-30
    return None if error <= bound else f"{what}: error {error:.2e}, allowed {bound:.2e}"  # NaN is wrong


def check_factors(problem: Problem, rows: Tensor, wide: torch.dtype) -> list[str | None]:
    """input_factor, input_factor_, lag_sums_ and expand_lag_sums."""
    x, arguments, order = problem.x, problem.arguments, problem.channels_last_order
    plain, tolerance = dense_reference.input_factor(rows), FACTOR_TOLERANCE[wide]
    exact = reordered(plain, problem) if order and arguments[0] else plain
    factor = ops.input_factor(x, *arguments, order, problem.scale)
    found = [distance(factor, problem.scale * exact, tolerance, "input_factor")]
    if not torch.equal(factor, factor.mT):
        found.append("input_factor: not symmetric")
    before = torch.randn_like(exact)
    before = (before + before.mT).to(wide) * float(exact.norm() + 1) / float(before.norm() + 1)
    out = before.clone() if problem.beta else torch.full_like(before, torch.nan)
    ops.input_factor_(out, x, *arguments, order, problem.beta, problem.scale)
    kept = problem.beta * before.double()
    allowed = tolerance * (float(exact.norm()) + float(before.norm())) / max(float(exact.norm()), 1e-30)
    expected = kept + problem.scale * exact
    error = float((out.double() - expected).norm())
    if not error <= 2 * allowed * float(exact.norm()) + 1e-30:
        found.append(f"input_factor_: error {error:.2e}")
    if arguments[0]:
        size = list(x.shape[1:])
        state = torch.full((compiled.lag_state_size(size, *arguments),), torch.nan, dtype=wide)
        for beta in (0.0, 1.0):
            ops.lag_sums_(state, x, *arguments, beta, 0.5)
        found.append(distance(ops.expand_lag_sums(state, size, *arguments, order), exact, tolerance, "lag sums"))
    return found


def check_errors(problem: Problem, rows: Tensor, delta: Tensor) -> list[str | None]:
    """output_factor and rayleigh_quotients."""
    groups, arguments = problem.arguments[4], problem.arguments
    mixed = torch.float64 if torch.float64 in (problem.x.dtype, delta.dtype) else torch.float32
    own = torch.float64 if delta.dtype == torch.float64 else torch.float32
    errors = delta.double().flatten(2).unflatten(1, (groups, -1)).transpose(0, 1)
    exact = torch.einsum("gbms,gbns->gmn", errors, errors)
    convolution = bool(arguments[0])
    d = delta if convolution else delta[:, 0]
    C = output_factor(d, convolution=convolution, groups=groups, scale="sum")
    exact_factor = exact
    if not convolution:
        flat = d.double()
        exact_factor = (flat.mT @ flat)[None]
    found = [distance(C if C.dim() == 3 else C[None], exact_factor, FACTOR_TOLERANCE[own], "output_factor")]
    U = torch.randn(groups, problem.outputs, problem.directions, dtype=mixed)
    V = torch.randn(groups, rows.shape[-1], problem.directions, dtype=mixed)
    x = problem.x if convolution else problem.x[:, None]
    got = ops.rayleigh_quotients(x, delta, U, V, *arguments, problem.scratch_bytes)
    if not len(x):
        return [*found, None if not got.any() else "rayleigh_quotients: not zero without samples"]
    want = dense_reference.rayleigh_quotients(rows, delta if convolution else delta[:, 0, :, None], U, V)
    # The projections round relative to ‖a‖‖v‖ and ‖d‖‖u‖, which may exceed what remains of them.
    return [
        *found,
        *(distance(got[z], want[z], QUOTIENT_TOLERANCE[mixed], f"rayleigh_quotients {z}") for z in range(4)),
    ]


def check(problem: Problem, seed: int) -> tuple[str, list[str]]:
    """("right", []), ("refused", []) or ("wrong", reasons)."""
    x, arguments = problem.x, problem.arguments
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    # torch runs no convolution over an empty batch of some layouts: the reference takes one zero sample away again.
    one = x if len(x) else x.new_zeros(1, *x.shape[1:])
    try:
        sizes = dense_reference.output_size(x.shape[2:], *arguments) if arguments[0] else []
        rows = dense_reference.patches(one, *arguments)[:, : len(x)]
        possible = all(size > 0 for size in sizes)
    except RuntimeError:
        possible = False
    compiled.set_cpu_capability(problem.level)
    try:
        if not possible:
            try:
                ops.input_factor(x, *arguments, False, 1.0)
            except RuntimeError:
                return "refused", []
            return "wrong", ["torch refuses the geometry, input_factor takes it"]
        before = x.clone()
        shape = [len(x), problem.outputs * arguments[4], *sizes] if arguments[0] else [len(x), 1, problem.outputs]
        rng = random.Random(str((seed, problem.outputs, problem.directions, shape)))
        layout = rng.choice(LAYOUTS)
        delta = laid_out(shape, rng.choice([x.dtype, *DTYPES]), layout)
        try:
            found = [*check_factors(problem, rows, wide), *check_errors(problem, rows, delta)]
        except (RuntimeError, ValueError, TypeError) as error:
            return "wrong", [f"torch takes the geometry, an op refuses it: {str(error).splitlines()[0]}"]
        if not torch.equal(before, x):
            found.append("x was modified")
    finally:
        compiled.set_cpu_capability("avx512")
    reasons = [reason for reason in found if reason is not None]
    return ("wrong" if reasons else "right"), reasons


def fuzz(count: int, seed: int = 0, first: int = 0, seconds: float = float("inf"), *, out: Any = None) -> Counter[str]:
    """Checks problems first, first + 1, … and counts "right", "refused" and "wrong"; ends early after ``seconds``."""
    totals: Counter[str] = Counter()
    end = time.monotonic() + seconds
    for index in range(first, first + count):
        if time.monotonic() > end:
            break
        problem = draw(seed, index)
        verdict, reasons = check(problem, seed)
        totals[verdict] += 1
        if reasons:
            print(f"problem {index} of seed {seed}: {'; '.join(reasons)}\n  {problem}", file=out, flush=True)
    return totals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the number of the first problem")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end after this time")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    totals = fuzz(arguments.count, arguments.seed, arguments.first, arguments.seconds)
    print(", ".join(f"{totals[verdict]} {verdict}" for verdict in ("right", "refused", "wrong")))
    done = totals.total()
    if done < arguments.count:
        left = arguments.count - done
        print(f"ended after {arguments.seconds:g} s; continue with --first {arguments.first + done} --count {left}")
    sys.exit(1 if totals["wrong"] else 0)


if __name__ == "__main__":
    main()
