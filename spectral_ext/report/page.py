"""One HTML page that needs nothing else: figures inline, styles inline, readable offline, in light and dark."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spectral_ext import plots
from spectral_ext.landscape import Landscape, LayerLandscape, write_atomically
from spectral_ext.landscape.cells import WEAK_R2
from spectral_ext.landscape.columns import BY_KEY, COLUMNS, PAGE, page_columns
from spectral_ext.landscape.table import layer_label
from spectral_ext.plots.chart import Chart, as_json
from spectral_ext.report.glossary import TERMS
from spectral_ext.report.headline import advice, sentences
from spectral_ext.report.templating import render_template
from spectral_ext.tracker import Track

ALL_PANELS = 100
"""Up to this many layers, each has all its charts on the page; beyond it, the first ``FEW_PANELS`` of ``PANELS``."""
FEW_PANELS = ("power_law", "rank_profile", "signal_and_noise")
TITLES = 120
"""Up to this many layers, a cell of the table also says its interval to who points at it."""
CARDS = 400
"""At most so many layers have a view of their own; they are evenly spaced in depth, and the page says so."""
TABLE_LAYERS = 1000
"""At most so many layers stand in the table, evenly spaced in depth; a summary by kind covers all of them."""
LISTED = 500
"""At most so many modules that were not measured are listed."""
MOMENTS = 60
"""The slider over training has at most so many places, evenly spaced."""

GLANCE_LAYERS = 40
"""At most so many layers stand in the short table at the top, evenly spaced in depth."""
GLANCE = ("signal", "alpha_held_out", "alpha", "noise_alpha", "beyond_noise", "recommended_alpha")
"""The columns of the short table."""

CAPTIONS = {
    "signal_by_depth": ("Which α holds on other samples", "signal"),
    "alpha_by_depth": ("Own-batch α against depth", "alpha"),
    "transfer_triangle": ("s against αγ", "transfer"),
    "decomposition": ("What the own-batch α is made of", "decomposition"),
    "mechanism_split": ("Where the curvature comes from", "split"),
    "kronecker_slack": ("Kronecker slack against |α − 2|", "concentration"),
    "participation_ratios": ("How many directions count", "participation"),
    "weight_exponents": ("Spectrum of the weights against s", "weight"),
}


@dataclass(frozen=True)
class Moments:
    """Charts of the same axes at several moments, between which the reader moves by a slider."""

    labels: Sequence[str]
    charts: Sequence[Chart]


@dataclass(frozen=True)
class Section:
    """The caller's own part of the page, above the figures.

    Attributes:
        title: heading.
        text: a paragraph.
        header: of the table.
        rows: its cells, as text.
        figures: each a list of charts that stand side by side, as ``plots.learning_curves`` returns them.
        moments: a chart with a slider over training; None for none.
    """

    title: str
    text: str = ""
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    figures: Sequence[Sequence[Chart]] = ()
    moments: Moments | None = None


def training_section(track: Track, unit: str = "step") -> Section:
    """A tracked run as a section of the page: α by depth with a slider, rank models and exponents over time.

    Raises:
        ValueError: an unknown unit.
    """
    figures = list(plots.track_charts(track, unit).values())
    text = (
        f"{len(track)} landscapes of the same data while the model trained: which law describes the gradient's "
        "spectrum best, by BIC, and the exponents of every layer; α is that of the measured batch unless it says held "
        "out. A change of law between two snapshots may be a close "
        "call that went the other way."
    )
    return Section("Over training", text, figures=figures, moments=_moments(track, unit))


def _moments(track: Track, unit: str) -> Moments | None:
    """α by depth at each moment, on one scale; None where no moment has a fit."""
    landscapes = list(track)
    if len(landscapes) > MOMENTS:
        landscapes = [landscapes[round(i * (len(landscapes) - 1) / (MOMENTS - 1))] for i in range(MOMENTS)]
    found = [(one.meta["track"][unit], plots.charts(one, "alpha_by_depth")[0]) for one in landscapes if len(one)]
    spans = [chart.y_range for _, chart in found if chart.y_range is not None]
    if not spans:
        return None
    span = (min(low for low, _ in spans), max(high for _, high in spans))
    return Moments(
        [f"{unit} {moment:g}" for moment, _ in found],
        [dataclasses.replace(chart, y_range=None if chart.empty else span) for _, chart in found],
    )


def render(landscape: Landscape, *, title: str, sections: Sequence[Section] = ()) -> str:
    """The page as a string.

    Its size and the time that it takes are bounded: of a landscape with thousands of layers the table, the layers' own
    views and the figures show some, evenly spaced in depth, and the page says how many it leaves out.

    Raises:
        ValueError: the landscape holds no layer at all.
    """
    if not len(landscape):
        raise ValueError("the landscape holds no layer: see landscape.skipped for the reasons")
    tabled = plots.evenly_spaced(landscape, TABLE_LAYERS)
    carded = plots.evenly_spaced(tabled, CARDS)
    place = {name: index for index, name in enumerate(tabled)}
    panels = tuple(plots.PANELS) if len(landscape) <= ALL_PANELS else FEW_PANELS
    layers = {
        place[name]: as_json(plots.layer_charts(row, panels), place)
        for name, row in carded.items()
        if not row.empty_reason
    }
    figures = {name: as_json(plots.charts(tabled, name), place) for name in CAPTIONS}
    tracks = []
    for index, section in enumerate(sections):
        figures |= {f"own{index}-{n}": as_json(one, place) for n, one in enumerate(section.figures)}
        if section.moments is not None:
            labels, charts = section.moments.labels, as_json(section.moments.charts, place)
            tracks.append({"moments": list(labels), "charts": charts})
    names = [layer_label(row) for row in tabled.values()]
    tested = any(row.signal is not None for row in landscape.values())
    # The first one stands at the top: without folds there is no α of other samples to show.
    captions = sorted(CAPTIONS.items(), key=lambda item: item[0] != ("signal_by_depth" if tested else "alpha_by_depth"))
    data = dict(names=names, figures=figures, layers=layers, tracks=tracks, csv=tabled.to_csv())
    return render_template(
        "page.html",
        title=title,
        advice=advice(landscape),
        sentences=sentences(landscape),
        glance=list(_glance(plots.evenly_spaced(landscape, GLANCE_LAYERS))),
        tested=tested,
        measured=[row for row in landscape.values() if not row.empty_reason],
        landscape=landscape,
        tabled=tabled,
        kinds=_by_kind(landscape) if len(tabled) < len(landscape) else [],
        label=layer_label,
        place=place,
        carded={place[name] for name in carded},
        layers=layers,
        titles=len(tabled) <= TITLES,
        doubts=doubts,
        columns=sorted(page_columns(landscape.values()), key=lambda column: column.key != "recommended_alpha"),
        every_column=COLUMNS,
        sections=sections,
        captions=[(name, heading, TERMS[term]) for name, (heading, term) in captions],
        cards=list(carded.values()),
        skipped=list(landscape.skipped.items())[:LISTED],
        terms=TERMS,
        meta=_flat(landscape.meta),
        notes=landscape.meta.get("notes", []),
        data=data,
    )


def _glance(landscape: Landscape) -> Any:
    """(label, name, verdict, share of resolved directions in per cent, cells) of each measured layer."""
    for name, row in landscape.items():
        if row.empty_reason:
            continue
        verdict = row.signal.verdict if row.signal else ""
        share = 100 * row.signal.resolved / max(len(row.signal.sigma), 1) if row.signal else 0.0
        style = verdict.split()[0] if verdict else ""
        yield layer_label(row), name, style, share, [BY_KEY[key].cell(row) for key in GLANCE]


def doubts(row: LayerLandscape) -> list[str]:
    """Why the layer's numbers should not be trusted on their own, a sentence per doubtful column of the page."""
    found = []
    for column in PAGE:
        cell = column.cell(row)
        if cell.doubt:
            found.append(f"{column.symbol} = {cell.text}" + (f": {cell.title}" if cell.title else ""))
    return found


