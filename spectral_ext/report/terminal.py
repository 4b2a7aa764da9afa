"""Landscapes and audits in the terminal, by rich."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from spectral_ext.audit import Finding, Verdict
from spectral_ext.landscape import Landscape
from spectral_ext.report.headline import sentences
from spectral_ext.report.table import COLUMNS, Column

# Kept longest on a narrow terminal first.
_PRIORITY = ("α", "R²", "s", "αγ", "γ", "use α", "s = αγ", "law in rank", "PR h", "h ≤ 0", "kind", "Kronecker",
             "SoP/PoS", "GN %", "PR G", "shape", "β", "φ", "χ slope")  # fmt: skip

_STYLES = {
    Verdict.HOLDS: "green",
    Verdict.SELECTION: "yellow",
    Verdict.CONTRADICTED: "bold red",
    Verdict.UNCHECKABLE: "dim",
}


def print_landscape(landscape: Landscape, console: Console | None = None) -> None:
    """The table with as many columns as fit, most useful first, and the findings at a glance below it."""
    console = console or Console()
    columns = [next(c for c in COLUMNS if c.heading == heading) for heading in _PRIORITY]
    while len(columns) > 3 and _needed(landscape, columns) > console.width:
        columns.pop()
    console.print(_table(landscape, [column for column in COLUMNS if column in columns]))
    if len(columns) < len(_PRIORITY):
        hidden = ", ".join(_PRIORITY[len(columns) :])
        console.print(f"Left out at this width: {hidden}. The page and the JSON hold all columns.", style="dim")
    for row in landscape.values():
        if row.empty_reason:
            console.print(f"{row.name}: not measured, {row.empty_reason}.", style="dim")
    if landscape.skipped:
        console.print(f"{len(landscape.skipped)} modules hold no measured weight; the page says why.", style="dim")
    console.print(Panel("\n".join(f"• {one}" for one in sentences(landscape)), title="At a glance", title_align="left"))


def _needed(landscape: Landscape, columns: Sequence[Column]) -> int:
    """Width of the table with every cell on one line."""
    rows = [row for row in landscape.values() if not row.empty_reason]
    names = max([len("layer"), *(cell_len(row.name) for row in rows)])
    widths = [max([cell_len(c.heading), *(cell_len(c.cell(row).text) for row in rows)]) for c in columns]
    return names + sum(widths) + 3 * (len(columns) + 1) + 1


def _table(landscape: Landscape, columns: Sequence[Column]) -> Table:
    table = Table(title="Spectral landscape", title_justify="left", header_style="bold")
    table.add_column("layer", no_wrap=True, overflow="ellipsis")
    for column in columns:
        table.add_column(column.heading, justify="right" if column.numeric else "left", no_wrap=True)
    for row in landscape.values():
        if row.empty_reason:
            continue
        cells = [column.cell(row) for column in columns]
        texts = (Text(cell.text, style="dim italic" if cell.doubt else "") for cell in cells)
        table.add_row(row.name or "(model)", *texts)
    return table


def print_findings(findings: Sequence[Finding], console: Console | None = None, *, every: bool = True) -> None:
    """The audit: a row a claim, the counts at the end; ``every=False`` leaves out what holds."""
    console = console or Console()
    table = Table(title="Audit of the paper against its own frozen results", title_justify="left", show_lines=True)
    table.add_column("where", max_width=16)
    table.add_column("claim", ratio=3)
    table.add_column("published", max_width=18)
    table.add_column("recomputed", ratio=3)
    table.add_column("verdict", max_width=14)
    for one in findings:
        if one.verdict is Verdict.HOLDS and not every:
            continue
        detail = one.recomputed if one.verdict is Verdict.HOLDS else one.why
        if one.verdict is Verdict.CONTRADICTED:
            detail = f"{one.recomputed} ({one.why})"
        table.add_row(one.where, one.claim, one.published, detail, Text(one.verdict.value, style=_STYLES[one.verdict]))
    console.print(table)
    counts = Counter(one.verdict for one in findings)
    summary = ", ".join(f"{counts[verdict]} {verdict.value}" for verdict in Verdict)
    console.print(f"{len(findings)} claims: {summary}.")
