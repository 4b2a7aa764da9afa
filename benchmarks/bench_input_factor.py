"""input_factor beside what libraries do: unfold and multiply, the same in chunks, curvlinops, kfac-pytorch. float32.

`python -m benchmarks input_factor` prints ratios; `pytest benchmarks/bench_input_factor.py` runs the same under
pytest-benchmark. Two-thread rows are wall time against one thread of the same op.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import Row, interleaved, peak_extra_mebibytes
from spectral_ext.ops import input_factor

PEER = "F.unfold + matmul"
OURS = "input_factor"


@dataclass(frozen=True)
class Case:
    """A square 2-d convolution on (batch, channels, size, size), or a linear layer (batch, channels) without kernel."""

    batch: int
    channels: int
    size: int = 1
    kernel: int | None = None
    stride: int = 1
    padding: int = 0
    groups: int = 1

    def __str__(self) -> str:
        if self.kernel is None:
            return f"Linear {self.batch}×{self.channels}"
        extra = f" s{self.stride}" * (self.stride > 1) + f" groups {self.groups}" * (self.groups > 1)
        return f"{self.kernel}×{self.kernel}{extra} {self.channels}@{self.size} B={self.batch}"

    @property
    def geometry(self) -> dict[str, int]:
        if self.kernel is None:
            return {}
        return dict(kernel_size=self.kernel, stride=self.stride, padding=self.padding, groups=self.groups)

    def input(self) -> Tensor:
        torch.manual_seed(0)
        shape = (self.batch, self.channels) + (self.size,) * (2 if self.kernel else 0)
        return torch.randn(shape).relu()


STAGES = [
    Case(128, 64, 32, 3, 1, 1),
    Case(128, 128, 16, 3, 1, 1),
    Case(128, 256, 8, 3, 1, 1),
    Case(128, 512, 4, 3, 1, 1),
]
QUICK = [
    STAGES[0],
    STAGES[3],
    Case(128, 64, 32, 3, 2, 1),
    Case(128, 3, 64, 7, 2, 3),
    Case(128, 64, 32, 1),
    Case(16384, 768),
]
FULL = [
    *STAGES,
    Case(16, 64, 56, 3, 1, 1),
    Case(128, 16, 32, 3, 1, 1),
    Case(128, 3, 32, 3, 1, 1),
    Case(128, 64, 16, 5, 1, 2),
    Case(64, 32, 16, 7, 1, 3),
    Case(128, 64, 32, 3, 2, 1),
    Case(128, 128, 16, 3, 2, 1),
    Case(128, 256, 8, 3, 2, 1),
    Case(128, 3, 64, 7, 2, 3),
    Case(16, 3, 224, 7, 2, 3),
    Case(16, 3, 224, 16, 16, 0),
    Case(128, 64, 32, 1),
    Case(128, 512, 4, 1),
    Case(128, 256, 8, 1, 2),
    Case(128, 64, 16, 3, 1, 1, groups=64),
    Case(128, 64, 16, 3, 1, 1, groups=8),
    Case(16384, 768),
    Case(131072, 64),
    Case(4096, 3072),
]


def unfolded(x: Tensor, case: Case) -> Tensor:
    """Patches as rows of one matrix a group."""
    columns = F.unfold(x, case.kernel or 1, 1, case.padding, case.stride)
    if case.groups == 1:
        return columns.transpose(1, 2).reshape(-1, columns.shape[1])
    return columns.unflatten(1, (case.groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)


def unfold_matmul(x: Tensor, case: Case) -> Tensor:
    rows = x if case.kernel is None else unfolded(x, case)
    return rows.mT @ rows / rows.shape[-2]


def chunked_unfold(x: Tensor, case: Case) -> Tensor:
    positions = ((case.size + 2 * case.padding - (case.kernel or 1)) // case.stride + 1) ** 2
    total: Tensor | None = None
    for chunk in x.split(max(1, 4096 // positions)):
        rows = unfolded(chunk, case)
        if total is None:
            total = rows.mT @ rows
        elif case.groups == 1:
            total.addmm_(rows.mT, rows)
        else:
            total.baddbmm_(rows.mT, rows)
    assert total is not None
    return total / (case.batch * positions)


def curvlinops_arithmetic(x: Tensor, case: Case) -> Tensor:
    """KFACLinearOperator's own patch extraction and contraction."""
    from curvlinops.kfac_utils import extract_patches
    from einops import einsum, rearrange

    if case.kernel is not None:
        pair = lambda number: (number, number)  # noqa: E731
        x = extract_patches(x, *map(pair, (case.kernel, case.stride, case.padding, 1)), 1)
    x = rearrange(x, "batch ... d_in -> (batch ...) d_in")
    return einsum(x, x, "b i, b j -> i j").div_(x.shape[0])