def _by_kind(landscape: Landscape) -> list[tuple[str, ...]]:
    """One line per kind of layer: how many, how many with a fit of α, and the quartiles of α, γ and s."""
    lines = []
    for kind in dict.fromkeys(row.kind for row in landscape.values()):
        rows = [row for row in landscape.values() if row.kind == kind]
        spans = []
        for fits in ([row.alpha for row in rows], [row.gamma for row in rows], [row.s for row in rows]):
            values = [fit.value for fit in fits if fit.ok]
            spans.append(" / ".join(f"{v:.2f}" for v in np.quantile(values, (0.25, 0.5, 0.75))) if values else "–")
        weak = sum(row.alpha.ok and not row.alpha.r2 >= WEAK_R2 for row in rows)
        lines.append((kind, str(len(rows)), str(sum(row.alpha.ok for row in rows)), str(weak), *spans))
    return lines


def _flat(meta: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested metadata as (name, text) pairs, without the notes, which have a place of their own."""
    pairs: list[tuple[str, str]] = []
    for key, value in meta.items():
        if key == "notes" and not prefix:
            continue
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{prefix}{key} · ")
        elif isinstance(value, float):
            pairs.append((f"{prefix}{key}", f"{value:.4g}"))
        elif isinstance(value, (list, tuple)):
            pairs.append((f"{prefix}{key}", ", ".join(map(str, value)) or "–"))
        else:
            pairs.append((f"{prefix}{key}", str(value)))
    return [(name[:200], text[:2000]) for name, text in pairs]


def write_report(
    landscape: Landscape,
    folder: str | Path,
    *,
    title: str = "Spectral landscape",
    sections: Sequence[Section] = (),
    track: Track | None = None,
    unit: str = "step",
    figures: bool = True,
) -> Path:
    """Write ``landscape.json``, ``landscape.csv``, ``index.html`` and ``figures/*.png`` into ``folder``.

    Nothing is measured. The numbers are written first, and each file is complete or not there at all.

    Args:
        landscape: what to show.
        folder: made if need be; files of the same names are replaced.
        title: heading of the page.
        sections: shown above the landscape, for example training curves.
        track: a tracked run, shown in a section of its own.
        unit: ``"step"`` or ``"epoch"``, for the track.
        figures: also write the PNG figures.

    Returns:
        The path of the page.

    Raises:
        ValueError: the landscape holds no layer, or ``unit`` is unknown.
        OSError: the folder cannot be written to.
    """
    if not len(landscape):
        raise ValueError("the landscape holds no layer: see landscape.skipped for the reasons")
    folder = Path(folder)
    if track is not None:
        sections = [*sections, training_section(track, unit)]
    landscape.save(folder)
    landscape.to_csv(folder / "landscape.csv")
    page = write_atomically(folder / "index.html", render(landscape, title=title, sections=sections))
    if figures:
        plots.plot(landscape, folder / "figures")
        if track is not None:
            plots.plot_track(track, folder / "figures", unit=unit)
    return page
