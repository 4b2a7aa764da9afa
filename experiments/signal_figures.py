"""The figures of docs/concepts/signal-and-noise.md, from the results of the other signal_*.py files. Measures nothing.

python experiments/signal_figures.py
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from spectral_ext.plots.style import LIGHT, drawn_in, new_figure, save_png

RESULTS = Path(__file__).parent / "results"
IMAGES = Path(__file__).parents[1] / "docs" / "images"


def over_training() -> None:
    """Median α over layers, own batch, held out, of noise and along the momentum; and the resolved directions."""
    found = json.loads((RESULTS / "signal_training.json").read_text())
    with drawn_in(LIGHT):
        figure, axes = new_figure(9.2, 5.6, 2, 2)
        for column, (key, title) in enumerate(
            (("fresh data", "measured on fresh data"), ("memorised data", "measured on the training data"))
        ):
            steps = [int(step) for step in found[key]]
            place = range(len(steps))
            layers = [one["layers"].values() for one in found[key].values()]
            upper, lower = axes[column], axes[2 + column]
            for values in zip(*([100 * one["resolved"] / one["directions"] for one in part] for part in layers)):
                upper.plot(place, values, color=LIGHT.muted, lw=0.8)
            shares = [np.mean([one["resolved"] / one["directions"] for one in part]) for part in layers]
            upper.plot(place, 100 * np.array(shares), "o-", color=LIGHT.green, lw=2.2, label="mean of the layers")
            upper.set_title(title)
            upper.set_ylim(-3, 103)
            for name, label, role, marker in (
                ("own", "own batch", "muted", "o"),
                ("noise alpha", "of noise, 2/γ", "red", "_"),
                ("along the momentum", "own batch, along the momentum", "orange", "^"),
                ("held out", "held out, resolved directions", "blue", "D"),
            ):
                each = [[one.get(name) for one in part] for part in layers]
                each = [np.array([v for v in part if v is not None and np.isfinite(v)]) for part in each]
                middle = [np.median(part) if len(part) > 2 else np.nan for part in each]
                if np.isfinite(middle).any():
                    lower.plot(place, middle, marker=marker, color=LIGHT[role], label=label, ms=6, lw=1.6)
            lower.axhline(2, color=LIGHT.muted, ls=":", lw=0.9)
            for one in (upper, lower):
                one.set_xticks(list(place), [f"{step:,}" for step in steps])
            lower.set_ylim(0, 3)
            losses = [one["loss"] for one in found[key].values()]
            lower.set_xlabel(f"step (loss {losses[0]:.1f} → {losses[-1]:.2g})")
        axes[0].set_ylabel("resolved directions, %")
        axes[0].legend(loc="upper right")
        axes[2].set_ylabel("median α over the layers")
        axes[2].legend(loc="lower right", fontsize=8)
        save_png(figure, IMAGES / "signal_training.png")


def resnet20() -> None:
    """Per layer over 12 batches: α of the own batch, the α of noise, and how often a direction is resolved."""
    found = json.loads((RESULTS / "signal_cifar_batches.json").read_text())
    own = found["interval of the data"]["alpha"]["layers"]
    with drawn_in(LIGHT):
        figure, (upper, lower) = new_figure(9.2, 5.2, 2, 1)
        place = np.arange(len(own))
        mean = np.array([one["mean"] for one in own.values()])
        half = np.array([one["median half-width"] for one in own.values()])
        spread = np.array([one["sd over batches"] for one in own.values()])
        noise = [np.mean(found["noise alpha"][name]) for name in own]
        upper.errorbar(place, mean, half, fmt="none", color=LIGHT.rule, lw=5, label="interval of the data of one batch")
        upper.errorbar(
            place,
            mean,
            2 * spread,
            fmt="o",
            ms=5,
            color=LIGHT.ink,
            capsize=2,
            label="own batch: mean, 2 sd over batches",
        )
        upper.plot(place, noise, "_", ms=13, mew=2, color=LIGHT.red, label="of noise, 2/γ")
        upper.axhline(2, color=LIGHT.muted, ls=":", lw=0.9)
        upper.set_ylabel("curvature exponent α")
        upper.legend(loc="lower right", ncols=3, fontsize=8)
        upper.set_xticks(place, [""] * len(own))
        resolved = [np.mean(found["resolved"][name]) for name in own]
        beyond = [np.mean([v for v in found["beyond noise"][name] if v is not None]) for name in own]
        lower.bar(place - 0.2, resolved, 0.38, color=LIGHT.green, label="resolved by folds")
        lower.bar(
            place + 0.2, beyond, 0.38, color=LIGHT.orange, hatch="///", ec=LIGHT.paper, label="σ beyond the noise level"
        )
        lower.set_ylabel("directions of 20, mean")
        lower.set_ylim(0, 4)
        lower.legend(loc="upper left", ncols=2, fontsize=8)
        lower.set_xticks(place, list(own), rotation=90)
        save_png(figure, IMAGES / "signal_resnet20.png")


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    over_training()
    resnet20()


if __name__ == "__main__":
    main()
