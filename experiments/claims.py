"""Claims of the paper against our measurements: intervals over seeds, of the fit and of the data, and the verdicts.

The rule of the verdict, for a claim that a number lies in a range:

* **reproduced**: the mean over seeds of the own-batch number lies in the range, and so does the held-out number;
* **reproduced for one batch only**: the own-batch number lies in the range, the held-out does not, or fewer than half
  of the directions hold on other samples, so that there is no held-out number of the kind;
* **not reproduced**: neither the own-batch mean nor its interval over seeds touches the range;
* **not testable here**: the mean lies outside the range and its interval touches it, so that these seeds do not decide;
  or this scale has nothing that could.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

REPRODUCED, ONE_BATCH, FAILED, UNTESTABLE = (
    "reproduced",
    "reproduced for one batch only",
    "not reproduced",
    "not testable here",
)
ENOUGH = 0.5
"""Share of directions that must hold on other samples, so that a statement about (σ, h) says more than one batch."""
Record = dict[str, Any]
Layer = dict[str, Any]


@dataclass(frozen=True)
class Interval:
    """A mean with its two-sided 95 % Student interval over seeds; the interval of one value is NaN."""

    value: float
    low: float
    high: float
    n: int = 0

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]" if self.n > 1 else f"{self.value:.2f}"

    @property
    def ok(self) -> bool:
        return math.isfinite(self.value)

    def inside(self, low: float, high: float) -> bool:
        """Whether the mean lies in [low, high]."""
        return low <= self.value <= high

    def undecided(self, low: float, high: float) -> bool:
        """Whether the mean lies outside [low, high] and the interval overlaps it."""
        return self.n > 1 and not self.inside(low, high) and self.low <= high and self.high >= low


def over_seeds(values: Iterable[float | None]) -> Interval:
    """The mean of one number per seed and its interval; seeds without a number are left out."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    if not known:
        return Interval(math.nan, math.nan, math.nan)
    mean = statistics.fmean(known)
    if len(known) == 1:
        return Interval(mean, math.nan, math.nan, 1)
    half = float(stats.t.ppf(0.975, len(known) - 1)) * statistics.stdev(known) / math.sqrt(len(known))
    return Interval(mean, mean - half, mean + half, len(known))


def layers_of(record: Record, types: Sequence[str] | None = None) -> list[Layer]:
    """The layers of a record that were measured, those of the given types."""
    return [
        layer
        for layer in record["layers"].values()
        if "empty" not in layer and (types is None or layer.get("type") in types)
    ]


def number(layer: Layer, key: str) -> float:
    """A number of a layer, the value of a fit; NaN where there is none."""
    value = layer.get(key)
    value = value[0] if isinstance(value, list) else value
    return math.nan if value is None else float(value)


def middle(values: Iterable[float]) -> float:
    """The median of the known values; NaN if there are none."""
    known = [v for v in values if math.isfinite(v)]
    return statistics.median(known) if known else math.nan


def mean(values: Iterable[float]) -> float:
    """The mean of the known values; NaN if there are none."""
    known = [v for v in values if math.isfinite(v)]
    return statistics.fmean(known) if known else math.nan


def per_seed(records: list[Record], of: Callable[[list[Layer]], float], types: Sequence[str] | None = None) -> Interval:
    """A number of each seed's layers, over the seeds."""
    return over_seeds(of(layers_of(record, types)) for record in records)


def half_width(layers: Iterable[Layer], key: str, first: int) -> float:
    """Median half width of the intervals that stand at ``first`` in ``key``."""
    pairs = [layer.get(key) or [None] * (first + 2) for layer in layers]
    known = [(p[first], p[first + 1]) for p in pairs if p[first] is not None and p[first + 1] is not None]
    return statistics.median((high - low) / 2 for low, high in known) if known else math.nan


