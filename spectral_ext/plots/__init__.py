"""Every figure of the paper for your own model, drawn from a Landscape; nothing here measures anything.

Palette: Okabe–Ito, told apart by marker and hatch as well as by colour. σ and h are in the units of the mean loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from matplotlib.figure import Figure

from spectral_ext.landscape import Landscape
from spectral_ext.plots import layers as _layers
from spectral_ext.plots import signal as _signal
from spectral_ext.plots import summary as _summary
from spectral_ext.plots.layers import Panel
from spectral_ext.plots.style import ROLES, THEMES, VARIABLE, Theme, drawn_in, save_png, to_svg
from spectral_ext.plots.training import exponents_over_time, learning_curves, phase_transition, track_figures
from spectral_ext.tracker import Track

PANELS: dict[str, Panel] = {
    "power_law": _layers.power_law,
    "rank_profile": _layers.rank_profile,
    "alpha_quartiles": _layers.quartiles,
    "predicted_spectrum": _layers.predicted_spectrum,
}
"""Figures with one panel per layer."""

PANEL_TITLES = {
    "power_law": "curvature against σ",
    "rank_profile": "gradient spectrum in rank",
    "alpha_quartiles": "α by quarters of the spectrum",
    "predicted_spectrum": "σ predicted from the factors",
}

SUMMARIES: dict[str, Callable[[Landscape, Theme], Figure]] = {
    "signal_by_depth": _signal.signal_by_depth,
    "alpha_by_depth": _summary.alpha_by_depth,
    "transfer_triangle": _summary.transfer_triangle,
    "decomposition": _summary.decomposition,
    "mechanism_split": _summary.mechanism_split,
    "kronecker_slack": _summary.kronecker_slack,
    "participation_ratios": _summary.participation_ratios,
    "weight_exponents": _summary.weight_exponents,
}
"""Figures over all layers."""

NAMES = (*PANELS, *SUMMARIES)

PANEL_LAYERS = 120
"""A figure of panels holds at most so many layers, evenly spaced in depth: a larger PNG file cannot be opened."""
SUMMARY_LAYERS = 400
"""A figure over all layers draws at most so many of them, evenly spaced in depth."""


def figure(landscape: Landscape, name: str, *, theme: str = "light") -> Figure:
    """One figure by name (see ``NAMES``), in the ``"light"`` or ``"dark"`` theme.

    Raises:
        KeyError: no such figure or theme.
        ValueError: the landscape holds no layer.
    """
    if theme not in THEMES:
        raise KeyError(f"no theme {theme!r}: there are {', '.join(THEMES)}")
    return _draw(landscape, name, THEMES[theme])


def plot(
    landscape: Landscape, folder: str | Path | None = None, *, names: Iterable[str] = NAMES, theme: str = "light"
) -> dict[str, Figure] | dict[str, Path]:
    """The named figures; with ``folder`` they are written there as ``<name>.png`` and their paths returned.

    Raises:
        KeyError: no such figure or theme.
        ValueError: the landscape holds no layer.
    """
    figures = {name: figure(landscape, name, theme=theme) for name in names}
    if folder is None:
        return figures
    return {name: save_png(drawing, Path(folder) / f"{name}.png") for name, drawing in figures.items()}


def plot_track(
    track: Track, folder: str | Path | None = None, *, unit: str = "step", theme: str = "light"
) -> dict[str, Figure] | dict[str, Path]:
    """The figures over training time (App. E, G, K), as ``plot`` returns them.

    Raises:
        KeyError: no such theme.
        ValueError: an unknown unit.
    """
    if theme not in THEMES:
        raise KeyError(f"no theme {theme!r}: there are {', '.join(THEMES)}")
    with drawn_in(THEMES[theme]):
        figures = track_figures(track, THEMES[theme], unit)
    if folder is None:
        return figures
    return {name: save_png(drawing, Path(folder) / f"{name}.png") for name, drawing in figures.items()}


def svg(landscape: Landscape, name: str, identity: str) -> str:
    """A summary figure as inline SVG whose colours are the page's CSS variables; ``identity`` makes its ids unique."""
    return to_svg(_draw(landscape, name, VARIABLE), identity)


def panel_svg(landscape: Landscape, name: str, layer: str, identity: str) -> str:
    """One layer's panel as inline SVG."""
    with drawn_in(VARIABLE):
        return to_svg(_layers.single(landscape[layer], PANELS[name], VARIABLE, PANEL_TITLES[name]), identity)


def _draw(landscape: Landscape, name: str, theme: Theme) -> Figure:
    if name not in NAMES:
        raise KeyError(f"no figure {name!r}: there are {', '.join(NAMES)}")
    if not len(landscape):
        raise ValueError("the landscape holds no layer, so there is nothing to draw")
    shown = evenly_spaced(landscape, PANEL_LAYERS if name in PANELS else SUMMARY_LAYERS)
    with drawn_in(theme):
        drawing = _layers.panels(shown, PANELS[name], theme) if name in PANELS else SUMMARIES[name](shown, theme)
        if len(shown) < len(landscape):
            text = f"{len(shown)} of {len(landscape):,} layers, evenly spaced in depth"
            drawing.text(0.995, 0.005, text, ha="right", va="bottom", fontsize=8, color=theme.muted)
    return drawing


def evenly_spaced(landscape: Landscape, limit: int) -> Landscape:
    """The landscape itself, or ``limit`` of its layers evenly spaced in depth, the first and the last among them."""
    if len(landscape) <= limit:
        return landscape
    rows = sorted(landscape.items(), key=lambda item: item[1].depth)
    chosen = [rows[round(index * (len(rows) - 1) / (limit - 1))] for index in range(limit)]
    return Landscape(dict(chosen), landscape.skipped, landscape.meta)


__all__ = [
    "NAMES",
    "PANELS",
    "ROLES",
    "SUMMARIES",
    "THEMES",
    "VARIABLE",
    "Theme",
    "drawn_in",
    "evenly_spaced",
    "exponents_over_time",
    "figure",
    "learning_curves",
    "panel_svg",
    "phase_transition",
    "plot",
    "plot_track",
    "save_png",
    "svg",
    "to_svg",
    "track_figures",
]
