"""One HTML page that needs nothing else: figures inline, styles inline, readable offline, in light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from spectral_ext import plots
from spectral_ext.landscape import Landscape
from spectral_ext.report.glossary import TERMS
from spectral_ext.report.headline import sentences
from spectral_ext.report.table import COLUMNS
from spectral_ext.report.templating import render_template
from spectral_ext.tracker import Track

PANEL_LIMIT = 60
"""Beyond this many layers the page holds one panel a layer instead of four; the PNG files hold all."""

CAPTIONS = {
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
        "spectrum best, by BIC, and α, γ and s of every layer. A change of law between two snapshots may be a close "
        "call that went the other way."
    )
    return Section("Over training", text, figures=svgs)


def render(landscape: Landscape, *, title: str, sections: Sequence[Section] = ()) -> str:
    """The page as a string.

    Raises:
        ValueError: the landscape holds no layer at all.
    """
    if not len(landscape):
        raise ValueError("the landscape holds no layer: see landscape.skipped for the reasons")
    return render_template(
        "page.html",
        title=title,
        sentences=sentences(landscape),
        measured=[row for row in landscape.values() if not row.empty_reason],
        landscape=landscape,
        columns=COLUMNS,
        sections=sections,
        figures=[
            (name, heading, TERMS[term], Markup(plots.svg(landscape, name, name)))
            for name, (heading, term) in CAPTIONS.items()
        ],
        cards=list(_cards(landscape)),
        terms=TERMS,
        meta=_flat(landscape.meta),
        notes=landscape.meta.get("notes", []),
    )


def _cards(landscape: Landscape) -> Any:
    many = len(landscape) > PANEL_LIMIT
    for index, (name, row) in enumerate(landscape.items()):
        shown = [] if row.empty_reason else ["power_law"] if many else list(plots.PANELS)
        svgs = [Markup(plots.panel_svg(landscape, panel, name, f"c{index}{panel}")) for panel in shown]
        yield row, svgs[:2], svgs[2:]


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
    return pairs


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
    """Write ``index.html``, ``landscape.json`` and ``figures/*.png`` into ``folder``; nothing is measured.

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
        ValueError: the landscape holds no layer.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "index.html"
    if track is not None:
        sections = [*sections, training_section(track, unit)]
    page.write_text(render(landscape, title=title, sections=sections), encoding="utf-8")
    landscape.save(folder)
    if figures:
        plots.plot(landscape, folder / "figures")
        if track is not None:
            plots.plot_track(track, folder / "figures", unit=unit)
    return page
