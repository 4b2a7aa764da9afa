"""The audit as a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from spectral_ext.audit import Finding, Verdict
from spectral_ext.report.templating import render_template


def write_audit(findings: Sequence[Finding], folder: str | Path) -> Path:
    """Write ``audit.html`` into ``folder`` (made if need be) and return its path."""
    counts = Counter(one.verdict for one in findings)
    order = {verdict: place for place, verdict in enumerate(Verdict)}
    page = render_template(
        "audit.html", findings=findings, counts=[(verdict, counts[verdict]) for verdict in Verdict], order=order
    )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "audit.html"
    path.write_text(page, encoding="utf-8")
    return path
