"""What the sweep says: scores of the seeds per task, paired tests with Holm's correction, time to target, and FLOP."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from scipy import stats
from torch.utils.flop_counter import FlopCounterMode

from experiments.claims import Table
from experiments.drawing import panels, save_png
from experiments.journal import Journal
from experiments.networks import cross_entropy
from experiments.optimizers import ROWS, matrices_and_rest
from experiments.sweep import BATCH_ROWS, SEEDS, TASKS, TUNING_SEED, Task, final_validation
from spectral_ext import SpectralMap
from spectral_ext.ops.spectral_newton.spectral_maps import fit_map

REFERENCE = "Spectral Newton, α = 2"
LEVEL = 0.05


def runs_of(journal: Journal, scale: str, task: str, row: str, batch: int | None = None) -> list[dict[str, Any]]:
    """The runs of a row: key parts, seed and result."""
    size = f"/batch={batch}" if batch else ""
    return list(journal.select(f"sweep/{scale}/{task}/{row}{size}/lr="))


def chosen(runs: list[dict[str, Any]]) -> tuple[float, float] | None:
    """The setting whose seeds were run: the best of the search; None while the search is not finished."""
    seeds = [run for run in runs if run["seed"] != TUNING_SEED]
    return (seeds[0]["settings"]["lr"], seeds[0]["settings"]["momentum"]) if seeds else None


def score(result: dict[str, Any], task: Task) -> float:
    """What is compared, larger is better: accuracy, or minus the loss; a stopped run is the worst of all."""
    if "test" not in result:
        return -math.inf
    return result["test"]["accuracy"] if task.score == "accuracy" else -result["test"]["loss"]


def seed_scores(journal: Journal, scale: str, task: str, row: str, batch: int | None = None) -> dict[int, float]:
    """Seed → score at the chosen setting."""
    runs = runs_of(journal, scale, task, row, batch)
    return {r["seed"]: score(r["result"], TASKS[scale][task]) for r in runs if r["seed"] != TUNING_SEED}


def holm(p: list[float]) -> list[float]:
    """Holm's step-down adjustment: the family-wise error rate of the adjusted p-values is controlled.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p)), key=p.__getitem__)
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = largest
    return adjusted


def comparisons(journal: Journal, scale: str) -> dict[tuple[str, str], tuple[float, float, float]]:
    """(task, row) → mean difference of the row from the reference, p of the paired t-test, p after Holm.

    The family is all rows on all tasks that are complete.
    """
    found: dict[tuple[str, str], tuple[float, float]] = {}
    for task in TASKS[scale]:
        base = seed_scores(journal, scale, task, REFERENCE)
        for row in ROWS:
            own = seed_scores(journal, scale, task, row)
            common = sorted(own.keys() & base.keys())
            differences = [own[s] - base[s] for s in common]
            if row == REFERENCE or len(common) < len(SEEDS) or not all(map(math.isfinite, differences)):
                continue
            test = stats.ttest_rel([own[s] for s in common], [base[s] for s in common])
            found[task, row] = (statistics.fmean(differences), float(test.pvalue))
    adjusted = holm([p for _, p in found.values()])
    return {key: (d, p, q) for (key, (d, p)), q in zip(found.items(), adjusted, strict=True)}


def time_to_target(journal: Journal, scale: str, task: str, row: str) -> float:
    """Median share of the steps until the validation loss is below AdamW's last one; infinite where it never is."""
    targets = {
        r["seed"]: final_validation(r["result"]) for r in runs_of(journal, scale, task, "AdamW") if r["seed"] in SEEDS
    }
    shares = []
    for run in runs_of(journal, scale, task, row):
        if run["seed"] in targets and run["seed"] in SEEDS:
            result = run["result"]
            reached = [step for step, v in zip(result["at"], result["validation"]) if v <= targets[run["seed"]]]
            shares.append(reached[0] / run["settings"]["steps"] if reached else math.inf)
    return statistics.median(shares) if shares else math.nan


@lru_cache(maxsize=16)
def _poles(map_: SpectralMap, side: int) -> int:
    fit = fit_map(map_, side**0.5 if map_.unit == "rms" else 1.0, 1e-3)
    return len(fit.poles) + 2 * len(fit.pairs)


