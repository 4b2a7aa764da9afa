"""Figures over training time: the spectral phase transition (Figure 6, App. G, K) and the exponents (App. E)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from spectral_ext.plots.style import MODEL_ROLES, Theme, message, new_figure
from spectral_ext.spectra.rank_models import MODEL_NAMES
from spectral_ext.tracker import Track

DRAWN_LAYERS = 400
"""Beyond this many layers only every second, third, … is drawn as a thin line; the median is over all of them."""


def track_figures(track: Track, theme: Theme, unit: str = "step") -> dict[str, Figure]:
    """The figures over time of a tracked run: ``phase_transition`` and ``exponents_over_time``.

    Args:
        track: what a ``LandscapeTracker`` collected.
        theme: the theme that the caller draws in.
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
        "phase_transition": phase_transition(moments, track.winners(), theme, unit),
        "exponents_over_time": exponents_over_time(moments, series, theme, unit),
    }


def phase_transition(steps: Sequence[float], winners: Sequence[Mapping[str, int]], theme: Theme, unit: str) -> Figure:
    """Share of layers whose σ each rank model describes best, over training.

    Args:
        steps: when each snapshot was taken.
        winners: per snapshot, how many layers each rank model wins by BIC.
        theme: the theme that the caller draws in.
        unit: of ``steps``.
    """
    figure, (axes,) = new_figure(5.6, 3.6)
    counts = np.array([[one.get(model, 0) for model in MODEL_ROLES] for one in winners], dtype=float)
    if not len(steps) or not counts.sum():
        message(axes, "no snapshot has a rank model", theme)
        return figure
    share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    hatches = ("...", "///", None)
    for index, (model, role) in enumerate(MODEL_ROLES.items()):
        base = share[:, :index].sum(1)
        if len(steps) > 1:
            axes.fill_between(
                steps, base, base + share[:, index], color=theme[role], label=MODEL_NAMES[model],
                ec=theme.paper, lw=0.5, hatch=hatches[index],
            )  # fmt: skip
        else:
            axes.bar(steps, share[:, index], 0.5, base, color=theme[role], label=MODEL_NAMES[model])
    axes.set_xlabel(unit)
    axes.set_ylabel("layers won by BIC, %")
    axes.set_ylim(0, 100)
    if len(steps) > 1:
        axes.set_xlim(min(steps), max(steps))
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3)
    return figure


def exponents_over_time(
    steps: Sequence[float], series: Mapping[str, Mapping[str, Sequence[float]]], theme: Theme, unit: str
) -> Figure:
    """Each layer's exponents over training as thin lines, and their median bold.

    Args:
        series: exponent name (``"α, own batch"``, ``"γ"``, ``"s"``) to layer name to one value per step (NaN where
            there is none).
    """
    figure, axes = new_figure(2.3 * max(1, len(series)), 3.3, 1, max(1, len(series)))
    if not series:
        message(axes[0], "no exponent was tracked", theme)
    for place, (name, layers), role in zip(axes, series.items(), ("blue", "orange", "green", "purple", "red") * 4):
        values = np.array([list(one) for one in layers.values()], dtype=float)
        for line in values[:: math.ceil(max(len(values), 1) / DRAWN_LAYERS)]:
            place.plot(steps, line, color=theme[role], lw=0.8, alpha=0.5)
        if len(values) and np.isfinite(values).any():
            middle = [np.nanmedian(column) if np.isfinite(column).any() else np.nan for column in values.T]
            place.plot(steps, middle, color=theme.ink, lw=2.2, marker="o", ms=3.5, label="median of all layers")
            if place is axes[0]:
                place.legend(loc="lower left", bbox_to_anchor=(0, 1.0))
        if name.startswith("α"):
            place.axhline(2, color=theme.muted, ls=":", lw=0.9)
        place.set_xlabel(unit)
        place.set_ylabel(name)
    return figure


def learning_curves(
    curves: Mapping[str, Sequence[Sequence[float]]],
    theme: Theme,
    *,
    xlabel: str = "epoch",
    ylabel: str = "test accuracy, %",
) -> Figure:
    """One line a run, one colour an optimizer; the runs' mean is bold.

    Args:
        curves: optimizer name to runs (seeds), each a sequence with one value an epoch from epoch 1 on.
    """
    figure, (axes,) = new_figure(5.6, 3.6)
    markers = ("o", "s", "^", "D", "X")
    roles = ("blue", "red", "green", "purple", "orange")
    for (name, runs), role, marker in zip(curves.items(), roles, markers):
        values = np.array(runs, dtype=float)
        epochs = np.arange(1, values.shape[1] + 1)
        for run in values:
            axes.plot(epochs, run, color=theme[role], lw=0.8, alpha=0.5)
        axes.plot(epochs, values.mean(0), color=theme[role], lw=2.2, marker=marker, ms=5, mec=theme.paper, label=name)
        axes.set_xticks(epochs)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.legend(loc="lower right")
    return figure
