"""AdamW, torch's Muon and SpectralNewton on a small ResNet over CIFAR-10 (JPEG-coded images, 12,000 of them, 4 epochs).

Every optimizer gets the same treatment: batch 128, horizontal flips, learning rate decaying linearly to zero, weight
decay 0.01, AdamW for what is not a convolution weight. Its learning rate is tuned by one rule: walk on the grid of
powers of two from the start given in ``OPTIMIZERS``, as long as the accuracy on 5,000 held-out training images grows,
one seed. Then five other seeds at the best rate, judged on the 10,000 test images. Every run is a line of
``results/train_optimizers.jsonl``; a run that is there already is not repeated. ``summary`` writes
``results/train_optimizers.json``.

    python -m experiments.train_optimizers tune NAME [NAME …]
    python -m experiments.train_optimizers seeds NAME [NAME …]
    python -m experiments.train_optimizers summary
"""

from __future__ import annotations

import argparse
import fnmatch
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.peer_optimizers import FlattenedMuon, sort_parameters
from experiments import cifar10
from experiments.cifar_resnet import CifarResNet
from spectral_ext.optim import ScalarSpectralAdam, SpectralNewton

RESULTS = Path(__file__).parent / "results"
RUNS = RESULTS / "train_optimizers.jsonl"
EXPONENTS = RESULTS / "cifar_resnet_exponents.json"
EPOCHS, BATCH, WIDTH, WEIGHT_DECAY = 4, 128, 16, 0.01
TUNING_SEED, SEEDS = 100, (0, 1, 2, 3, 4)
Factory = Callable[[nn.Module, float], list[torch.optim.Optimizer]]


