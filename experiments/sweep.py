"""The optimizer question: every row of ``optimizers.ROWS`` on three tasks, each row with the same number of runs.

Per row and task there are seven runs of one seed that search two settings, then five other seeds at the best of them:

1. learning rate: the start s, 4s, then 16s or s/4, whichever side is better, then twice and half the best;
2. momentum: the other two of 0.9, 0.95 and 0.98 at the best rate.

The search sees the loss on validation data alone; the test data are looked at once per seed at the end. All rows share
the schedule, the weight decay and the rate of what AdamW takes. Runs are lines of ``results/sweep.jsonl``; those that
are there are not repeated, so that the sweep goes on from wherever it was stopped.

    python -m experiments.sweep run [--tasks conv,gpt,vit] [--rows PATTERN] [--seconds 50]
    python -m experiments.sweep status
"""

from __future__ import annotations

import argparse
import fnmatch
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from experiments import networks
from experiments.data import Data, Part, images, text
from experiments.journal import RESULTS, Journal, digest, journal_here
from experiments.optimizers import MOMENTA, ROWS, Optimizers, Row
from experiments.training import evaluate, train
from spectral_ext import measure

FILE = RESULTS / "sweep.jsonl"
TUNING_SEED, SEEDS = 100, (0, 1, 2, 3, 4)
LOOKS = 5
MEASURED_AFTER = 1 / 3
"""Share of a pilot run after which the exponents of the rows ``measured`` and ``permuted`` are taken."""
BATCH_SIZES = {"small": (32, 256), "full": (32, 512, 1024), "tiny": (8,)}
"""Beside the task's own; a run sees the same number of samples at every batch size."""
BATCH_ROWS = ("AdamW", "Muon", "Spectral Newton, α = 2", "flat spectrum (exact UVᵀ)", "random spectrum")


@dataclass(frozen=True)
class Task:
    """A network, its data and its training."""

    network: Callable[[Data], nn.Module]
    data: Callable[..., Data]
    sizes: tuple[int, int, int]
    options: dict[str, Any]
    steps: int
    batch: int
    measured_on: int
    """Training samples of a measurement."""
    flip: bool = False
    score: str = "accuracy"
    """What is compared: ``accuracy`` in per cent, or ``loss``."""

    def load(self, folder: str | None) -> Data:
        return self.data(**self.options, **dict(zip(("train", "validation", "test"), self.sizes)), folder=folder)


TASKS: dict[str, dict[str, Task]] = {
    "small": {
        "conv": Task(lambda d: networks.resnet8(8, d.classes), images, (4000, 1500, 4000),
                     {"name": "cifar10", "side": 16}, 190, 64, 128, flip=True),
        "gpt": Task(lambda d: networks.GPT(d.details["vocabulary"], 48, 48, 2, 4), text, (8000, 256, 800),
                    {"length": 48}, 300, 16, 64, score="loss"),
        "vit": Task(lambda d: networks.ViT(32, 8, 48, 2, 4, d.classes), images, (6000, 1500, 3500),
                    {"name": "tiny-imagenet", "classes": 20}, 190, 64, 128, flip=True),
    },
    "full": {
        "conv": Task(lambda d: networks.resnet18(64, d.classes), images, (45000, 5000, 10000),
                     {"name": "cifar10"}, 10500, 128, 2048, flip=True),
        "gpt": Task(lambda d: networks.GPT(d.details["vocabulary"], 384, 256, 6, 6), text, (100000, 1000, 4000),
                    {"length": 256}, 5000, 64, 256, score="loss"),
        "vit": Task(lambda d: networks.ViT(32, 4, 192, 12, 3, d.classes), images, (90000, 5000, 10000),
                    {"name": "tiny-imagenet"}, 20000, 128, 2048, flip=True),
    },
}  # fmt: skip


TASKS["tiny"] = {
    name: replace(task, sizes=(96, 32, 32), steps=6, batch=16, measured_on=16) for name, task in TASKS["small"].items()
}


class OutOfTimeError(Exception):
    """The piece is over; the sweep goes on when it is called again."""


