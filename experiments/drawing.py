"""The frame that all figures share."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure


def panels(count: int) -> tuple[Figure, list[Axes]]:
    """A figure with panels side by side."""
    figure = Figure(figsize=(3.2 * count + 0.4, 2.8), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])
