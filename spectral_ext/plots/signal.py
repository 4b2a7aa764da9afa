"""Figures on signal and noise: which directions hold on other samples, and what α is over them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spectral_ext.landscape import Landscape, LayerLandscape
from spectral_ext.plots.style import Theme, layer_names, layer_width, message, new_figure

VERDICT_ROLES = {"signal": "green", "mixed": "orange", "noise": "red", "too few groups": "muted"}
VERDICT_HATCHES = {"signal": None, "mixed": "///", "noise": "...", "too few groups": "xxx"}


def signal_by_depth(landscape: Landscape, theme: Theme) -> Figure:
    """Above: which part of the directions holds on other samples. Below: α held out with its interval, α of the own
    batch, and the α that noise alone would have.
    """
    rows = [row for row in landscape.values() if not row.empty_reason]
    judged = [row for row in rows if row.signal is not None and len(row.signal.sigma)]
    if not judged:
        return _without_folds(landscape, rows, theme)
    figure, (upper, lower) = new_figure(layer_width(landscape), 5.6, rows=2)
    for verdict, role in VERDICT_ROLES.items():
        chosen = [row for row in judged if row.signal and row.signal.verdict == verdict]
        if not chosen:
            continue
        share = [100 * row.signal.resolved / len(row.signal.sigma) for row in chosen if row.signal]
        upper.bar(
            [row.depth for row in chosen], share, 0.7, color=theme[role], hatch=VERDICT_HATCHES[verdict],
            ec=theme.paper, lw=0.4, label=f"{verdict} ({len(chosen)})",
        )  # fmt: skip
        # A bar of height 0 cannot be seen: the marker says that the layer was tested.
        upper.plot([row.depth for row in chosen], share, "_", ms=9, mew=2, color=theme[role])
    upper.set_ylim(-3, 103)
    upper.set_ylabel("resolved directions, %")
    layer_names(upper, landscape)
    upper.set_xticklabels([])
    upper.set_xlabel("")
    upper.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=4)
    _alphas(lower, rows, theme)
    layer_names(lower, landscape)
    return figure


def _without_folds(landscape: Landscape, rows: Sequence[LayerLandscape], theme: Theme) -> Figure:
    figure, (axes,) = new_figure(layer_width(landscape), 3.8)
    if not any(row.alpha.ok for row in rows):
        message(axes, "no layer has a fit of α", theme)
        return figure
    _alphas(axes, rows, theme)
    axes.set_title("not tested on other samples: measure with folds=8", fontsize=9, color=theme.muted)
    layer_names(axes, landscape)
    return figure


def _alphas(axes: Axes, rows: Sequence[LayerLandscape], theme: Theme) -> None:
    own = [row for row in rows if row.alpha.ok]
    noise = [row for row in rows if np.isfinite(row.noise_alpha) and row.noise_alpha < 10]
    held = [row for row in rows if row.signal is not None and row.signal.alpha.ok]
    axes.plot(
        [row.depth for row in noise], [row.noise_alpha for row in noise], "_", ms=13, mew=1.6, color=theme.red,
        label="of noise, 2/γ",
    )  # fmt: skip
    axes.plot(
        [row.depth for row in own], [row.alpha.value for row in own], "o", ms=5, mfc=theme.paper, mec=theme.muted,
        label="own batch",
    )  # fmt: skip
    if held:
        values = np.array([row.signal.alpha.value for row in held if row.signal])
        ends = np.array([row.signal.alpha.interval for row in held if row.signal])
        bars = np.abs(np.stack([values - ends[:, 0], ends[:, 1] - values]))
        axes.errorbar(
            [row.depth for row in held], values, np.where(np.isfinite(bars), bars, 0), fmt="D", ms=5, lw=1.1,
            capsize=2, color=theme.blue, mec=theme.paper, label="held out, with its interval",
        )  # fmt: skip
    shown = [row.alpha.value for row in own] + [row.signal.alpha.value for row in held if row.signal]
    shown += [row.noise_alpha for row in noise]
    if shown:
        axes.set_ylim(min(shown) - 0.5, max(shown) + 0.5)
    axes.set_ylabel("curvature exponent α")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3)
