"""Landscapes and audits in the terminal, by rich."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from spectral_ext.audit import Finding, Verdict
from spectral_ext.landscape import Landscape
from spectral_ext.landscape.columns import terminal_columns
from spectral_ext.landscape.table import TERMINAL_LAYERS, remarks, rich_table, table_width
from spectral_ext.report.headline import sentences

_STYLES = {
    Verdict.HOLDS: "green",
    Verdict.SELECTION: "yellow",
    Verdict.CONTRADICTED: "bold red",
    Verdict.CONSTRUCTION: "dim",
    Verdict.UNCHECKABLE: "dim",
}


def print_landscape(landscape: Landscape, console: Console | None = None) -> None:
    """The table with as many columns as fit, most useful first, and the findings at a glance below it."""
    console = console or Console()
    rows = list(landscape.values())[:TERMINAL_LAYERS]
    columns = terminal_columns(rows)
    by_use = sorted(columns, key=lambda column: column.terminal)
    shown = list(by_use)
    while len(shown) > 3 and table_width(rows, shown) > console.width:
        shown.pop()
    console.print(rich_table(landscape, [column for column in columns if column in shown]))
    if len(shown) < len(by_use):
        hidden = ", ".join(column.symbol for column in by_use[len(shown) :])
        console.print(f"Left out at this width: {hidden}. The page and the JSON hold all columns.", style="dim")
    for line in remarks(landscape):
        console.print(line)
    said = Text("\n".join(f"• {one}" for one in sentences(landscape)))
    console.print(Panel(said, title="At a glance", title_align="left"))


def print_findings(findings: Sequence[Finding], console: Console | None = None, *, every: bool = True) -> None:
    """The audit: a row per claim with what would overturn it, and the counts; ``every=False`` leaves out what holds."""
    console = console or Console()
    table = Table(title="Audit of the paper against its own frozen results", title_justify="left", show_lines=True)
    table.add_column("where", max_width=16)
    table.add_column("claim", ratio=3)
    table.add_column("published", max_width=18)
    table.add_column("recomputed", ratio=3)
    table.add_column("what would overturn it", ratio=3)
    table.add_column("verdict", max_width=14)
    for one in findings:
        if one.verdict is Verdict.HOLDS and not every:
            continue
        detail = one.recomputed if one.verdict is Verdict.HOLDS else one.why
        if one.verdict in (Verdict.CONTRADICTED, Verdict.CONSTRUCTION):
            detail = f"{one.recomputed} ({one.why})"
        verdict = Text(one.verdict.value, style=_STYLES[one.verdict])
        table.add_row(*map(Text, (one.where, one.claim, one.published, detail, one.overturn)), verdict)
    console.print(table)
    counts = Counter(one.verdict for one in findings)
    summary = ", ".join(f"{counts[verdict]} {verdict.value}" for verdict in Verdict)
    console.print(f"{len(findings)} claims: {summary}.")
