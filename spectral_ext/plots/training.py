"""Charts over training time: the spectral phase transition (Figure 6, App. G, K) and the exponents (App. E)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from spectral_ext.plots.chart import Chart, Marks
from spectral_ext.plots.style import MODEL_ROLES
from spectral_ext.spectra.rank_models import MODEL_NAMES
from spectral_ext.tracker import Track

DRAWN_LAYERS = 400
"""Beyond this many layers only every second, third, … is drawn as a thin line; the median is over all of them."""


def track_charts(track: Track, unit: str = "step") -> dict[str, list[Chart]]:
    """The charts over time of a tracked run: ``phase_transition`` and ``exponents_over_time``.

    Args:
        track: what a ``LandscapeTracker`` collected.
        unit: ``"step"`` or ``"epoch"``, for the abscissa.

    Raises:
        ValueError: an unknown unit.
    """
    if unit not in ("step", "epoch"):
        raise ValueError(f"unit must be 'step' or 'epoch', not {unit!r}")
    times = dict(zip(track.steps, track.steps if unit == "step" else track.epochs))
    series: dict[str, dict[str, list[float]]] = {}
    quantities = [("α, own batch", "alpha"), ("γ", "gamma"), ("s", "s")]
    if any(row.signal is not None for landscape in track for row in landscape.values()):
        quantities[:0] = [("resolved directions", "resolved"), ("α, held out", "alpha_held_out")]
    for symbol, quantity in quantities:
        series[symbol] = {}
        for layer, (steps, values) in track.series(quantity).items():
            known = dict(zip(steps, values))
            series[symbol][layer] = [known.get(step, float("nan")) for step in times]
    moments = list(times.values())
    return {
        "phase_transition": phase_transition(moments, track.winners(), unit),
        "exponents_over_time": exponents_over_time(moments, series, unit),
    }


def phase_transition(steps: Sequence[float], winners: Sequence[Mapping[str, int]], unit: str) -> list[Chart]:
    """Share of layers whose σ each rank model describes best, over training.

    Args:
        steps: when each snapshot was taken.
        winners: per snapshot, how many layers each rank model wins by BIC.
        unit: of ``steps``.
    """
    counts = np.array([[one.get(model, 0) for model in MODEL_ROLES] for one in winners], dtype=float)
    if not len(steps) or not counts.sum():
        return [Chart(empty="no snapshot has a rank model", size=(5.6, 3.6))]
    share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    marks = []
    for index, ((model, role), hatch) in enumerate(zip(MODEL_ROLES.items(), ("...", "///", ""))):
        base = share[:, :index].sum(1)
        top = base + share[:, index]
        kind = "band" if len(steps) > 1 else "bar"
        marks.append(Marks(kind, steps, top, role, MODEL_NAMES[model], low=base, high=top, hatch=hatch))
    span = (float(min(steps)), float(max(steps))) if len(steps) > 1 else None
    return [
        Chart(
            x_label=unit, y_label="layers won by BIC, %", marks=marks, x_range=span, y_range=(0, 100), size=(5.6, 3.6)
        )
    ]


def exponents_over_time(
    steps: Sequence[float], series: Mapping[str, Mapping[str, Sequence[float]]], unit: str
) -> list[Chart]:
    """Each layer's exponents over training as thin lines, and their median bold.

    Args:
        steps: when each snapshot was taken.
        series: exponent name (``"α, own batch"``, ``"γ"``, …) to layer name to one value per step (NaN where there is
            none).
        unit: of ``steps``.
    """
    charts = []
    for (name, layers), role in zip(series.items(), ("blue", "orange", "green", "purple", "red") * 4):
        values = np.array([list(one) for one in layers.values()], dtype=float)
        shown = list(layers)[:: math.ceil(max(len(values), 1) / DRAWN_LAYERS)]
        marks = [Marks("line", steps, list(layers[layer]), role, names=[layer]) for layer in shown]
        if len(values) and np.isfinite(values).any():
            middle = [np.nanmedian(column) if np.isfinite(column).any() else np.nan for column in values.T]
            marks.append(Marks("line", steps, middle, "ink", "median of all layers", bold=True))
        if name.startswith("α"):
            marks.append(Marks("level", y=[2.0], role="muted"))
        charts.append(Chart(x_label=unit, y_label=name, marks=marks, size=(2.6, 3.3)))
    return charts or [Chart(empty="no exponent was tracked", size=(5.6, 3.3))]


def learning_curves(
    curves: Mapping[str, Sequence[Sequence[float]]], *, xlabel: str = "epoch", ylabel: str = "test accuracy, %"
) -> list[Chart]:
    """A thin line per run and a colour per optimizer; the mean of the runs is bold.

    Args:
        curves: optimizer name to runs (seeds), each a sequence with one value per epoch from epoch 1 on.
        xlabel: of the abscissa.
        ylabel: of the ordinate.
    """
    marks = []
    roles = ("blue", "red", "green", "purple", "orange")
    markers = ("o", "s", "^", "D", "X")
    epochs = np.arange(1, 2)
    for (name, runs), role, marker in zip(curves.items(), roles, markers):
        values = np.array(runs, dtype=float)
        epochs = np.arange(1, values.shape[1] + 1)
        marks += [Marks("line", epochs, run, role) for run in values]
        marks.append(Marks("line", epochs, values.mean(0), role, bold=True))
        marks.append(Marks("dot", epochs, values.mean(0), role, name, marker))
    ticks = [(float(epoch), str(epoch)) for epoch in epochs] if len(epochs) <= 12 else ()
    return [Chart(x_label=xlabel, y_label=ylabel, marks=marks, x_ticks=ticks, size=(5.6, 3.6))]
