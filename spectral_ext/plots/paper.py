"""Charts as matplotlib figures: for papers (PDF with embedded fonts, one or two columns) and for screens (PNG, SVG)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from spectral_ext.landscape.files import write_atomically
from spectral_ext.plots.chart import Chart, Marks
from spectral_ext.plots.style import Theme, plain, settings

FORMATS = ("png", "pdf", "svg", "eps")
NARROWEST_PANEL = 1.55
"""Inches: so many panels stand side by side as are at least this wide."""
PANELS_ABREAST = 4


def draw(charts: Sequence[Chart], theme: Theme, *, width: float | None = None, serif: bool = False) -> Figure:
    """The charts in one figure that no GUI knows of.

    Args:
        charts: drawn in reading order, at most four abreast.
        theme: its colours.
        width: of the figure in inches, such as 3.25 for one column and 6.75 for two; None: what reads best on a screen.
        serif: set the text in a serif face, for papers in Times or Computer Modern.
    """
    with matplotlib.rc_context(settings(theme, small=width is not None and width < 5, serif=serif)):
        columns = min(PANELS_ABREAST, len(charts))
        if width is not None:
            columns = min(columns, max(1, int(width / NARROWEST_PANEL)))
        lines = math.ceil(len(charts) / columns)
        across = sum(chart.size[0] for chart in charts[:columns])
        scale = 1.0 if width is None else width / across
        # A narrower figure keeps its panels a little taller than in proportion: text does not shrink with them.
        high = charts[0].size[1] * (scale if scale >= 1 else scale**0.75)
        figure = Figure(figsize=(across * scale, high * lines), layout="constrained")
        axes = list(figure.subplots(lines, columns, squeeze=False).flat)
        for place, chart in zip(axes, charts):
            _draw(place, chart, theme, figure.get_figwidth() / columns)
        if width is not None:
            _share_labels(axes[: len(charts)], columns)
        for place in axes[len(charts) :]:
            place.set_axis_off()
        _legend(figure, axes, len(charts))
    return figure


def _draw(axes: Axes, chart: Chart, theme: Theme, inches: float) -> None:
    if chart.title:
        axes.set_title(plain(chart.title, max(12, int(11 * inches))))
    if chart.empty:
        axes.set_axis_off()
        axes.text(0.5, 0.5, plain(chart.empty, 300), ha="center", va="center", color=theme.muted, wrap=True)
        return
    if chart.x_log:
        axes.set_xscale("log")
    if chart.y_log:
        axes.set_yscale("log")
    gaps = [np.diff(np.unique(one.x)) for one in chart.marks if one.kind == "bar" and len(one.x) > 1]
    step = min((float(gap.min()) for gap in gaps if len(gap)), default=1.0)
    for one in chart.marks:
        _mark(axes, one, theme, 0.75 * step)
    if chart.x_range is not None:
        axes.set_xlim(chart.x_range)
    if chart.y_range is not None:
        axes.set_ylim(chart.y_range)
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    if chart.x_ticks:
        places, names = zip(*chart.x_ticks)
        axes.set_xticks(places, [plain(name, 22) for name in names])
        axes.grid(visible=False, axis="x")
        if sum(len(name) for name in names) > 9 * inches:
            axes.tick_params("x", rotation=90)
    for axis, logarithmic in ((axes.xaxis, chart.x_log), (axes.yaxis, chart.y_log)):
        if logarithmic:
            _tame_log_ticks(axis, 5 if inches > 2 else 3)
    if chart.remark:
        text = chart.remark if inches > 2 else chart.remark.replace(", R²", "\nR²")
        axes.text(0.03, 0.97, text, transform=axes.transAxes, va="top", fontsize="small")


def _share_labels(axes: Sequence[Axes], columns: int) -> None:
    """Label only the left and the lowest of panels that have the same labels."""
    for index, place in enumerate(axes):
        if index + columns < len(axes) and axes[index + columns].get_xlabel() == place.get_xlabel():
            place.set_xlabel("")
        if index % columns and axes[index - 1].get_ylabel() == place.get_ylabel():
            place.set_ylabel("")


def _mark(axes: Axes, one: Marks, theme: Theme, bar_width: float) -> None:
    colour, label = theme[one.role], plain(one.label) if one.label else None
    x, y = np.asarray(one.x, float), np.asarray(one.y, float)
    if one.kind == "level":
        axes.axhline(y[0], color=colour, lw=1.2 if label else 0.9, ls="-" if label else ":", label=label)
    elif one.kind == "line":
        width = 2.2 if one.bold else 1.0 if one.names or one.dashed or not label else 1.6
        axes.plot(
            x, y, color=colour, lw=width, ls="--" if one.dashed else "-", alpha=0.55 if one.names else 1, label=label
        )
    elif one.kind == "band":
        axes.fill_between(
            x, one.low, one.high, color=colour, hatch=one.hatch or None, lw=0.5 if label else 0,
            ec=theme.paper if label else "none", label=label,
        )  # fmt: skip
    elif one.kind == "bar":
        low = np.asarray(one.low, float)
        axes.bar(x, np.asarray(one.high, float) - low, bar_width, low, color=colour, hatch=one.hatch or None,
                 ec=theme.paper, lw=0.4, label=label)  # fmt: skip
    else:
        style: dict[str, Any] = dict(color=colour, label=label, marker=one.marker, ls="none", mew=0.5, mec=theme.paper)
        if one.hollow or one.marker == "_":
            style |= dict(mfc=theme.paper if one.hollow else colour, mec=colour, mew=1.2)
        if one.low is not None and one.high is not None:
            bars = [y - np.asarray(one.low, float), np.asarray(one.high, float) - y]
            axes.errorbar(x, y, np.nan_to_num(np.array(bars)).clip(0), lw=1.1, capsize=2, **style)
        else:
            axes.plot(x, y, **style)


def _legend(figure: Figure, axes: Sequence[Axes], panels: int) -> None:
    """One legend of all labels: above a single chart, below several."""
    entries: dict[str, Any] = {}
    for place in axes:
        entries |= {label: handle for handle, label in zip(*place.get_legend_handles_labels())}
    if entries:
        # Rough width of an entry in inches: the marker, and half an em per character.
        em = matplotlib.rcParams["legend.fontsize"] / 72
        each = em * (3.2 + 0.52 * max(map(len, entries)))
        columns = max(1, min(len(entries), int(figure.get_figwidth() / each)))
        where: Any = "outside lower center" if panels > 1 else "outside upper left"
        figure.legend(list(entries.values()), list(entries), loc=where, ncols=columns)


def _tame_log_ticks(axis: Any, most: int) -> None:
    """At most so many labels on a logarithmic axis, also where it spans less than a decade."""
    low, high = axis.get_view_interval()
    decades = math.log10(high) - math.log10(low)
    if decades >= 2:
        axis.set_major_locator(LogLocator(10, numticks=most))
    else:
        fine, coarse = ((1, 1.5, 2, 3, 5, 7), (1, 2, 5)) if most > 3 else ((1, 2, 4), (1, 3))
        axis.set_major_locator(LogLocator(10, subs=coarse if decades > 0.7 else fine))
        axis.set_major_formatter(FuncFormatter(_plain))
    axis.set_minor_locator(NullLocator())


def _plain(value: float, position: int) -> str:
    if 1e-3 <= value < 1e4:
        return f"{value:g}"
    exponent = math.floor(math.log10(value))
    return f"{value / 10**exponent:g}e{exponent}"


def save(figure: Figure, path: Path, *, dpi: int = 150) -> Path:
    """Write the figure in the format that the file's name ends with, by ``write_atomically``.

    PDF and EPS files embed TrueType fonts (Type 42), which journals ask for; SVG files keep text as text.

    Raises:
        ValueError: the format is none of ``FORMATS``.
    """
    kind = path.suffix.removeprefix(".")
    if kind not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, not {kind!r}")
    metadata: dict[str, Any] = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None},
                                "pdf": {"CreationDate": None, "Producer": None}}.get(kind, {})  # fmt: skip
    buffer = BytesIO()
    with matplotlib.rc_context({"pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "none"}):
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=metadata)
    return write_atomically(path, buffer.getvalue())
