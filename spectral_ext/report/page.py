"""One HTML page that needs nothing else: figures inline, styles inline, readable offline, in light and dark."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from spectral_ext import plots
from spectral_ext.landscape import Landscape, write_atomically
from spectral_ext.landscape.cells import WEAK_R2
from spectral_ext.landscape.columns import BY_KEY, COLUMNS, page_columns
from spectral_ext.landscape.table import layer_label
from spectral_ext.report.glossary import TERMS
from spectral_ext.report.headline import sentences
from spectral_ext.report.templating import render_template
from spectral_ext.tracker import Track

FOUR_PANELS = 60
"""Up to this many layers, each has four panels on the page; beyond it, one."""
CARDS = 120
"""At most so many layers have a panel of their own; they are evenly spaced in depth, and the page says so."""
TABLE_LAYERS = 1000
"""At most so many layers stand in the table, evenly spaced in depth; a summary by kind covers all of them."""
GLANCE_LAYERS = 40
"""At most so many layers stand in the short table at the top, evenly spaced in depth."""
LISTED = 500
"""At most so many modules that were not measured are listed."""

CAPTIONS = {
    "signal_by_depth": ("Which directions hold, and their α", "signal"),
    "alpha_by_depth": ("α against depth", "alpha"),
    "transfer_triangle": ("s against αγ", "transfer"),
    "decomposition": ("What α is made of", "decomposition"),
    "mechanism_split": ("Where the curvature comes from", "split"),
    "kronecker_slack": ("Kronecker slack against |α − 2|", "concentration"),
    "participation_ratios": ("How many directions count", "participation"),
    "weight_exponents": ("Spectrum of the weights against s", "weight"),
}


@dataclass(frozen=True)
class Section:
    """The caller's own part of the page, above the table: a heading, a paragraph, a table, inline SVG figures."""

    title: str
    text: str = ""
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    figures: Sequence[str] = ()


def training_section(track: Track, unit: str = "step") -> Section:
    """A tracked run as a section of the page: rank models and exponents over time.

    Raises:
        ValueError: an unknown unit.
    """
    with plots.drawn_in(plots.VARIABLE):
        drawings = plots.track_figures(track, plots.VARIABLE, unit)
        svgs = [plots.to_svg(drawing, f"track{name}") for name, drawing in drawings.items()]
    text = (
        f"{len(track)} landscapes of the same data while the model trained: which law describes the gradient's "
        "spectrum best, by BIC, and the exponents of every layer; α is that of the measured batch unless it says held "
        "out. A change of law between two snapshots may be a close "
        "call that went the other way."
    )
    return Section("Over training", text, figures=svgs)


def render(landscape: Landscape, *, title: str, sections: Sequence[Section] = ()) -> str:
    """The page as a string.

    Its size and the time that it takes are bounded: of a landscape with thousands of layers the table, the panels and
    the figures show some, evenly spaced in depth, and the page says how many it leaves out.

    Raises:
        ValueError: the landscape holds no layer at all.
    """
    if not len(landscape):
        raise ValueError("the landscape holds no layer: see landscape.skipped for the reasons")
    tabled, carded = (plots.evenly_spaced(landscape, limit) for limit in (TABLE_LAYERS, CARDS))
    return render_template(
        "page.html",
        title=title,
        sentences=sentences(landscape),
        glance=list(_glance(plots.evenly_spaced(landscape, GLANCE_LAYERS))),
        tested=any(row.signal is not None for row in landscape.values()),
        measured=[row for row in landscape.values() if not row.empty_reason],
        landscape=landscape,
        tabled=tabled,
        kinds=_by_kind(landscape) if len(tabled) < len(landscape) else [],
        label=layer_label,
        anchors={name: index for index, name in enumerate(carded, start=1)},
        columns=page_columns(landscape.values()),
        every_column=COLUMNS,
        sections=sections,
        figures=[
            (name, heading, TERMS[term], _drawn(plots.svg, landscape, name, name))
            for name, (heading, term) in CAPTIONS.items()
        ],
        cards=list(_cards(carded)),
        skipped=list(landscape.skipped.items())[:LISTED],
        terms=TERMS,
        meta=_flat(landscape.meta),
        notes=landscape.meta.get("notes", []),
    )


GLANCE = ("signal", "alpha_held_out", "alpha", "noise_alpha", "beyond_noise", "recommended_alpha")
"""The columns of the short table at the top."""


def _glance(landscape: Landscape) -> Any:
    """(label, name, verdict, share of resolved directions in per cent, cells) of each measured layer."""
    for name, row in landscape.items():
        if row.empty_reason:
            continue
        verdict = row.signal.verdict if row.signal else ""
        share = 100 * row.signal.resolved / max(len(row.signal.sigma), 1) if row.signal else 0.0
        yield (
            layer_label(row),
            name,
            verdict.split()[0] if verdict else "",
            share,
            [BY_KEY[k].cell(row) for k in GLANCE],
        )


def _drawn(draw: Callable[..., str], *arguments: Any) -> Markup:
    """The figure, or a sentence in its place: numbers that matplotlib cannot draw must not cost the whole page."""
    try:
        return Markup(draw(*arguments))
    except (ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
        return Markup('<p class="note">This figure cannot be drawn: {}</p>').format(str(error)[:200])


def _cards(landscape: Landscape) -> Any:
    many = len(landscape) > FOUR_PANELS
    for index, (name, row) in enumerate(landscape.items()):
        shown = [] if row.empty_reason else ["power_law"] if many else list(plots.PANELS)
        svgs = [_drawn(plots.panel_svg, landscape, panel, name, f"c{index}{panel}") for panel in shown]
        yield row, svgs[:2], svgs[2:]


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