def adamw(model: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    return [torch.optim.AdamW(model.parameters(), lr, weight_decay=WEIGHT_DECAY)]


def muon(adjust: str, rest_lr: float | None = None) -> Factory:
    """``rest_lr``: AdamW's rate for the rest; None takes the same rate as for the matrices."""

    def build(model: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
        matrices, rest = sort_parameters(model)
        return [
            FlattenedMuon(matrices, lr=lr, weight_decay=WEIGHT_DECAY, adjust_lr_fn=adjust),
            torch.optim.AdamW(rest, rest_lr or lr, weight_decay=WEIGHT_DECAY),
        ]

    return build


def spectral_newton(**settings) -> Factory:
    return lambda model, lr: [SpectralNewton(model, lr, weight_decay=WEIGHT_DECAY, **settings)]


def variants() -> dict[str, tuple[float, Factory]]:
    """Damping mode × d × α × update scale, each with the start of its walk, and the paper's settings."""
    table = {}
    starts = {"match_rms_adamw": 2**-6, "spectral": 2**-4}
    for mode, dampings in {"spectral": (0.01, 0.03, 0.1, 0.3, 1.0), "rms": (0.03, 0.1, 0.3, 1.0, 3.0)}.items():
        for damping, alpha, scale in itertools.product(dampings, (0.5, 1.0, 1.5, 2.0, 3.0, 4.0), starts):
            name = f"SpectralNewton {mode} d={damping:g} alpha={alpha:g} {scale}"
            settings = {"damping_mode": mode, "damping": damping, "alpha": alpha, "update_scale": scale}
            settings["adamw_lr"] = 2**-8 if scale == "spectral" else None
            table[name] = (starts[scale], spectral_newton(**settings))
    for momentum_mode, scale in itertools.product(("ema", "sum"), (None, "spectral", "match_rms_adamw")):
        settings = {
            "damping_mode": "absolute",
            "momentum_mode": momentum_mode,
            "update_scale": scale,
            "adamw_lr": 2**-8,
        }
        name = f"SpectralNewton absolute d=0.1 alpha=2 {scale} momentum={momentum_mode}"
        table[name] = (starts.get(scale or "", 2**-5), spectral_newton(**settings))
    return table


def exponents() -> dict[str, dict[str, float]]:
    """Layer → α and γ, from ``experiments.measure_cifar_resnet``."""
    return json.loads(EXPONENTS.read_text())


def measured(model: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """The default SpectralNewton with the measured α of each layer."""
    alphas = {layer: row["alpha"] for layer, row in exponents().items()}
    return [SpectralNewton.from_landscape(model, alphas, lr, weight_decay=WEIGHT_DECAY)]


def scalar(beta: float) -> Factory:
    """The paper's negative control: Adam with rates from s = αγ, with AdamW's decoupled weight decay."""
    return lambda model, lr: [
        ScalarSpectralAdam(
            model,
            {layer: row["alpha"] * row["gamma"] for layer, row in exponents().items()},
            lr,
            beta,
            weight_decay=WEIGHT_DECAY,
            decoupled_weight_decay=True,
        )
    ]


def default(model: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """SpectralNewton as it comes: its own learning rate, nothing tuned."""
    return [SpectralNewton(model)]


UNTUNED = {"SpectralNewton as it comes": 2e-2}
OPTIMIZERS: dict[str, tuple[float, Factory]] = {
    "SpectralNewton as it comes": (2e-2, default),
    "AdamW": (2**-8, adamw),
    "Muon match_rms_adamw": (2**-6, muon("match_rms_adamw")),
    "Muon original": (2**-5, muon("original", 2**-8)),
    "SpectralNewton measured alpha": (2**-6, measured),
    **{f"ScalarSpectralAdam beta={beta:g}": (2**-8, scalar(beta)) for beta in (-1.0, 1.0)},
    **variants(),
}


def accuracy(model: nn.Module, images: cifar10.Images) -> float:
    """Percent right, in eval mode."""
    model.eval()
    with torch.no_grad():
        right = sum((model(x).argmax(1) == y).sum().item() for x, y in zip(images.x.split(500), images.y.split(500)))
    model.train()
    return 100 * right / len(images.y)


def train(name: str, lr: float, seed: int, data: tuple[cifar10.Images, ...], prune_below: float = 0.0) -> dict:
    """One run. ``prune_below``: stop after the first epoch under this held-out accuracy."""
    training, validation, test = data
    torch.manual_seed(seed)
    model = CifarResNet(WIDTH).to(memory_format=torch.channels_last)
    optimizers = OPTIMIZERS[name][1](model, lr)
    steps = EPOCHS * (len(training.y) // BATCH)
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 - step / steps) for o in optimizers]
    record: dict = {"name": name, "lr": lr, "seed": seed, "validation": [], "loss": []}
    seconds, optimizer_seconds = 0.0, 0.0
    for _ in range(EPOCHS):
        start, total = time.perf_counter(), 0.0
        order = torch.randperm(len(training.y))
        for batch in order[: len(order) // BATCH * BATCH].split(BATCH):
            x, y = training.x[batch], training.y[batch]
            x = torch.where((torch.rand(BATCH) < 0.5)[:, None, None, None], x.flip(3), x)
            loss = F.cross_entropy(model(x.contiguous(memory_format=torch.channels_last)), y)
            model.zero_grad()
            loss.backward()
            total += loss.item()
            if not math.isfinite(total):
                break
            before = time.perf_counter()
            for optimizer, schedule in zip(optimizers, schedules):
                optimizer.step()
                schedule.step()
            optimizer_seconds += time.perf_counter() - before
        seconds += time.perf_counter() - start
        record["loss"].append(round(total / (len(order) // BATCH), 4) if math.isfinite(total) else None)
        record["validation"].append(round(accuracy(model, validation), 2))
        if not math.isfinite(total) or record["validation"][-1] < prune_below:
            record["stopped"] = "the loss is not finite" if not math.isfinite(total) else "pruned after one epoch"
            break
        prune_below = 0.0
    if "stopped" not in record:
        record["test"] = round(accuracy(model, test), 2)
    return record | {"seconds": round(seconds, 1), "optimizer_seconds": round(optimizer_seconds, 1)}


class LimitReachedError(Exception):
    """As many new runs as were asked for are done."""


class Journal:
    """All runs so far, and the file that they are appended to."""

    def __init__(self, limit: int | None = None, cache: Path | None = None) -> None:
        self.runs = [json.loads(line) for line in RUNS.read_text().splitlines()] if RUNS.exists() else []
        self.data: tuple[cifar10.Images, ...] | None = None
        self.limit, self.cache, self.new = limit, cache, 0

    def run(self, name: str, lr: float, seed: int) -> dict:
        for run in self.runs:
            if (run["name"], run["lr"], run["seed"]) == (name, lr, seed):
                return run
        if self.limit is not None and self.new >= self.limit:
            raise LimitReachedError
        self.data = self.data or cifar10.load_cached(self.cache)
        self.new += 1
        peers = [run["validation"][0] for run in self.runs if run["seed"] == TUNING_SEED]
        prune_below = max(peers, default=0) - 20 if seed == TUNING_SEED else 0.0
        run = train(name, lr, seed, self.data, prune_below)
        print(json.dumps(run), flush=True)
        self.runs.append(run)
        with RUNS.open("a") as file:
            file.write(json.dumps(run) + "\n")
        return run

    def tune(self, name: str) -> float:
        """The best learning rate on the grid of powers of two, found by walking uphill on held-out accuracy."""

        def score(lr: float) -> float:
            run = self.run(name, lr, TUNING_SEED)
            return -1.0 if "stopped" in run else run["validation"][-1]

        best = OPTIMIZERS[name][0]
        if name in UNTUNED:
            return best
        for factor in (2.0, 0.5):
            while score(best * factor) > score(best):
                best *= factor
        return best


def summary(journal: Journal) -> dict:
    """For each optimizer: the sweep (rate → held-out accuracy), the best rate, and test accuracy over the seeds."""
    table = {}
    for name in dict.fromkeys(run["name"] for run in journal.runs):
        runs = [run for run in journal.runs if run["name"] == name]
        sweep = {r["lr"]: r["validation"][-1] for r in runs if r["seed"] == TUNING_SEED and "stopped" not in r}
        final = [r for r in runs if r["seed"] in SEEDS and "test" in r]
        best = UNTUNED.get(name) or max(sweep, key=sweep.__getitem__, default=None)
        tried = {r["lr"] for r in runs if r["seed"] == TUNING_SEED}
        finished = name in UNTUNED or (best is not None and {best * 2, best / 2} <= tried)
        row: dict = {"sweep": dict(sorted(sweep.items())), "best_lr": best, "walk_finished": finished}
        if final:
            tests = [r["test"] for r in final]
            row |= {
                "test": tests,
                "test_mean": round(statistics.mean(tests), 2),
                "test_sd": round(statistics.stdev(tests), 2) if len(tests) > 1 else None,
                "seconds_median": statistics.median(r["seconds"] for r in final),
                "optimizer_seconds_median": statistics.median(r["optimizer_seconds"] for r in final),
            }
        table[name] = row
    return {
        "data": "CIFAR-10, JPEG-coded (lossy, median 30.7 dB): 12,000 training, 5,000 held-out, 10,000 test images",
        "model": f"CifarResNet(width={WIDTH}), 7 convolutions",
        "training": f"{EPOCHS} epochs, batch {BATCH}, flips, linear decay to 0, weight decay {WEIGHT_DECAY}",
        "tuning": f"powers of two, uphill on held-out accuracy, seed {TUNING_SEED}; test accuracy at seeds {SEEDS}",
        "optimizers": table,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=("tune", "seeds", "summary", "list"))
    parser.add_argument("names", nargs="*", help="names or shell patterns; see 'list'")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=int, help="stop with status 3 before the run after this many new ones")
    parser.add_argument("--cache", type=Path, help="keep the decoded images in this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    RESULTS.mkdir(exist_ok=True)
    journal = Journal(arguments.limit, arguments.cache)
    if arguments.job == "list":
        print("\n".join(OPTIMIZERS))
    try:
        for name in (name for pattern in arguments.names for name in fnmatch.filter(OPTIMIZERS, pattern)):
            best = journal.tune(name)
            for seed in SEEDS if arguments.job == "seeds" else ():
                journal.run(name, best, seed)
    except LimitReachedError:
        sys.exit(3)
    if arguments.job == "summary":
        (RESULTS / "train_optimizers.json").write_text(json.dumps(summary(journal), indent=1) + "\n")


if __name__ == "__main__":
    main()
