"""Tables in the terminal, wide and narrow."""

import io

import pytest
from rich.console import Console

from spectral_ext.audit import Finding, Verdict
from spectral_ext.landscape.synthetic import synthetic_landscape
from spectral_ext.report import print_findings, print_landscape


def shown(width, what, *arguments, **options):
    console = Console(file=io.StringIO(), width=width)
    what(*arguments, console, **options)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_no_cell_is_cut_off_and_what_is_left_out_is_named(width):
    landscape = synthetic_landscape(3)
    text = shown(width, print_landscape, landscape)
    table = text[: text.index("└")]
    assert "…" not in table
    assert all(len(line) <= width for line in text.splitlines())
    for row in list(landscape.values())[:-1]:
        assert f"{row.alpha.value:.2f} [" in table
    assert ("Left out at this width" in text) == ("χ slope" not in table)
    assert "head: not measured, its gradient is zero." in text


def test_findings_table_counts_and_can_leave_out_what_holds():
    findings = [
        Finding("§1", "first claim", "1", Verdict.HOLDS, "1.0", "all", "first remedy", "f"),
        Finding("§2", "second claim", "2", Verdict.CONTRADICTED, "3.0", "over [all]", "second remedy", "f"),
    ]
    assert "first claim" in shown(120, print_findings, findings)
    brief = shown(120, print_findings, findings, every=False)
    assert "first claim" not in brief
    assert "second claim" in brief
    assert "second remedy" in brief and "over [all]" in brief
    flat = " ".join(brief.split())
    counts = "1 holds, 0 holds only under a stated selection, 1 contradicted, 0 true by construction, 0 not checkable."
    assert f"2 claims: {counts}" in flat
