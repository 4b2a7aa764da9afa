"""Colours, text and axes of every figure: the Okabe–Ito palette, once for light paper and once for dark screens."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spectral_ext.landscape.files import write_atomically
from spectral_ext.landscape.table import Landscape
from spectral_ext.spectra import Fit

MAX_NAMES = 40
"""With more layers the depth axis shows their index instead of their names."""
ROLES = ("paper", "ink", "muted", "rule", "band", "blue", "orange", "green", "red", "purple", "sky", "yellow")


@dataclass(frozen=True)
class Theme:
    """One colour for each role; ``blue`` … ``yellow`` are Okabe–Ito, darkened or lifted to stand out on the paper."""

    name: str
    paper: str
    ink: str
    muted: str
    rule: str
    band: str
    blue: str
    orange: str
    green: str
    red: str
    purple: str
    sky: str
    yellow: str

    def __getitem__(self, role: str) -> str:
        return getattr(self, role)


LIGHT = Theme(
    "light",
    paper="#ffffff",
    ink="#1b1f24",
    muted="#5b6570",
    rule="#d5dae0",
    band="#e9edf1",
    blue="#0072b2",
    orange="#d98200",
    green="#009e73",
    red="#d55e00",
    purple="#b5588f",
    sky="#3d9bd0",
    yellow="#a89a00",
)
DARK = Theme(
    "dark",
    paper="#14181d",
    ink="#e7ebf0",
    muted="#9aa5b1",
    rule="#353d47",
    band="#232a32",
    blue="#4aa8e0",
    orange="#e69f00",
    green="#1fbf93",
    red="#f07b35",
    purple="#d98fbe",
    sky="#8ccbf2",
    yellow="#f0e442",
)
# Each role of the variable theme is a colour that no figure uses otherwise; the page replaces it by a CSS variable.
_SENTINELS = {role: f"#0a0b{index:02x}" for index, role in enumerate(ROLES, start=16)}
VARIABLE = Theme("variable", **_SENTINELS)
THEMES = {theme.name: theme for theme in (LIGHT, DARK)}

MODEL_ROLES = {"power_law": "orange", "exponential": "purple", "lognormal": "blue"}
KIND_ROLES = {"Linear": "red", "Conv1d": "sky", "Conv2d": "blue", "Conv3d": "purple"}
KIND_MARKERS = {"Linear": "s", "Conv1d": "^", "Conv2d": "o", "Conv3d": "D"}


@contextlib.contextmanager
def drawn_in(theme: Theme) -> Iterator[None]:
    """Matplotlib settings of a theme; the caller's own settings are back when the block ends."""
    settings: Any = {
        "figure.facecolor": theme.paper,
        "axes.facecolor": theme.paper,
        "axes.edgecolor": theme.muted,
        "axes.labelcolor": theme.ink,
        "axes.titlecolor": theme.ink,
        "text.color": theme.ink,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "xtick.labelcolor": theme.ink,
        "ytick.labelcolor": theme.ink,
        "grid.color": theme.rule,
        "grid.linewidth": 0.6,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "axes.titleweight": "bold",
        "axes.labelsize": 9.5,
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
        "legend.fontsize": 8.5,
        "legend.frameon": False,
        "legend.labelcolor": theme.ink,
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "lines.linewidth": 1.6,
        "figure.dpi": 100,
    }
    with matplotlib.rc_context(settings):
        yield


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure that no GUI knows of, and its axes in reading order."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, list(axes.flat)


def new_grid(rows: int, columns: int, *, legend: bool) -> tuple[Figure, list[Axes]]:
    """A grid of equal panels with margins in inches: three times faster than a constrained layout."""
    left, right, bottom, top = 0.72, 0.12, 0.52, 0.3
    wide, high, foot = 3.1, 2.7, 0.3 if legend else 0.0
    width, height = wide * columns, high * rows + foot
    figure = Figure(figsize=(width, height))
    axes = figure.subplots(rows, columns, squeeze=False)
    figure.subplots_adjust(
        left=left / width,
        right=1 - right / width,
        bottom=(bottom + foot) / height,
        top=1 - top / height,
        wspace=(left + right) / (wide - left - right),
        hspace=(bottom + top) / (high - bottom - top),
    )
    return figure, list(axes.flat)


def message(axes: Axes, text: str, theme: Theme) -> None:
    """Say in the axes why they are empty."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, plain(text, 300), ha="center", va="center", color=theme.muted, fontsize=9, wrap=True)


def plain(text: str, limit: int = 34) -> str:
    """Text of a user, such as a layer's name, as matplotlib shows it literally: no mathematics, one line, at most
    ``limit`` characters, of which the last are kept.
    """
    text = "".join(c if c.isprintable() else " " for c in text) or "(model)"
    text = text if len(text) <= limit else "…" + text[-(limit - 1) :]
    return text.replace("$", r"\$")


def whiskers(fit: Fit) -> list[list[float]]:
    """The two lengths of an error bar for the interval of a fit, as ``errorbar`` takes them; 0 where an end is not
    finite.
    """
    ends = (fit.value - fit.interval[0], fit.interval[1] - fit.value)
    return [[max(end, 0.0) if math.isfinite(end) else 0.0] for end in ends]


def save_png(figure: Figure, path: Path, *, dpi: int = 150) -> Path:
    """Write the figure as a PNG file, by ``write_atomically``."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return write_atomically(path, buffer.getvalue())


def to_svg(figure: Figure, name: str) -> str:
    """The figure as an inline SVG element: colours are CSS variables, ids are unique to ``name``, no fixed size.

    The figure must have been drawn in ``VARIABLE``.
    """
    buffer = StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "spectral-ext"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].rstrip()
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->|<defs>\s*</defs>", "", svg, flags=re.DOTALL)
    for role, colour in _SENTINELS.items():
        svg = svg.replace(colour, f"var(--{role})")
    svg = re.sub(r"font: (bold )?([\d.]+)px [^;\"]*", r"font-size: \2px; font-weight: \1", svg)
    svg = re.sub(r" font-weight: (?=[;\"])|font-family: [^;\"]*;? ?", "", svg)
    svg = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), svg)
    used = set(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda match: f' id="{name}-{match[1]}"' if match[1] in used else "", svg)
    svg = re.sub(r'(xlink:href="#|url\(#)([^")]+)', rf"\g<1>{name}-\2", svg)
    svg = re.sub(r"\s*\n\s*", " ", svg)
    opening = svg[: svg.index(">")]
    width, height = figure.get_size_inches() * 72
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg class="plot" {size} role="img"' + svg[len(opening) :]


def layer_names(axes: Axes, landscape: Landscape) -> None:
    """Layer names under the depth axis, or the depth index alone where there are too many of them."""
    rows = list(landscape.values())
    axes.set_xlim(min(row.depth for row in rows) - 0.6, max(row.depth for row in rows) + 0.6)
    axes.grid(visible=False, axis="x")
    if len(rows) <= MAX_NAMES:
        longest = max(len(row.name) for row in rows)
        names = [plain(row.name, 22) for row in rows]
        axes.set_xticks([row.depth for row in rows], names, rotation=90 if len(rows) > 14 or longest > 14 else 45)
        for label in axes.get_xticklabels():
            label.set(ha="center" if label.get_rotation() == 90 else "right", rotation_mode="anchor")
            if label.get_rotation() == 90:
                label.set(ha="right", va="center", rotation_mode="anchor")
    else:
        axes.set_xlabel("depth index of the layer")


def layer_width(landscape: Landscape) -> float:
    return min(11.0, max(5.6, 1.8 + 0.34 * len(landscape)))
