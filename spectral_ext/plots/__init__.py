"""Every figure of the paper for your own model, drawn from a Landscape; nothing here measures anything.

A chart is data (``chart.py``): ``paper.py`` draws it by matplotlib, the page's script by Observable Plot.
Palette: Okabe–Ito, told apart by marker and hatch as well as by colour. σ and h are in the units of the mean loss.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from spectral_ext.landscape import Landscape, LayerLandscape
from spectral_ext.plots import layers as _layers
from spectral_ext.plots import summary as _summary
from spectral_ext.plots.chart import Chart, Marks
from spectral_ext.plots.paper import FORMATS, draw, save
from spectral_ext.plots.style import ROLES, THEMES, Theme
from spectral_ext.plots.training import exponents_over_time, learning_curves, phase_transition, track_charts
from spectral_ext.tracker import Track

PANELS: dict[str, Callable[[LayerLandscape], Chart]] = {
    "power_law": _layers.power_law,
    "rank_profile": _layers.rank_profile,
    "signal_and_noise": _layers.signal_and_noise,
    "mechanisms": _layers.mechanisms,
    "alpha_quartiles": _layers.quartiles,
    "predicted_spectrum": _layers.predicted_spectrum,
}
"""Figures with one panel per layer."""

PANEL_TITLES = {
    "power_law": "curvature against σ",
    "rank_profile": "gradient spectrum in rank",
    "signal_and_noise": "signal against noise",
    "mechanisms": "where h comes from",
    "alpha_quartiles": "α by quarters of the spectrum",
    "predicted_spectrum": "σ predicted from the factors",
}

SUMMARIES: dict[str, Callable[[Landscape], list[Chart]]] = {
    "signal_by_depth": _summary.signal_by_depth,
    "alpha_by_depth": _summary.alpha_by_depth,
    "transfer_triangle": _summary.transfer_triangle,
    "decomposition": _summary.decomposition,
    "mechanism_split": _summary.mechanism_split,
    "kronecker_slack": _summary.kronecker_slack,
    "participation_ratios": _summary.participation_ratios,
    "weight_exponents": _summary.weight_exponents,
}
"""Figures over all layers."""

NAMES = (*PANELS, *SUMMARIES)

PANEL_LAYERS = 120
"""A figure of panels holds at most so many layers, evenly spaced in depth: a larger PNG file cannot be opened."""
SUMMARY_LAYERS = 400
"""A figure over all layers draws at most so many of them, evenly spaced in depth."""


def charts(landscape: Landscape, name: str) -> list[Chart]:
    """The charts of one figure, as data.

    Raises:
        KeyError: no such figure.
        ValueError: the landscape holds no layer.
    """
    if name not in NAMES:
        raise KeyError(f"no figure {name!r}: there are {', '.join(NAMES)}")
    if not len(landscape):
        raise ValueError("the landscape holds no layer, so there is nothing to draw")
    shown = evenly_spaced(landscape, PANEL_LAYERS if name in PANELS else SUMMARY_LAYERS)
    if name in PANELS:
        return [dataclasses.replace(PANELS[name](row), title=row.name or "(model)") for row in shown.values()]
    return SUMMARIES[name](shown)


def figure(
    landscape: Landscape, name: str, *, theme: str = "light", width: float | None = None, serif: bool = False
) -> Figure:
    """One figure by name (see ``NAMES``), in the ``"light"`` or ``"dark"`` theme.

    Args:
        landscape: what to draw.
        name: one of ``NAMES``.
        theme: ``"light"`` or ``"dark"``.
        width: in inches, such as 3.25 for one column of a paper and 6.75 for two; None: for a screen.
        serif: set the text in a serif face.

    Raises:
        KeyError: no such figure or theme.
        ValueError: the landscape holds no layer, or the width is not positive.
    """
    colours = _theme(theme, width)
    found = charts(landscape, name)
    drawing = draw(found, colours, width=width, serif=serif)
    limit = PANEL_LAYERS if name in PANELS else SUMMARY_LAYERS
    if limit < len(landscape):
        text = f"{limit} of {len(landscape):,} layers, evenly spaced in depth"
        drawing.text(0.995, 0.005, text, ha="right", va="bottom", fontsize=8, color=colours.muted)
    return drawing


def plot(
    landscape: Landscape,
    folder: str | Path | None = None,
    *,
    names: Iterable[str] = NAMES,
    theme: str = "light",
    format: str = "png",
    width: float | None = None,
    serif: bool = False,
) -> dict[str, Figure] | dict[str, Path]:
    """The named figures; with ``folder`` they are written there as ``<name>.<format>`` and their paths returned.

    Args:
        landscape: what to draw.
        folder: made if need be; None: the figures are returned.
        names: some of ``NAMES``.
        theme: ``"light"`` or ``"dark"``.
        format: ``"png"``, ``"pdf"``, ``"svg"`` or ``"eps"``; PDF and EPS files embed Type 42 fonts.
        width: in inches, such as 3.25 for one column of a paper and 6.75 for two; None: for a screen.
        serif: set the text in a serif face.

    Raises:
        KeyError: no such figure or theme.
        ValueError: the landscape holds no layer, the width is not positive, or the format is unknown.
    """
    _check_format(format)
    figures = {name: figure(landscape, name, theme=theme, width=width, serif=serif) for name in names}
    return _written(figures, folder, format)


def plot_track(
    track: Track,
    folder: str | Path | None = None,
    *,
    unit: str = "step",
    theme: str = "light",
    format: str = "png",
    width: float | None = None,
    serif: bool = False,
) -> dict[str, Figure] | dict[str, Path]:
    """The figures over training time (App. E, G, K), as ``plot`` returns them.

    Raises:
        KeyError: no such theme.
        ValueError: an unknown unit or format, or a width that is not positive.
    """
    _check_format(format)
    colours = _theme(theme, width)
    figures = {
        name: draw(found, colours, width=width, serif=serif) for name, found in track_charts(track, unit).items()
    }
    return _written(figures, folder, format)


def _theme(name: str, width: float | None) -> Theme:
    if name not in THEMES:
        raise KeyError(f"no theme {name!r}: there are {', '.join(THEMES)}")
    if width is not None and not width > 0:
        raise ValueError(f"width is in inches and must be positive, not {width}")
    return THEMES[name]


def _check_format(format: str) -> None:
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, not {format!r}")


def _written(
    figures: Mapping[str, Figure], folder: str | Path | None, format: str
) -> dict[str, Figure] | dict[str, Path]:
    if folder is None:
        return dict(figures)
    return {name: save(drawing, Path(folder) / f"{name}.{format}") for name, drawing in figures.items()}


def layer_charts(row: LayerLandscape, names: Sequence[str] = tuple(PANELS)) -> list[Chart]:
    """One layer's own charts, titled by what they show; those that have nothing to show are left out."""
    found = [(name, PANELS[name](row)) for name in names]
    return [dataclasses.replace(chart, title=PANEL_TITLES[name]) for name, chart in found if not chart.empty]


def evenly_spaced(landscape: Landscape, limit: int) -> Landscape:
    """The landscape itself, or ``limit`` of its layers evenly spaced in depth, the first and the last among them."""
    if len(landscape) <= limit:
        return landscape
    rows = sorted(landscape.items(), key=lambda item: item[1].depth)
    chosen = [rows[round(index * (len(rows) - 1) / (limit - 1))] for index in range(limit)]
    return Landscape(dict(chosen), landscape.skipped, landscape.meta)


__all__ = [
    "NAMES",
    "PANELS",
    "ROLES",
    "SUMMARIES",
    "THEMES",
    "Chart",
    "Marks",
    "Theme",
    "charts",
    "draw",
    "evenly_spaced",
    "exponents_over_time",
    "figure",
    "layer_charts",
    "learning_curves",
    "phase_transition",
    "plot",
    "plot_track",
    "save",
    "track_charts",
]
