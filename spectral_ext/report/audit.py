"""The audit as a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from spectral_ext.audit import Finding, Verdict
from spectral_ext.landscape import write_atomically
from spectral_ext.report.templating import render_template


def write_audit(findings: Sequence[Finding], folder: str | Path) -> Path:
    """Write ``audit.html`` into ``folder`` (made if need be) and return its path."""
    counts = Counter(one.verdict for one in findings)
    order = {verdict: place for place, verdict in enumerate(Verdict)}
    page = render_template(
        "audit.html", findings=findings, counts=[(verdict, counts[verdict]) for verdict in Verdict], order=order
    )
    return write_atomically(Path(folder) / "audit.html", page)
