"""How one value of a row is shown in a table: on the page, in a comparison and in the terminal."""

from __future__ import annotations

import math
from dataclasses import dataclass

from spectral_ext.spectra.regression import Fit

WEAK_R2 = 0.8
"""Below this R² of log h on log σ, h is no clear power of σ, and α is shown as doubtful."""


@dataclass(frozen=True)
class Cell:
    """What is shown, what the table sorts by (NaN last), and a remark for the reader who points at it."""

    text: str
    key: float | str = math.nan
    title: str = ""
    doubt: bool = False


def number(value: float, digits: int = 2, title: str = "", doubt: bool = False) -> Cell:
    """``value`` with ``digits`` decimals, or in scientific notation below 0.01 and from 10,000 on; "–" for NaN."""
    if math.isnan(value):
        return Cell("–", title=title)
    if math.isinf(value):
        return Cell("∞" if value > 0 else "−∞", value, title, doubt)
    text = f"{value:.{digits}f}" if 1e-2 <= abs(value) < 1e4 or value == 0 else f"{value:.1e}"
    return Cell(text.replace("-", "−"), value, title, doubt)


def fit_cell(fit: Fit) -> Cell:
    """The value of a fit; its interval, R² and number of points in the remark."""
    if not fit.ok:
        return Cell("–", title=fit.reason)
    return number(fit.value, 2, fit_remark(fit))


def fit_remark(fit: Fit) -> str:
    low, high = fit.interval
    text = f"{100 * fit.level:.0f} % interval [{low:.3f}, {high:.3f}]"
    if math.isfinite(fit.r2):
        text += f", R² {fit.r2:.3f}"
    text += f", n = {fit.n}"
    return text + (f", {fit.excluded} left out" if fit.excluded else "")


def alpha_cell(fit: Fit) -> Cell:
    """α with its interval; doubtful where R² is below ``WEAK_R2``."""
    cell = fit_cell(fit)
    if not fit.ok:
        return cell
    low, high = (number(end).text for end in fit.interval)
    return Cell(f"{cell.text} [{low}, {high}]", cell.key, cell.title, not fit.r2 >= WEAK_R2)
