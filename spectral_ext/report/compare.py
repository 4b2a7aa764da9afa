"""Two landscapes side by side: what changed between them, layer by layer (the ablations of Appendix C)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from spectral_ext import plots
from spectral_ext.landscape import Landscape, LayerLandscape, write_atomically
from spectral_ext.landscape.cells import Cell, number
from spectral_ext.landscape.columns import BY_KEY
from spectral_ext.plots.chart import Chart, as_json
from spectral_ext.plots.comparison import alpha_comparison, overlay
from spectral_ext.report.templating import render_template
from spectral_ext.spectra import Fit


@dataclass(frozen=True)
class Pair:
    """One layer in both landscapes."""

    name: str
    before: LayerLandscape
    after: LayerLandscape

    @property
    def change(self) -> float:
        """Δα = α(after) − α(before)."""
        return self.after.alpha.value - self.before.alpha.value

    @property
    def half_width(self) -> float:
        """Half-width of the interval of Δα: √(a² + b²) of the two half-widths, for independent fits."""
        return math.hypot(_half(self.before.alpha), _half(self.after.alpha))

    @property
    def clear(self) -> bool:
        """Whether the interval of Δα leaves out 0."""
        return abs(self.change) > self.half_width


def _half(fit: Fit) -> float:
    return (fit.interval[1] - fit.interval[0]) / 2


def compare(before: Landscape, after: Landscape) -> list[Pair]:
    """The layers that both landscapes hold, by name, in the order of the first.

    Raises:
        ValueError: they have no layer in common.
    """
    pairs = [Pair(name, row, after[name]) for name, row in before.items() if name in set(after)]
    if not pairs:
        raise ValueError(
            f"the landscapes have no layer in common: one has {_first(before)}, the other {_first(after)}. "
            "Compare the same architecture, or rename the layers"
        )
    return pairs


def _first(landscape: Landscape, limit: int = 3) -> str:
    names = list(landscape)
    return ", ".join(names[:limit]) + (", …" if len(names) > limit else "") if names else "none"


COMPARED = tuple(
    BY_KEY[key]
    for key in ("alpha", "gamma", "s", "rank_model", "pr_curvature", "concentration", "gauss_newton_share",
                "recommended_alpha")
)  # fmt: skip
"""The columns that a comparison shows, before and after."""


def rows(pairs: Sequence[Pair]) -> list[list[Cell]]:
    """A table row per pair: name, Δα with its interval, then before and after for each of ``COMPARED``."""
    table = []
    for pair in pairs:
        if math.isfinite(pair.change):
            text = f"{pair.change:+.2f} ± {pair.half_width:.2f}".replace("-", "−")
            delta = Cell(text, pair.change, "interval of the difference of independent fits", not pair.clear)
        else:
            reason = pair.before.empty_reason or pair.after.empty_reason or "no fit on one side"
            delta = Cell("–", title=reason)
        cells = [Cell(pair.name, pair.name), delta]
        for column in COMPARED:
            for row in (pair.before, pair.after):
                one = column.cell(row)
                cells.append(number(row.alpha.value, 2, one.title, one.doubt) if column.key == "alpha" else one)
        table.append(cells)
    return table


def summary(pairs: Sequence[Pair], names: tuple[str, str]) -> str:
    fitted = [pair for pair in pairs if math.isfinite(pair.change)]
    up = sum(pair.clear and pair.change > 0 for pair in fitted)
    down = sum(pair.clear and pair.change < 0 for pair in fitted)
    return (
        f"From {names[0]} to {names[1]}: α rises clearly in {up} and falls clearly in {down} of {len(fitted)} common "
        f"layers; in the other {len(fitted) - up - down} the interval of the difference contains 0."
    )


def print_comparison(
    before: Landscape, after: Landscape, names: tuple[str, str] = ("A", "B"), console: Console | None = None
) -> None:
    """The comparison in the terminal.

    Raises:
        ValueError: no layer in common.
    """
    console = console or Console()
    pairs = compare(before, after)
    table = Table(title=f"{names[0]} → {names[1]}", title_justify="left")
    table.add_column("layer", no_wrap=True)
    table.add_column("Δα", justify="right", no_wrap=True)
    for heading in ("α", "γ", "s"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("law in rank")
    for cells in rows(pairs):
        table.add_row(
            cells[0].text,
            cells[1].text,
            *(f"{cells[i].text} → {cells[i + 1].text}" for i in (2, 4, 6)),
            cells[8].text if cells[8].text == cells[9].text else f"{cells[8].text} → {cells[9].text}",
        )
    console.print(table)
    console.print(summary(pairs, names))
    for label, one, other in ((names[0], before, after), (names[1], after, before)):
        alone = [name for name in one if name not in set(other)]
        if alone:
            console.print(f"Only in {label}: {', '.join(alone)}", style="dim")


def write_comparison(
    before: Landscape,
    after: Landscape,
    folder: str | Path,
    *,
    names: tuple[str, str] = ("A", "B"),
    others: Mapping[str, Landscape] | None = None,
) -> Path:
    """Write ``comparison.html`` and ``alpha_comparison.png`` into ``folder`` and return the page's path.

    The table compares ``before`` and ``after``; the figures lay all runs over one another, per layer.

    Args:
        before: the first landscape.
        after: the second.
        folder: made if need be.
        names: of the two.
        others: further landscapes by name, drawn beside the two where they hold the same layers.

    Raises:
        ValueError: no layer in common, or two runs have the same name.
    """
    pairs = compare(before, after)
    runs = {names[0]: before, names[1]: after, **(others or {})}
    if len(runs) < 2 + len(others or {}):
        raise ValueError(f"each run needs a name of its own, but these are {', '.join([*names, *(others or {})])}")
    folder = Path(folder)
    layers = [pair.name for pair in pairs]
    fits = {
        run: [one[name].alpha if name in set(one) else Fit.empty("no such layer") for name in layers]
        for run, one in runs.items()
    }
    charts = alpha_comparison(layers, fits)
    plots.save(plots.draw(charts, plots.THEMES["light"]), folder / "alpha_comparison.png")
    place = {name: index for index, name in enumerate(layers)}
    shown = layers[:OVERLAID]
    overlaid = {place[name]: as_json(_overlaid(name, runs), place) for name in shown}
    page = render_template(
        "comparison.html",
        names=names,
        runs=list(runs),
        summary=summary(pairs, names),
        headings=[column.symbol for column in COMPARED],
        rows=rows(pairs),
        layers=shown,
        alone=[
            (names[0], [name for name in before if name not in set(after)]),
            (names[1], [name for name in after if name not in set(before)]),
        ],
        data=dict(names=layers, figures={"alpha": as_json(charts, place)}, layers=overlaid, tracks=[], csv=""),
    )
    return write_atomically(folder / "comparison.html", page)


OVERLAID = 400
"""At most so many layers have charts of their own in a comparison."""


def _overlaid(name: str, runs: Mapping[str, Landscape]) -> list[Chart]:
    """A layer's power law and spectrum, the runs laid over one another."""
    found = []
    for panel in ("power_law", "rank_profile"):
        charts = {run: plots.PANELS[panel](one[name]) for run, one in runs.items() if name in set(one)}
        found.append(dataclasses.replace(overlay(charts), title=plots.PANEL_TITLES[panel]))
    return found