def optimizer_flop(row: str, shapes: list[tuple[int, ...]], rest: int) -> float:
    """Floating-point operations of one step, leading terms, from the published algorithms; not a measurement.

    With n ≤ m the sides of a matrix: Muon 5 (4n²m + 2n³); a rational map n²m for the Gram matrix, n³ per pole and 2n²m
    for the product; the random spectrum 4n²m + 9n³ + 2n²m; SOAP and Shampoo by the sides d of the tensor, with their
    decompositions spread over the steps between them. Adam takes 15 per weight, SGD 6.
    """
    weights = sum(math.prod(shape) for shape in shapes)
    if row in ("AdamW", "SGD"):
        return (15 if row == "AdamW" else 6) * (weights + rest)
    if row in ("SOAP", "Shampoo"):
        total = 15.0 * (weights + rest)
        for shape in shapes:
            entries = math.prod(shape)
            for d in shape:
                total += 10 * entries * d + 3 * d**3 / 10 if row == "SOAP" else 4 * entries * d + 100 * d**3 / 20
        return total
    total = 15.0 * rest + 6 * weights
    for shape in shapes:
        n, m = sorted((shape[0], math.prod(shape[1:])))
        if row in ("Muon", "NorMuon"):
            total += 5 * (4 * n * n * m + 2 * n**3)
        elif row == "random spectrum":
            total += 6 * n * n * m + 9 * n**3
        else:
            alpha = 1.0 if row.endswith("α = 1") else 2.0
            map_ = SpectralMap.named("spectral_newton", "rms", alpha=alpha, damping=0.1)
            if row.startswith("flat"):
                map_ = SpectralMap.named("polar", "frobenius")
            elif row.startswith("σ"):
                map_ = SpectralMap.named("power", "frobenius", exponent=0.5)
            total += 3 * n * n * m + n**3 * (1 if alpha == 2 and map_.name == "spectral_newton" else _poles(map_, n))
    return total


def training_flop(task: Task, folder: str | None = None) -> tuple[float, list[tuple[int, ...]], int]:
    """FLOP of forward and backward of one batch, shapes of the matrices, and the number of the other weights."""
    data = task.load(folder)
    model = task.network(data)
    counter = FlopCounterMode(display=False)
    with counter:
        cross_entropy(model(data.train.x[: task.batch]), data.train.y[: task.batch]).backward()
    matrices, rest = matrices_and_rest(model)
    return float(counter.get_total_flops()), [tuple(p.shape) for p in matrices], sum(p.numel() for p in rest)


def task_table(journal: Journal, scale: str, task: str, cost: Callable[[str], float]) -> Table:
    """The rows of a task, best first; ``cost``: FLOP of an optimizer's step over those of forward and backward."""
    setting = TASKS[scale][task]
    differences = comparisons(journal, scale)
    times = next((r["result"] for r in journal.select(f"step-time/{scale}/{task}")), {})
    lines, waiting = [], []
    for row in ROWS:
        runs = runs_of(journal, scale, task, row)
        best = chosen(runs)
        values = list(seed_scores(journal, scale, task, row).values())
        if best is None:
            waiting.append(f"{row} ({len(runs)} of 7 runs of the search)")
            continue
        sign = 1 if setting.score == "accuracy" else -1
        digits = 1 if setting.score == "accuracy" else 3
        mean = statistics.fmean(values)
        spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
        seeds = "" if len(values) == len(SEEDS) else f" ({len(values)} of {len(SEEDS)} seeds)"
        rates = sorted({r["settings"]["lr"] for r in runs if r["seed"] == TUNING_SEED})
        edge = "" if rates[0] < best[0] < rates[-1] else " (edge)"
        d, p, q = differences.get((task, row), (math.nan,) * 3)
        versus = "reference" if row == REFERENCE else "–"
        if math.isfinite(d):
            versus = f"{sign * d:+.{digits}f}, p = {p:.3f}, Holm {q:.3f}{' *' if q < LEVEL else ''}"
        reached = time_to_target(journal, scale, task, row)
        target = "never" if math.isinf(reached) else f"{100 * reached:.0f} %"
        timed = times.get(row, {}).get("over_adamw")
        cells = (f"{sign * mean:.{digits}f}{spread}{seeds}", versus, f"{best[0]:.3g}{edge}", f"{best[1]:g}", target)
        lines.append((mean, (row, *cells, f"{cost(row):.3f}", f"{timed:.2f}" if timed else "–", str(len(runs)))))
    header = ("optimizer", "test " + setting.score, f"against {REFERENCE}", "rate", "momentum", "AdamW's loss reached",
              "step FLOP / model FLOP", "time of a step / AdamW's", "runs")  # fmt: skip
    steps = f"{setting.steps} steps of {setting.batch}"
    note = f"Not there yet: {', '.join(waiting)}." if waiting else ""
    ordered = [cells for _, cells in sorted(lines, reverse=True)]
    return Table(f"{task}: {steps}, mean ± sd over seeds", header, ordered, note)


