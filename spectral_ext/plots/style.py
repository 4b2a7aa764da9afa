"""Colours, text and axes of every figure: the Okabe–Ito palette, once for light paper and once for dark screens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ROLES = ("paper", "ink", "muted", "rule", "band", "blue", "orange", "green", "red", "purple", "sky", "yellow")


@dataclass(frozen=True)
class Theme:
    """One colour for each role; ``blue`` … ``yellow`` are Okabe–Ito, darkened or lifted to stand out on the paper."""

    name: str
    paper: str
    ink: str
    muted: str
    rule: str
    band: str
    blue: str
    orange: str
    green: str
    red: str
    purple: str
    sky: str
    yellow: str

    def __getitem__(self, role: str) -> str:
        return getattr(self, role)


LIGHT = Theme(
    "light",
    paper="#ffffff",
    ink="#1b1f24",
    muted="#5b6570",
    rule="#d5dae0",
    band="#e9edf1",
    blue="#0072b2",
    orange="#d98200",
    green="#009e73",
    red="#d55e00",
    purple="#b5588f",
    sky="#3d9bd0",
    yellow="#a89a00",
)
DARK = Theme(
    "dark",
    paper="#14181d",
    ink="#e7ebf0",
    muted="#9aa5b1",
    rule="#353d47",
    band="#232a32",
    blue="#4aa8e0",
    orange="#e69f00",
    green="#1fbf93",
    red="#f07b35",
    purple="#d98fbe",
    sky="#8ccbf2",
    yellow="#f0e442",
)
THEMES = {theme.name: theme for theme in (LIGHT, DARK)}

MODEL_ROLES = {"power_law": "orange", "exponential": "purple", "lognormal": "blue"}
KIND_ROLES = {"Linear": "red", "Conv1d": "sky", "Conv2d": "blue", "Conv3d": "purple"}
KIND_MARKERS = {"Linear": "s", "Conv1d": "^", "Conv2d": "o", "Conv3d": "D"}


def settings(theme: Theme, *, small: bool = False, serif: bool = False) -> Any:
    """Matplotlib settings of a theme; ``small`` is for figures of one column, 7 to 8 points as journals set them."""
    text, labels = (7.0, 8.0) if small else (8.5, 9.5)
    return {
        "figure.facecolor": theme.paper,
        "axes.facecolor": theme.paper,
        "axes.edgecolor": theme.muted,
        "axes.labelcolor": theme.ink,
        "axes.titlecolor": theme.ink,
        "text.color": theme.ink,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "xtick.labelcolor": theme.ink,
        "ytick.labelcolor": theme.ink,
        "grid.color": theme.rule,
        "grid.linewidth": 0.6,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": labels,
        "axes.titlelocation": "left",
        "axes.titleweight": "bold",
        "axes.labelsize": labels,
        "xtick.labelsize": text,
        "ytick.labelsize": text,
        "legend.fontsize": text,
        "legend.frameon": False,
        "legend.labelcolor": theme.ink,
        "font.size": labels,
        "font.family": ["STIXGeneral", "DejaVu Serif"] if serif else ["DejaVu Sans"],  # both come with matplotlib
        "mathtext.fontset": "stix" if serif else "dejavusans",
        "lines.markersize": 3.2 if small else 5.0,
        "figure.dpi": 100,
    }


def plain(text: str, limit: int = 34) -> str:
    """Text of a user, such as a layer's name, as matplotlib shows it literally: no mathematics, one line, at most
    ``limit`` characters, of which the last are kept.
    """
    text = "".join(c if c.isprintable() else " " for c in text) or "(model)"
    text = text if len(text) <= limit else "…" + text[-(limit - 1) :]
    return text.replace("$", r"\$")
