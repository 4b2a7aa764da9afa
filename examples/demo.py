"""The demo: train a small ResNet with Spectral Newton beside AdamW, then measure and show its curvature landscape.

    python -m examples.demo --out demo_output

Everything is computed here and now, from the images in examples/data: two optimizers, a few seeds each, then one
landscape of the network that Spectral Newton trained first. Read demo_output/index.html afterwards.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor, nn

from examples.small_resnet import Images, SmallResNet, load_images
from spectral_ext import plots
from spectral_ext.landscape import measure
from spectral_ext.optim import SpectralNewton
from spectral_ext.report import Section, print_landscape, write_report
from spectral_ext.tracker import LandscapeTracker, Track

BATCH = 100
# Learning rates: for each the best of 0.003, 0.01, 0.02, 0.04 on 1,000 held-out training images, seeds 10 and 11.
OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "AdamW": lambda model: torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.01),
    "Spectral Newton": lambda model: SpectralNewton(model, lr=0.04, weight_decay=0.01),
}


def accuracy(model: nn.Module, images: Images) -> float:
    """Test accuracy in per cent, in eval mode."""
    model.eval()
    with torch.no_grad():
        return 100 * (model(images.test).argmax(1) == images.test_labels).float().mean().item()


def measurement_data(images: Images, samples: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(images.train[:samples].split(128), images.train_labels[:samples].split(128)))


def train(
    name: str,
    seed: int,
    epochs: int,
    images: Images,
    advance: Callable[[], None],
    watch: Callable[[nn.Module], LandscapeTracker] | None = None,
) -> tuple[nn.Module, list[float], float, LandscapeTracker | None]:
    """One run with a linearly falling learning rate.

    Returns:
        The model, its test accuracy by epoch, seconds of training (measurements left out), and the tracker, if any.
    """
    torch.manual_seed(seed)
    model = SmallResNet()
    tracker = watch(model) if watch else None
    if tracker:
        tracker.start()
    optimizer = OPTIMIZERS[name](model)
    steps = epochs * -(-len(images.train) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    curve, seconds = [], 0.0
    for _ in range(epochs):
        start = time.perf_counter()
        model.train()
        for batch in torch.randperm(len(images.train)).split(BATCH):
            loss = F.cross_entropy(model(images.train[batch]), images.train_labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if tracker:
                tracker.step()
            advance()
        seconds += time.perf_counter() - start
        curve.append(accuracy(model, images))
        if tracker:
            tracker.end_epoch()
    return model, curve, seconds, tracker


class Race(NamedTuple):
    """Every optimizer with every seed."""

    model: nn.Module
    """The network that Spectral Newton trained with seed 0."""
    track: Track
    """Its landscapes: at the start and after every epoch."""
    curves: dict[str, list[list[float]]]
    """Optimizer to runs to test accuracy by epoch, in per cent."""
    seconds: dict[str, float]
    """Optimizer to mean seconds of training a run."""


def race(images: Images, seeds: int, epochs: int, samples: int, console: Console) -> Race:
    """Train every optimizer with every seed, in turns, and watch the landscape of one run."""

    def watch(model: nn.Module) -> LandscapeTracker:
        data = measurement_data(images, samples)
        return LandscapeTracker(model, nn.CrossEntropyLoss(), data, tensorboard=False, on_error="raise", split=False)

    curves: dict[str, list[list[float]]] = {name: [] for name in OPTIMIZERS}
    seconds = dict.fromkeys(OPTIMIZERS, 0.0)
    watched: tuple[nn.Module, Track] | None = None
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    )
    total = seeds * epochs * -(-len(images.train) // BATCH)
    with bar:
        tasks = {name: bar.add_task(f"{name}, {seeds} seeds", total=total) for name in OPTIMIZERS}
        for seed in range(seeds):
            for name, task in tasks.items():
                followed = watch if name == "Spectral Newton" and seed == 0 else None
                step = functools.partial(bar.advance, task)
                model, curve, spent, tracker = train(name, seed, epochs, images, step, followed)
                if tracker:
                    watched = model, tracker.track
                curves[name].append(curve)
                seconds[name] += spent / seeds
    assert watched is not None  # there is at least one seed
    return Race(*watched, curves, seconds)


def training_section(race: Race, epochs: int, images: int) -> Section:
    """The race as a section of the page."""
    runs = len(next(iter(race.curves.values())))
    return Section(
        title="Training: Spectral Newton beside AdamW",
        text=f"{runs} seeds each, {epochs} epochs over {images} images of Fashion-MNIST, batches of {BATCH}, a "
        "learning rate that falls to zero; each optimizer with its best learning rate of a coarse sweep on held-out "
        "training images. Thin lines are single seeds. Test accuracy is over 1,000 images, so its standard error is "
        "about one point, the same for both: differences below that mean little.",
        header=("optimizer", "test accuracy, mean", "each seed", "training, s a run"),
        rows=_race_rows(race),
        figures=(plots.learning_curves(race.curves),),
    )


def _race_rows(race: Race) -> list[tuple[str, ...]]:
    rows = []
    for name, runs in race.curves.items():
        final = [run[-1] for run in runs]
        rows.append(
            (name, f"{np.mean(final):.1f} %", ", ".join(f"{v:.1f}" for v in final), f"{race.seconds[name]:.1f}")
        )
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="folder for the page, figures and JSON")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each optimizer (default 3)")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of each run (default 3)")
    parser.add_argument("--samples", type=int, default=512, help="training images for the measurement (default 512)")
    parser.add_argument(
        "--quick", action="store_true", help="a smoke test: 400 images, one seed, one epoch, 64 samples"
    )
    args = parser.parse_args(argv)
    if min(args.seeds, args.epochs, args.samples) < 1:
        parser.error("--seeds, --epochs and --samples must be at least 1")
    if args.quick:
        args.seeds, args.epochs, args.samples = 1, 1, 64
    console = Console()
    start = time.perf_counter()
    images = load_images(train=400, test=100) if args.quick else load_images()

    samples = min(args.samples, len(images.train))
    result = race(images, args.seeds, args.epochs, samples, console)
    table = Table(title="Training", title_justify="left")
    for heading in ("optimizer", "test accuracy", "each seed", "s a run"):
        table.add_column(heading)
    for row in _race_rows(result):
        table.add_row(*row)
    console.print(table)

    result.model.eval()
    landscape = measure(result.model, nn.CrossEntropyLoss(), measurement_data(images, samples), top_k=20)
    print_landscape(landscape, console)

    title = "Curvature landscape of a small ResNet"
    section = training_section(result, args.epochs, len(images.train))
    page = write_report(landscape, args.out, title=title, sections=[section], track=result.track, unit="epoch")
    curves = plots.draw(plots.learning_curves(result.curves), plots.THEMES["light"])
    plots.save(curves, args.out / "figures" / "training.png")
    console.print(f"\nDone in {time.perf_counter() - start:.0f} s. Open [bold]{page}[/bold] in a browser;")
    console.print(f"figures are in {args.out / 'figures'}, the numbers in {args.out / 'landscape.json'}.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