def resolved_share(records: list[Record], types: Sequence[str] | None = None) -> float:
    """Share of all directions that hold on other samples."""
    counts = [layer["resolved"] for record in records for layer in layers_of(record, types) if "resolved" in layer]
    total = sum(of for _, of in counts)
    return sum(n for n, _ in counts) / total if total else math.nan


@dataclass(frozen=True)
class Exponent:
    """α of a kind of layer: means over layers, intervals over seeds, and typical intervals of a single layer."""

    own: Interval
    fit: float
    """Median half width of a layer's interval of the fit."""
    data: float
    """Median half width of a layer's interval of the data."""
    held: Interval
    """Over the layers whose held-out α could be fitted."""
    held_data: float
    layers: int
    fitted: int
    """Layers of all seeds with a held-out α."""
    resolved: float

    def own_text(self) -> str:
        return f"{self.own}; per layer ±{self.fit:.2f} (fit), ±{self.data:.2f} (data)"

    def held_text(self) -> str:
        share = f"{100 * self.resolved:.0f} % of directions resolved"
        if not self.held.ok:
            return f"no layer has enough resolved directions; {share}"
        return f"{self.held} in {self.fitted} of {self.layers} layers, per layer ±{self.held_data:.2f} (data); {share}"


def exponent(records: list[Record], types: Sequence[str] | None = None) -> Exponent:
    """α of all layers of these types, own-batch and held-out."""
    every = [layer for record in records for layer in layers_of(record, types)]
    fitted = [layer for layer in every if math.isfinite(number(layer, "held_out"))]
    return Exponent(
        own=per_seed(records, lambda own: mean(number(one, "alpha") for one in own), types),
        fit=half_width(every, "alpha", 1),
        data=half_width(every, "alpha_data", 0),
        held=per_seed(records, lambda own: mean(number(one, "held_out") for one in own), types),
        held_data=half_width(fitted, "held_out_data", 0),
        layers=len(every),
        fitted=len(fitted),
        resolved=resolved_share(records, types),
    )


@dataclass(frozen=True)
class Claim:
    """One line of RESULTS.md."""

    where: str
    claim: str
    published: str
    own: str
    held: str
    verdict: str
    overturn: str


def untestable(where: str, claim: str, published: str, needs: str) -> Claim:
    """A claim that this scale cannot decide, and what would."""
    return Claim(where, claim, published, "–", "–", UNTESTABLE, f"It needs {needs}.")


def _more_seeds(span: str) -> str:
    return f"More seeds: the mean lies outside {span}, its interval overlaps it."


def exponent_claim(where: str, claim: str, published: str, low: float, high: float, found: Exponent) -> Claim:
    """Whether α lies in [low, high], own-batch and held-out."""
    if not found.own.ok:
        return Claim(where, claim, published, "no value", "–", UNTESTABLE, "It needs layers whose α can be fitted.")
    span = f"[{low:g}, {high:g}]"
    verdict = UNTESTABLE if found.own.undecided(low, high) else FAILED
    if found.own.inside(low, high):
        held = found.held.inside(low, high) and found.resolved >= ENOUGH
        verdict = REPRODUCED if held else ONE_BATCH
    overturn = {
        REPRODUCED: f"An own-batch or a held-out mean outside {span}.",
        ONE_BATCH: f"A held-out mean in {span} with at least half of the directions resolved, for “reproduced”; an "
        f"own-batch mean outside {span}, for “not reproduced”.",
        FAILED: f"An own-batch mean in {span}.",
        UNTESTABLE: _more_seeds(span),
    }[verdict]
    return Claim(where, claim, published, found.own_text(), found.held_text(), verdict, overturn)