def kfac_pytorch_arithmetic(x: Tensor, case: Case) -> Tensor:
    """gpauloski/kfac-pytorch: two tensor unfolds made contiguous, aᵀ(a/N), symmetrised."""
    if case.kernel is not None:
        x = F.pad(x, (case.padding,) * 4) if case.padding else x
        x = x.unfold(2, case.kernel, case.stride).unfold(3, case.kernel, case.stride)
        x = x.permute(0, 2, 3, 1, 4, 5).contiguous().flatten(3).flatten(0, 2)
    factor = x.t() @ (x / x.shape[0])
    return (factor + factor.t()) / 2


def methods(x: Tensor, case: Case) -> dict[str, Callable[[], Tensor]]:
    found: dict[str, Callable[[], Tensor]] = {PEER: lambda: unfold_matmul(x, case)}
    if case.kernel is not None:
        found["chunked unfold"] = lambda: chunked_unfold(x, case)
    if case.groups == 1:
        found["kfac-pytorch"] = lambda: kfac_pytorch_arithmetic(x, case)
        try:
            curvlinops_arithmetic(x[:1], case)
            found["curvlinops"] = lambda: curvlinops_arithmetic(x, case)
        except ImportError:
            pass
    found[OURS] = lambda: input_factor(x, **case.geometry)
    if (case.kernel or 1) > 1:
        found[OURS + ", channels_last order"] = lambda: input_factor(x, order="channels_last", **case.geometry)
    return found


def errors(x: Tensor, case: Case, runs: dict[str, Callable[[], Tensor]]) -> dict[str, float]:
    """max|C − C64| / max|C64| against float64."""
    found = {}
    for name, run in runs.items():
        order = "channels_last" if name.endswith("order") else "unfold"
        exact = input_factor(x.double(), order=order, **case.geometry)
        found[name] = ((run() - exact).abs().max() / exact.abs().max()).item()
    return found


def two_threads(case: Case, rounds: int) -> Row:
    x = case.input()

    def on(threads: int) -> Callable[[], None]:
        def run() -> None:
            torch.set_num_threads(threads)
            input_factor(x, **case.geometry)

        return run

    timings = interleaved({"1": on(1), "2": on(2)}, "1", rounds=rounds, wall=True)
    return Row(str(case), "2 threads / 1 thread", timings["2"].seconds * 1e3, timings["2"].ratio)


def bench(quick: bool) -> list[Row]:
    rows = []
    for case in QUICK if quick else FULL:
        x = case.input()
        runs = methods(x, case)
        timings = interleaved(runs, PEER, rounds=3 if quick else 5)
        deviations = errors(x, case, runs)
        for name, run in runs.items():
            timing = timings[name]
            memory = peak_extra_mebibytes(run)
            rows.append(
                Row(
                    str(case),
                    name,
                    timing.seconds * 1e3,
                    timing.ratio,
                    deviations[name],
                    memory,
                    {"spread": timing.spread},
                )
            )
    if not quick:
        rows += [two_threads(case, 11) for case in STAGES]
    return rows


@pytest.mark.parametrize("name", [PEER, "chunked unfold", "curvlinops", "kfac-pytorch", OURS])
@pytest.mark.parametrize("case", QUICK, ids=str)
def test_input_factor(benchmark, case: Case, name: str) -> None:
    x = case.input()
    runs = methods(x, case)
    if name not in runs:
        pytest.skip(f"{name}: not installed, or not for this layer")
    torch.set_num_threads(1)
    benchmark.pedantic(runs[name], rounds=3, warmup_rounds=1)
    if name == OURS:
        assert errors(x, case, {name: runs[name]})[name] < 1e-6