class Sweep:
    """The runs of one task: those in the journal, and new ones until the time is over."""

    def __init__(
        self, scale: str, name: str, journal: Journal, folder: str | None = None, until: float = math.inf,
        device: str = "cpu",
    ) -> None:  # fmt: skip
        self.scale, self.name, self.task = scale, name, TASKS[scale][name]
        self.journal, self.folder, self.until, self.device = journal, folder, until, device
        self.longest = 0.0

    @property
    def data(self) -> Data:
        return _loaded(self.scale, self.name, self.folder, self.device)

    def _kept(self, key: str, settings: dict[str, Any], seed: int, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of a run from the journal, or of a new one."""
        found = self.journal.get(key, settings)
        if found is None:
            if time.monotonic() + self.longest > self.until:
                raise OutOfTimeError
            start = time.monotonic()
            result = run()
            self.longest = max(self.longest, time.monotonic() - start)
            found = self.journal.add(
                key, settings, result, seed=seed, data=self.data.describe(), substitutions=self.data.substitutions
            )
            print(key, {k: v for k, v in found["result"].items() if k in ("validation", "test", "stopped")}, flush=True)
        return found["result"]

    def _task_settings(self, batch: int | None = None) -> dict[str, Any]:
        task = {k: v for k, v in asdict(self.task).items() if k not in ("network", "data")}
        task["batch"] = batch or self.task.batch
        task["steps"] = round(self.task.steps * self.task.batch / task["batch"])
        return {"scale": self.scale, "task": self.name, **task, "looks": LOOKS}

    def _model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return self.task.network(self.data).to(self.device)

    def exponents(self) -> dict[str, float]:
        """α per layer after a third of a run of Spectral Newton at its start; the layers that have no fit keep 2."""
        row = ROWS["Spectral Newton, α = 2"]
        settings = self._task_settings() | {"lr": row.lr, "momentum": row.momentum, "after": MEASURED_AFTER}

        def run() -> dict[str, Any]:
            model = self._model(TUNING_SEED)
            pilot = row.build(model, row.lr, row.momentum)
            train(
                model, pilot, self.data, steps=self.task.steps, batch=self.task.batch, seed=TUNING_SEED,
                flip=self.task.flip, until=round(MEASURED_AFTER * self.task.steps),
            )  # fmt: skip
            return {"alpha": measured_exponents(model, self.data.train, self.task.measured_on, matrices=pilot[0])}

        return self._kept(f"sweep/{self.scale}/{self.name}/exponents", settings, TUNING_SEED, run)["alpha"]

    def _built(self, row: Row, model: nn.Module, lr: float, momentum: float) -> tuple[Optimizers, Any]:
        """The optimizers of a row, and what it does after each step."""
        if row.exponents in ("measured", "permuted"):
            alphas = self.exponents()
            if row.exponents == "permuted":
                alphas = permuted(alphas)
            return row.build(alpha={**alphas, "*": 2.0})(model, lr, momentum), None
        optimizers = row.build(model, lr, momentum)
        if row.exponents != "tracked":
            return optimizers, None
        every = max(2, self.task.steps // 4)

        def follow(step: int) -> None:
            if step % every == 0 and step < self.task.steps:
                found = measured_exponents(model, self.data.train, self.task.measured_on // 2, matrices=optimizers[0])
                optimizers[0].set_exponents(found)  # type: ignore[attr-defined]

        return optimizers, follow

    def run(self, name: str, lr: float, momentum: float, seed: int, batch: int | None = None) -> dict[str, Any]:
        """One run; the test data are looked at unless the seed is that of the search."""
        row = ROWS[name]
        settings = self._task_settings(batch) | {"row": name, "recipe": row.recipe, "lr": lr, "momentum": momentum}
        if row.exponents in ("measured", "permuted"):
            settings["exponents"] = digest(self.exponents())

        def go() -> dict[str, Any]:
            model = self._model(seed)
            optimizers, follow = self._built(row, model, lr, momentum)
            result = train(
                model, optimizers, self.data, steps=settings["steps"], batch=settings["batch"], seed=seed, looks=LOOKS,
                flip=self.task.flip, on_step=follow,
            )  # fmt: skip
            if seed != TUNING_SEED and "stopped" not in result:
                loss, accuracy = evaluate(model, self.data.test)
                result["test"] = {"loss": loss, "accuracy": accuracy}
            return result

        size = f"/batch={batch}" if batch else ""
        key = f"sweep/{self.scale}/{self.name}/{name}{size}/lr={lr:.6g} momentum={momentum:g} seed={seed}"
        return self._kept(key, settings, seed, go)

    def search(self, name: str, batch: int | None = None) -> tuple[float, float, bool]:
        """The best learning rate and momentum of seven runs, and whether the rate lies between two worse ones."""
        row = ROWS[name]

        def loss(lr: float, momentum: float) -> float:
            return final_validation(self.run(name, lr, momentum, TUNING_SEED, batch))

        tried = {lr: loss(lr, row.momentum) for lr in (row.lr, 4 * row.lr)}
        side = 16 * row.lr if tried[4 * row.lr] < tried[row.lr] else row.lr / 4
        tried[side] = loss(side, row.momentum)
        coarse = min(tried, key=tried.__getitem__)
        tried |= {lr: loss(lr, row.momentum) for lr in (2 * coarse, coarse / 2)}
        best = min(tried, key=tried.__getitem__)
        inside = min(tried) < best < max(tried)
        momenta = {m: tried[best] if m == row.momentum else loss(best, m) for m in MOMENTA}
        return best, min(momenta, key=momenta.__getitem__), inside

    def finish(self, name: str, batch: int | None = None) -> None:
        """All runs of a row: the search and the seeds."""
        lr, momentum, _ = self.search(name, batch)
        for seed in SEEDS:
            self.run(name, lr, momentum, seed, batch)


@lru_cache(maxsize=1)
def _loaded(scale: str, name: str, folder: str | None, device: str) -> Data:
    return TASKS[scale][name].load(folder).to(device)


def final_validation(result: dict[str, Any]) -> float:
    """The last validation loss; infinite where the run stopped."""
    return math.inf if "stopped" in result else result["validation"][-1]


def measured_exponents(model: nn.Module, part: Part, samples: int, matrices: Any) -> dict[str, float]:
    """Layer → α of this batch, own directions, in eval mode; kept within [0.25, 4], and 2 where there is no fit."""
    names = {
        name.removesuffix(".weight") for g in matrices.param_groups if not g["use_adamw"] for name in g["param_names"]
    }
    model.eval()
    batches = list(zip(part.x[:samples].split(64), part.y[:samples].split(64), strict=True))
    rows = measure(model, networks.cross_entropy, batches, top_k=12, layers=sorted(names), split=False, progress=False)
    model.train()
    return {name: float(np.clip(row.alpha.value, 0.25, 4)) if row.alpha.ok else 2.0 for name, row in rows.items()}


def permuted(alphas: dict[str, float]) -> dict[str, float]:
    """The same exponents, each at another layer: moved on by half of the layers in order of definition."""
    names, values = list(alphas), list(alphas.values())
    shift = max(1, len(values) // 2)
    return dict(zip(names, values[shift:] + values[:shift], strict=True))


def jobs(scale: str, tasks: list[str], rows: list[str], batch_sizes: bool) -> Iterator[tuple[str, str, int | None]]:
    """(task, row, batch size) in the order in which they are run; tasks one after the other."""
    for task in tasks:
        for row in rows:
            yield task, row, None
    if batch_sizes:
        for task in tasks:
            for size in BATCH_SIZES[scale]:
                for row in (row for row in BATCH_ROWS if row in rows):
                    yield task, row, size


def missing_packages(rows: list[str]) -> list[str]:
    """Packages that the rows need and that are not installed."""
    import importlib.util

    needed = {ROWS[row].package for row in rows} - {""}
    return sorted(name for name in needed if importlib.util.find_spec(name) is None)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=("run", "status"))
    parser.add_argument("--scale", choices=TASKS, default="small")
    parser.add_argument("--tasks", default="conv,gpt,vit")
    parser.add_argument("--rows", default="*", help="a shell pattern of rows")
    parser.add_argument("--batch-sizes", action="store_true", help="then also the other batch sizes, for five rows")
    parser.add_argument("--seconds", type=float, default=math.inf, help="end with status 3 before this time is over")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--data", help="folder of the data")
    parser.add_argument("--journal", type=Path, help="file of the runs; without it the one of this machine in results/")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    tasks, rows = options.tasks.split(","), [row for row in ROWS if fnmatch.fnmatchcase(row, options.rows)]
    unknown = [task for task in tasks if task not in TASKS[options.scale]]
    if unknown or not rows:
        parser.error(f"unknown tasks {unknown}" if unknown else f"no row fits {options.rows!r}: {', '.join(ROWS)}")
    if options.job == "run" and missing_packages(rows):
        parser.error(f"install {', '.join(missing_packages(rows))} (pip install --no-deps pytorch-optimizer), or leave "
                     "out the rows that need it with --rows")  # fmt: skip
    journal = Journal(journal_here(FILE, options.journal))
    until = -math.inf if options.job == "status" else time.monotonic() + options.seconds
    sweeps = {task: Sweep(options.scale, task, journal, options.data, until, options.device) for task in tasks}
    open_jobs = []
    for task, row, size in jobs(options.scale, tasks, rows, options.batch_sizes):
        try:
            sweeps[task].finish(row, size)
        except OutOfTimeError:
            open_jobs.append(f"{task}: {row}{f', batch {size}' if size else ''}")
            if options.job == "run":
                return 3
    if options.job == "status":
        print("\n".join(f"not finished: {job}" for job in open_jobs) or "complete")
    return 3 if open_jobs else 0


if __name__ == "__main__":
    sys.exit(main())
