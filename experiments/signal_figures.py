"""The figures of docs/concepts/signal-and-noise.md, from the results of the other signal_*.py files. Measures nothing.

python experiments/signal_figures.py
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from spectral_ext import plots
from spectral_ext.plots.chart import Chart, Marks

RESULTS = Path(__file__).parent / "results"
IMAGES = Path(__file__).parents[1] / "docs" / "images"


def over_training() -> tuple[list[Chart], list[Chart]]:
    """Resolved directions, and the median α over layers: own batch, held out, of noise and along the momentum."""
    found = json.loads((RESULTS / "signal_training.json").read_text())
    shares, alphas = [], []
    for key, title in (("fresh data", "measured on fresh data"), ("memorised data", "measured on training data")):
        steps = list(found[key])
        place = np.arange(len(steps))
        layers = [list(one["layers"].values()) for one in found[key].values()]
        ticks = [(float(i), f"{int(step):,}") for i, step in enumerate(steps)]
        share = np.array([[100 * one["resolved"] / one["directions"] for one in part] for part in layers])
        lines = [Marks("line", place, one, "muted") for one in share.T]
        lines.append(Marks("line", place, share.mean(1), "green", "mean of the layers", bold=True))
        size = (4.6, 2.9)
        shares.append(
            Chart(title, "step", "resolved directions, %", lines, x_ticks=ticks, y_range=(-2.0, 102.0), size=size)
        )
        marks = [Marks("level", y=[2.0], role="muted")]
        for name, label, role, marker in (
            ("own", "own batch", "ink", "o"),
            ("noise alpha", "of noise, 2/γ", "red", "X"),
            ("along the momentum", "own batch, along the momentum", "orange", "^"),
            ("held out", "held out, resolved directions", "blue", "D"),
        ):
            values = np.array([[one.get(name, np.nan) for one in part] for part in layers], dtype=float)
            enough = np.isfinite(values).sum(1) > 2
            if enough.any():
                middle = np.nanmedian(values[enough], axis=1)
                marks.append(Marks("line", place[enough], middle, role))
                marks.append(Marks("dot", place[enough], middle, role, label, marker))
        losses = [one["loss"] for one in found[key].values()]
        label = f"step (loss {losses[0]:.1f} → {losses[-1]:.2g})"
        alphas.append(Chart("", label, "median α over the layers", marks, x_ticks=ticks, y_range=(0.0, 3.0), size=size))
    return shares, alphas


def resnet20() -> list[Chart]:
    """Per layer over 12 batches: α of the own batch, the α of noise, and how many directions hold."""
    found = json.loads((RESULTS / "signal_cifar_batches.json").read_text())
    own = found["interval of the data"]["alpha"]["layers"]
    place = np.arange(len(own), dtype=float)
    mean, half = (np.array([one[key] for one in own.values()]) for key in ("mean", "median half-width"))
    spread = 2 * np.array([one["sd over batches"] for one in own.values()])
    noise = [float(np.mean(found["noise alpha"][name])) for name in own]
    ticks = list(zip(place.tolist(), own))
    alphas = [
        Marks("level", y=[2.0], role="muted"),
        Marks(
            "bar", place, mean + half, "band", "interval of the data of one batch", low=mean - half, high=mean + half
        ),
        Marks("dot", place, mean, "ink", "own batch: mean, 2 sd over batches", low=mean - spread, high=mean + spread),
        Marks("dot", place, noise, "red", "of noise, 2/γ", "X"),
    ]
    resolved = np.array([np.mean(found["resolved"][name]) for name in own])
    beyond = np.array([np.mean([v for v in found["beyond noise"][name] if v is not None]) for name in own])
    counts = [
        Marks("dot", place, resolved, "green", "resolved by folds", "D"),
        Marks("dot", place, beyond, "orange", "beyond the noise level", "s", hollow=True),
    ]
    size = (4.8, 4.4)
    return [
        Chart("", "", "curvature exponent α", alphas, x_ticks=ticks, y_range=(0.6, 3.0), size=size),
        Chart("", "", "directions, mean of 12 batches", counts, x_ticks=ticks, y_range=(-0.1, 2.0), size=size),
    ]


def main() -> None:
    theme = plots.THEMES["light"]
    shares, alphas = over_training()
    for name, charts in (
        ("signal_training_resolved", shares),
        ("signal_training_alpha", alphas),
        ("signal_resnet20", resnet20()),
    ):
        figure = plots.draw(charts, theme, width=9.2)
        plots.save(figure, IMAGES / f"{name}.png")


if __name__ == "__main__":
    main()
