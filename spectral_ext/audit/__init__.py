"""Audit of the paper: its published numbers against its own frozen results, recomputed with this package's fits.

The printed digits decide: a number holds where the recomputed value rounds to it. Each claim is checked over all its
data first, then over selections of layers or readings that do not look at the outcome; the verdict follows from these
checks alone:

* *holds*: true over all the data that the claim is about;
* *holds only under a stated selection*: true only over a part, which the finding names;
* *contradicted*: false over all, and over every selection tried;
* *true by construction*: it follows by arithmetic from its own definition, its assumptions or other printed numbers, so
  no measurement could make it false, and it is no evidence;
* *not checkable*: the frozen results hold nothing that could decide.

A limit on the very number that a claim is about selects on the outcome, and is no selection. Every finding says what
would overturn it.

>>> from spectral_ext.audit import rounds_to
>>> rounds_to(2.0951, "1.9")
False
"""

from __future__ import annotations

from pathlib import Path

from spectral_ext.audit import ablations, curvature, exponents, participation, spectra, theory, training, triangle
from spectral_ext.audit.frozen import Frozen
from spectral_ext.audit.verdict import Check, Claim, Finding, Undecided, Verdict, rounds_to

CLAIMS: tuple[Claim, ...] = (
    *theory.CLAIMS,
    *triangle.CLAIMS,
    *exponents.CLAIMS,
    *curvature.CLAIMS,
    *spectra.CLAIMS,
    *participation.CLAIMS,
    *ablations.CLAIMS,
    *training.CLAIMS,
)


def audit(folder: str | Path) -> list[Finding]:
    """A finding for every claim, in the order of the paper's themes.

    Args:
        folder: holds the authors' ``results_*.json``. Claims whose file is absent are not checkable.

    Raises:
        FileNotFoundError: no such folder, or no results in it.
        ValueError: a file is not JSON, or not the authors' result.
    """
    frozen = Frozen(folder)
    return [claim.judge(frozen) for claim in CLAIMS]


__all__ = ["CLAIMS", "Check", "Claim", "Finding", "Frozen", "Undecided", "Verdict", "audit", "rounds_to"]
