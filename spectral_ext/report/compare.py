"""Two landscapes side by side: what changed between them, layer by layer (the ablations of Appendix C)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats

from spectral_ext import plots
from spectral_ext.landscape import Landscape, LayerLandscape, write_atomically
from spectral_ext.landscape.cells import Cell, number
from spectral_ext.landscape.columns import BY_KEY
from spectral_ext.plots.chart import Chart, as_json
from spectral_ext.plots.comparison import alpha_comparison, overlay
from spectral_ext.report.templating import render_template
from spectral_ext.signal import Jackknife, jackknife_difference
from spectral_ext.signal.cross_fitting import MIN_GROUPS
from spectral_ext.spectra import Fit


@dataclass(frozen=True)
class Pair:
    """One layer in both landscapes."""

    name: str
    before: LayerLandscape
    after: LayerLandscape
    same_groups: bool = False
    """Whether both were measured with ``folds`` on the same groups of samples, so that their errors go together."""

    @property
    def change(self) -> float:
        """Δα = α(after) − α(before), own batch."""
        return self.after.alpha.value - self.before.alpha.value

    @property
    def kind(self) -> str:
        """Where the interval of Δα comes from: ``"data, paired"``, ``"data, independent"`` or ``"fit"``."""
        before, after = self._replicates
        if len(before) < MIN_GROUPS or len(after) < MIN_GROUPS:
            return "fit"
        return "data, paired" if self.same_groups and len(before) == len(after) else "data, independent"

    @property
    def half_width(self) -> float:
        """Half-width of the interval of Δα.

        Of the data where both sides were measured with ``folds``: on the same groups a jackknife of the difference,
        which knows the covariance of the two; otherwise √(a² + b²) of the two half-widths. Of the fit where they were
        not: √(a² + b²), as if the two fits were independent.
        """
        if self.kind == "data, paired":
            before, after = (
                Jackknife(row.alpha.value, math.nan, (math.nan, math.nan), values, row.alpha.level)
                for row, values in zip((self.before, self.after), self._replicates, strict=True)
            )
            return _half(jackknife_difference(before, after).interval)
        if self.kind == "data, independent":
            return math.hypot(*(_half(row.data_intervals.alpha) for row in (self.before, self.after)))  # type: ignore[union-attr]
        return math.hypot(_half(self.before.alpha.interval), _half(self.after.alpha.interval))

    @property
    def clear(self) -> bool:
        """Whether the interval of Δα leaves out 0."""
        return abs(self.change) > self.half_width

    @property
    def held_out(self) -> tuple[float, float]:
        """The change of the held-out α and the half-width of its interval; NaN where a side has none.

        On the same groups the influence of each group on the two sides is paired; the scatter of the directions around
        the two laws is added as independent.
        """
        if self.before.signal is None or self.after.signal is None:
            return math.nan, math.nan
        before, after = self.before.signal.alpha, self.after.signal.alpha
        if not (before.ok and after.ok):
            return math.nan, math.nan
        groups = len(before.influence)
        if not self.same_groups or groups != len(after.influence) or groups < MIN_GROUPS:
            half = math.hypot(_half(before.interval), _half(after.interval))
        else:
            moved = after.influence - before.influence
            data = float(stats.t.ppf(0.5 + before.level / 2, groups - 1))
            data *= math.sqrt(groups / (groups - 1) * float(moved @ moved))
            half = math.hypot(data, _half(before.fit_interval), _half(after.fit_interval))
        return after.value - before.value, half

    @property
    def _replicates(self) -> tuple[np.ndarray, np.ndarray]:
        before, after = (
            row.data_intervals.replicates.get("alpha", np.zeros(0)) if row.data_intervals else np.zeros(0)
            for row in (self.before, self.after)
        )
        return before, after


def _half(interval: tuple[float, float]) -> float:
    return (interval[1] - interval[0]) / 2


def compare(before: Landscape, after: Landscape) -> list[Pair]:
    """The layers that both landscapes hold, by name, in the order of the first.

    Two landscapes with ``folds`` on the same groups of samples are paired: the interval of Δα uses their covariance.

    Raises:
        ValueError: they have no layer in common.
    """
    groups = before.meta.get("groups"), after.meta.get("groups")
    same = groups[0] is not None and groups[0] == groups[1]
    pairs = [Pair(name, row, after[name], same) for name, row in before.items() if name in set(after)]
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
    for key in ("signal", "alpha", "gamma", "s", "rank_model", "pr_curvature", "concentration", "gauss_newton_share",
                "recommended_alpha")
)  # fmt: skip
"""The columns that a comparison shows, before and after."""


INTERVALS = {
    "data, paired": "interval of the data; both sides were measured on the same groups, and it uses their covariance",
    "data, independent": "interval of the data, from both sides as if they were independent",
    "fit": "interval of the difference of two independent fits; measure both sides with folds=8 on the same data for "
    "the interval of the data",
}


def rows(pairs: Sequence[Pair]) -> list[list[Cell]]:
    """A table row per pair: name, Δα held out and own batch with intervals, then before and after for ``COMPARED``."""
    table = []
    for pair in pairs:
        reason = pair.before.empty_reason or pair.after.empty_reason or "no fit on one side"
        change, half = pair.held_out
        cells = [
            Cell(pair.name, pair.name),
            _change(change, half, "over the resolved directions of each side", "no held-out α on one side"),
            _change(pair.change, pair.half_width, INTERVALS[pair.kind], reason),
        ]
        for column in COMPARED:
            for row in (pair.before, pair.after):
                one = column.cell(row)
                cells.append(number(row.alpha.value, 2, one.title, one.doubt) if column.key == "alpha" else one)
        table.append(cells)
    return table


def _change(change: float, half: float, title: str, reason: str) -> Cell:
    if not math.isfinite(change):
        return Cell("–", title=reason)
    return Cell(f"{change:+.2f} ± {half:.2f}".replace("-", "−"), change, title, not abs(change) > half)


def summary(pairs: Sequence[Pair], names: tuple[str, str]) -> str:
    fitted = [pair for pair in pairs if math.isfinite(pair.change)]
    up = sum(pair.clear and pair.change > 0 for pair in fitted)
    down = sum(pair.clear and pair.change < 0 for pair in fitted)
    text = (
        f"From {names[0]} to {names[1]}: the own-batch α rises clearly in {up} and falls clearly in {down} of "
        f"{len(fitted)} common layers; in the other {len(fitted) - up - down} the interval of the difference contains "
        "0."
    )
    held = [pair.held_out for pair in pairs if math.isfinite(pair.held_out[0])]
    if held:
        clear = sum(abs(change) > half for change, half in held)
        text += f" The held-out α is there on both sides in {len(held)} layers, and differs clearly in {clear}."
    return text


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
    held_out = any(math.isfinite(pair.held_out[0]) for pair in pairs)
    for heading in (*(("Δα held out",) if held_out else ()), "Δα own batch", "α own batch", "γ", "s"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("law in rank")
    start = 5  # behind the name, two changes and the signal of both sides
    for cells in rows(pairs):
        law = cells[start + 6 : start + 8]
        table.add_row(
            cells[0].text,
            *(cell.text for cell in cells[1 if held_out else 2 : 3]),
            *(f"{cells[i].text} → {cells[i + 1].text}" for i in range(start, start + 6, 2)),
            law[0].text if law[0].text == law[1].text else f"{law[0].text} → {law[1].text}",
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
