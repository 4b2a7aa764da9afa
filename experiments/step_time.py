"""Time of a training step with each optimizer over one with AdamW, for the tasks of the sweep; needs a quiet machine.

Interleaved rounds of twenty steps each, so that the decompositions of SOAP and Shampoo are in them; medians. The result
is a line per task of the sweep's journal, next to the FLOP of RESULTS.md.

    python -m experiments.step_time [--scale small] [--tasks conv,gpt,vit] [--rounds 5]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.harness import interleaved
from experiments.data import Data
from experiments.journal import Journal, journal_here
from experiments.networks import cross_entropy
from experiments.optimizers import ROWS, Row
from experiments.sweep import FILE, TASKS, Task, missing_packages

STEPS = 20


def twenty_steps(task: Task, data: Data, row: Row) -> Callable[[], None]:
    """Forward, backward and step on one batch, twenty times, at a rate that hardly moves the weights."""
    torch.manual_seed(0)
    model = task.network(data)
    alphas = {"alpha": {"*": 1.5}} if row.exponents in ("measured", "permuted") else {}
    build = row.build(**alphas) if alphas else row.build
    optimizers = build(model, 1e-6, row.momentum)
    x, y = data.train.x[: task.batch], data.train.y[: task.batch]

    def run() -> None:
        for _ in range(STEPS):
            model.zero_grad()
            cross_entropy(model(x), y).backward()
            for optimizer in optimizers:
                optimizer.step()

    return run


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=tuple(TASKS), default="small")
    parser.add_argument("--tasks", default="conv,gpt,vit")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", help="folder of the data")
    parser.add_argument("--journal", type=Path, help="file of the runs; without it the one of this machine in results/")
    options = parser.parse_args(argv)
    missing = missing_packages(list(ROWS))
    if missing:
        parser.error(f"install {', '.join(missing)} (pip install --no-deps pytorch-optimizer)")
    torch.set_num_threads(1)
    journal = Journal(journal_here(FILE, options.journal))
    for name in options.tasks.split(","):
        task = TASKS[options.scale][name]
        key, settings = f"step-time/{options.scale}/{name}", {"steps": STEPS, "rounds": options.rounds}
        if journal.get(key, settings) is not None:
            continue
        data = task.load(options.data)
        timings = interleaved(
            {label: twenty_steps(task, data, row) for label, row in ROWS.items()}, "AdamW", rounds=options.rounds
        )
        result = {label: {"seconds": t.seconds / STEPS, "over_adamw": 1 / t.ratio} for label, t in timings.items()}
        journal.add(key, settings, result, seed=0, data=data.describe(), substitutions=data.substitutions)
        for label, found in result.items():
            print(f"{name:5} {label:34} {1e3 * found['seconds']:7.2f} ms  {found['over_adamw']:.2f} × AdamW")
    return 0


if __name__ == "__main__":
    sys.exit(main())