def number_claim(
    where: str,
    claim: str,
    published: str,
    low: float,
    high: float,
    found: Interval,
    *,
    resolved: float = math.nan,
    digits: int = 2,
    note: str = "",
) -> Claim:
    """Whether a number lies in [low, high].

    Args:
        resolved: share of directions that hold on other samples, for numbers that are made of (σ, h) of one batch; NaN
            for numbers that use no directions (weights, training).
    """
    if not found.ok:
        return Claim(
            where, claim, published, "no value", note or "–", UNTESTABLE, "It needs layers that have the number."
        )
    text = f"{found.value:.{digits}f}"
    text += f" [{found.low:.{digits}f}, {found.high:.{digits}f}]" if found.n > 1 else ""
    verdict = UNTESTABLE if found.undecided(low, high) else FAILED
    if found.inside(low, high):
        verdict = ONE_BATCH if resolved < ENOUGH else REPRODUCED
    span = f"[{low:g}, {high:g}]"
    overturn = f"A mean over seeds {'outside' if verdict == REPRODUCED else 'in'} {span}."
    if verdict == UNTESTABLE:
        overturn = _more_seeds(span)
    if verdict == ONE_BATCH:
        overturn = (
            f"The same on directions of which at least half hold on other samples; or an interval outside {span}."
        )
    held = "uses no directions" if math.isnan(resolved) else f"{100 * resolved:.0f} % of directions resolved"
    return Claim(where, claim, published, f"{text}{f'; {note}' if note else ''}", held, verdict, overturn)


def order_claim(
    where: str,
    claim: str,
    published: str,
    difference: Interval,
    *,
    resolved: float = math.nan,
    digits: int = 2,
    note: str = "",
) -> Claim:
    """Whether a difference is positive: its whole interval above zero."""
    made = number_claim(where, claim, published, 0.0, math.inf, difference, resolved=resolved, digits=digits, note=note)
    if difference.n < 2:
        return replace(made, verdict=UNTESTABLE, overturn="It needs at least two seeds.")
    if difference.low > 0:
        return replace(made, overturn="An interval over seeds that contains zero or lies below it.")
    return replace(made, verdict=FAILED, overturn="An interval over seeds that lies above zero.")


def correlation(x: Iterable[float], y: Iterable[float]) -> float:
    """Spearman's rank correlation over the pairs that are both known; NaN for fewer than four."""
    pairs = np.array([(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)])
    return float(stats.spearmanr(*pairs.T).statistic) if len(pairs) > 3 else math.nan


@dataclass(frozen=True)
class Table:
    """A table of text, printed and written alike."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""

    def markdown(self, heading: str = "") -> str:
        """As Markdown; the title is left out where it is the ``heading`` above the table."""
        title = [] if self.title == heading else [f"**{self.title}**", ""]
        head, *rows = (
            "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (self.header, *self.rows)
        )
        lines = [*title, head, "|---" * len(self.header) + "|", *rows]
        return "\n".join([*lines, *(["", self.note] if self.note else [])])

    def rich(self) -> Any:
        """The same for a terminal."""
        from rich.table import Table as RichTable

        table = RichTable(title=self.title, title_justify="left", caption=self.note or None)
        for heading in self.header:
            table.add_column(heading)
        for row in self.rows:
            table.add_row(*row)
        return table


def exponent_rows(studies: Iterable[tuple[str, list[Record], str, Sequence[str]]]) -> list[tuple[str, ...]]:
    """Rows (network, layers, α own-batch, ± fit, ± data, R², held-out, resolved) for (title, records, label, types)."""
    rows = []
    for title, records, label, types in studies:
        found = exponent(records, types)
        if not found.layers:
            continue
        r2 = middle((layer["alpha"][3] or math.nan) for record in records for layer in layers_of(record, types))
        held = f"{found.held} ({found.fitted} of {found.layers})" if found.held.ok else "–"
        widths = (f"{found.fit:.2f}", f"{found.data:.2f}")
        rows.append((title, label, str(found.own), *widths, f"{r2:.2f}", held, f"{100 * found.resolved:.0f} %"))
    return rows


EXPONENT_HEADER = ("network", "layers", "α own batch, over seeds", "± fit", "± data", "R²", "α held out", "resolved")