def batch_tables(journal: Journal, scale: str) -> list[Table]:
    """Scores by batch size, where other sizes have been run; every size has its own search."""
    tables = []
    for task, setting in TASKS[scale].items():
        sizes = sorted({int(key.split("/batch=")[1].split("/")[0]) for key in journal.runs
                        if key.startswith(f"sweep/{scale}/{task}/") and "/batch=" in key})  # fmt: skip
        if not sizes:
            continue
        rows = []
        for row in BATCH_ROWS:
            cells = []
            for size in sorted({*sizes, setting.batch}):
                values = seed_scores(journal, scale, task, row, None if size == setting.batch else size)
                known = [abs(v) for v in values.values() if math.isfinite(v)]
                cells.append(f"{statistics.fmean(known):.3g} (n = {len(known)})" if known else "–")
            rows.append((row, *cells))
        header = ("optimizer", *(f"batch {size}" for size in sorted({*sizes, setting.batch})))
        tables.append(Table(f"{task}: test {setting.score} by batch size, the same number of samples", header, rows))
    return tables


def draw(journal: Journal, scale: str) -> Any:
    """Validation loss over the steps, mean over the seeds of the chosen setting."""
    names = [task for task in TASKS[scale] if seed_scores(journal, scale, task, REFERENCE)]
    figure, axes = panels(max(1, len(names)))
    for ax, task in zip(axes, names):
        for row in ROWS:
            own = [r["result"] for r in runs_of(journal, scale, task, row) if r["seed"] in SEEDS]
            own = [result for result in own if "stopped" not in result]
            if own:
                curve = [statistics.fmean(r["validation"][i] for r in own) for i in range(len(own[0]["at"]))]
                ax.plot(own[0]["at"], curve, linewidth=2 if row == REFERENCE else 0.9, label=row)
        ax.set_title(task)
        ax.set_xlabel("step")
        ax.set_ylabel("validation loss")
        low, high = ax.get_ylim()
        ax.set_ylim(low, min(high, low + 0.6 * (high - low)))
    if names:
        axes[-1].legend(fontsize=5)
    return figure


def complete_rows(journal: Journal, scale: str) -> dict[str, list[str]]:
    """Task → the rows whose search and seeds are all there."""
    return {task: [row for row in ROWS if len(runs_of(journal, scale, task, row)) >= 7 + len(SEEDS)]
            for task in TASKS[scale]}  # fmt: skip


def sweep_section(journal: Journal, scale: str, figures: Path, folder: Path, data: str | None = None) -> str:
    """The chapter of RESULTS.md."""
    lines = ["## The optimizer question", ""]
    if not any(key.startswith(f"sweep/{scale}/") for key in journal.runs):
        return "\n".join([*lines, "The sweep has not run: `python -m experiments.sweep run`."])
    lines += [
        f"{len(ROWS)} rows, each with seven runs of search per task (five learning rates, two more momenta; validation "
        f"loss, one seed) and {len(SEEDS)} other seeds at the best. Defaults were fixed before the first run. The rest "
        "of the network goes to AdamW at one rate for all rows that need it. *p*: paired t-test over the seeds against "
        f"{REFERENCE}; *Holm*: corrected for all comparisons below; * marks p < {LEVEL:g} after it. *Edge*: "
        "the best rate is the smallest or largest one tried. *AdamW's loss reached*: share of the steps until the "
        "validation loss is below AdamW's last one. FLOP are counted. The runs were not timed, as "
        "the machine was shared; the time of a step is from `experiments/step_time.py`, alone on the machine.",
        "",
    ]
    done = complete_rows(journal, scale)
    lines += [f"- {task}: {len(rows)} of {len(ROWS)} rows complete" for task, rows in done.items()]
    tables = []
    for task, setting in TASKS[scale].items():
        if any(key.startswith(f"sweep/{scale}/{task}/") for key in journal.runs):
            model, shapes, rest = training_flop(setting, data)
            tables.append(task_table(journal, scale, task, lambda row, m=model, s=shapes, r=rest:
                                     optimizer_flop(row, s, r) / m))  # fmt: skip
    lines += ["", *(f"{table.markdown()}\n" for table in [*tables, *batch_tables(journal, scale)])]
    path = save_png(lambda: draw(journal, scale), figures / "sweep.png")
    lines += [f"![validation loss]({path.relative_to(folder).as_posix()})", "", "Settings that are not searched:", ""]
    return "\n".join([*lines, *(f"- {name}: {row.recipe}" for name, row in ROWS.items())])
