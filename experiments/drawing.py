"""The frame that all figures share, and the files that they become."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spectral_ext.plots.style import THEMES, settings


def panels(count: int) -> tuple[Figure, list[Axes]]:
    """A figure with panels side by side."""
    figure = Figure(figsize=(3.2 * count + 0.4, 2.8), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def save_png(draw: Callable[[], Figure], path: Path) -> Path:
    """Draw in the package's light theme and write a PNG file; the same figure gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(settings(THEMES["light"])):
        draw().savefig(path, dpi=90, metadata={"Software": None})
    return path
