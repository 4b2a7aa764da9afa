"""A chart as data: what the figures for papers (matplotlib) and the page (Observable Plot) both draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from spectral_ext.spectra import Fit

LARGEST = 1e290
"""Values beyond it, or below its reciprocal on a logarithmic axis, leave no room for a margin and are not drawn."""


@dataclass(frozen=True)
class Marks:
    """Marks of one kind, colour and label.

    Attributes:
        kind: ``dot``, ``line``, ``bar`` (from ``low`` to ``high``), ``band`` (the same, filled along x) or ``level``
            (a horizontal line at ``y[0]``).
        x: abscissae.
        y: ordinates.
        role: a colour of ``plots.ROLES``.
        label: entry in the legend; "" for none.
        marker: matplotlib's marker of a dot.
        low: lower ends of the intervals of dots, or of bars and bands.
        high: the upper ends.
        names: which layer each mark belongs to, for marks that stand for layers.
        hollow: whether dots show the paper inside.
        dashed: whether a line is dashed.
        bold: whether a line is the one to look at.
        hatch: matplotlib's hatch of a bar or band, which tells it apart without colour.
    """

    kind: str
    x: Any = ()
    y: Any = ()
    role: str = "blue"
    label: str = ""
    marker: str = "o"
    low: Any = None
    high: Any = None
    names: Sequence[str] = ()
    hollow: bool = False
    dashed: bool = False
    bold: bool = False
    hatch: str = ""


@dataclass(frozen=True)
class Chart:
    """One pair of axes with its marks.

    Attributes:
        title: heading of the panel; "" for none.
        x_label: of the abscissa, with its unit.
        y_label: of the ordinate.
        marks: drawn in this order.
        x_log: whether the abscissa is logarithmic.
        y_log: whether the ordinate is.
        x_ticks: (place, text) pairs in place of numbers.
        x_range: ends of the axis; None: from the marks.
        y_range: the same for the ordinate.
        remark: text in the corner, such as the value of a fit.
        empty: why there is nothing to draw; "" where there is.
        size: width and height in inches at which it reads best.
    """

    title: str = ""
    x_label: str = ""
    y_label: str = ""
    marks: Sequence[Marks] = ()
    x_log: bool = False
    y_log: bool = False
    x_ticks: Sequence[tuple[float, str]] = ()
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    remark: str = ""
    empty: str = ""
    size: tuple[float, float] = field(default=(3.1, 2.7))


def dots_of_fits(x: Sequence[float], fits: Sequence[Fit], **style: Any) -> Marks:
    """The values of fits as dots with their intervals; an end that is not finite is left out."""
    value = [fit.value for fit in fits]
    low, high = (
        [fit.interval[end] if math.isfinite(fit.interval[end]) else fit.value for fit in fits] for end in (0, 1)
    )
    return Marks("dot", x, value, low=low, high=high, **style)


def drawable(values: np.ndarray) -> np.ndarray:
    """Which values a logarithmic axis can hold with a margin around them."""
    return (values > 1 / LARGEST) & (values < LARGEST)


def _short(values: Any) -> list[float | None]:
    """Four significant digits, and None for what is not finite: enough for a screen, a third of the size."""
    return [float(f"{value:.4g}") if math.isfinite(value) else None for value in np.asarray(values, float).tolist()]


def as_json(charts: Sequence[Chart], place: dict[str, int]) -> list[dict[str, Any]]:
    """The charts for the page's script, without the fields that have their default; ``place`` numbers the layers."""
    found = []
    for chart in charts:
        marks = []
        for one in chart.marks:
            entry: dict[str, Any] = {"kind": one.kind, "role": one.role}
            entry |= {key: _short(getattr(one, key)) for key in ("x", "y") if len(getattr(one, key))}
            entry |= {key: _short(getattr(one, key)) for key in ("low", "high") if getattr(one, key) is not None}
            entry |= {key: getattr(one, key) for key in ("label", "hollow", "dashed", "bold") if getattr(one, key)}
            if one.kind == "dot" and one.marker != "o":
                entry["marker"] = one.marker
            if one.names:
                entry["of"] = [place.get(name) for name in one.names]
            marks.append(entry)
        entry = {key: getattr(chart, key) for key in ("title", "x_label", "y_label", "x_log", "y_log", "x_ticks",
                 "x_range", "y_range", "remark", "empty") if getattr(chart, key)}  # fmt: skip
        found.append(entry | {"marks": marks})
    return found
