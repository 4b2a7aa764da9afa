"""Table 3: Spectral Newton against AdamW, each with the same search of seven runs, five seeds, on two image tasks."""

import math

from experiments.claims import Claim, Interval, Table, order_claim, over_seeds
from experiments.studies import Laboratory
from experiments.sweep import SEEDS, TASKS, Sweep

TITLE = "Table 3: Spectral Newton and AdamW"
ROWS = ("AdamW", "paper's form (absolute d = 0.1)", "Spectral Newton, α = 2")
PLACES = {"conv": "ResNet-18, CIFAR-10, +1.1", "vit": "ResNet-18 and ResNet-50, CIFAR-100, +3.5 and +2.4"}


def _accuracies(lab: Laboratory) -> dict[tuple[str, str], list[float]]:
    found = {}
    for task in PLACES:
        until = -math.inf if lab.read_only else math.inf
        sweep = Sweep(lab.scale, task, lab.sweep_journal, lab.folder, until, lab.device)
        for row in ROWS:
            lab.progress(f"{task}: {row}")
            lr, momentum, _ = sweep.search(row)
            runs = (sweep.run(row, lr, momentum, seed) for seed in SEEDS)
            found[task, row] = [run["test"]["accuracy"] if "test" in run else 0.0 for run in runs]
    return found


def tables(lab: Laboratory) -> list[Table]:
    found = _accuracies(lab)
    rows = [
        (task, row, str(over_seeds(values)), ", ".join(f"{v:.1f}" for v in values))
        for (task, row), values in found.items()
    ]
    note = "Test accuracy in per cent. The full sweep has 15 rows and three tasks: `python -m experiments.sweep`."
    return [Table(TITLE, ("task", "optimizer", "mean over seeds", "each seed"), rows, note)]


def claims(lab: Laboratory) -> list[Claim]:
    found = _accuracies(lab)

    def gain(task: str, row: str) -> Interval:
        return over_seeds(a - b for a, b in zip(found[task, row], found[task, "AdamW"], strict=True))

    made = []
    for task, published in PLACES.items():
        steps = TASKS[lab.scale][task].steps
        for row in ROWS[1:]:
            what = f"{row}: more test accuracy than AdamW ({task}, {steps} steps, both tuned alike)"
            made.append(order_claim("Table 3", what, published, gain(task, row), note="points, paired by seed"))
    return made
