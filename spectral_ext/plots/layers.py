"""Figures with one panel per layer: power law (Figure 1), rank profile (Figure 4), α by quartiles (App. F), App. L."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from spectral_ext.landscape import Landscape, LayerLandscape
from spectral_ext.plots.style import MODEL_ROLES, Theme, message, new_grid, plain, whiskers
from spectral_ext.spectra import Fit
from spectral_ext.spectra.rank_models import MODEL_NAMES

Panel = Callable[[Axes, LayerLandscape, Theme], None]


def power_law(axes: Axes, row: LayerLandscape, theme: Theme) -> None:
    """log h_k against log σ_k with the fit, its exponent and interval; h_k ≤ 0 are marked on the lower edge."""
    sigma, h = row.arrays.sigma, row.arrays.h
    axes.set_title(plain(row.name))
    if len(sigma) != len(h):
        message(axes, row.empty_reason or f"{len(h)} curvatures for {len(sigma)} directions", theme)
        return
    positive = _drawable(h) & _drawable(sigma)
    if not positive.any():
        message(axes, row.empty_reason or "no positive finite curvature", theme)
        return
    axes.loglog(sigma[positive], h[positive], "o", ms=4.5, color=theme.blue, mec=theme.paper, mew=0.5)
    ends = np.array([sigma[positive].min(), sigma[positive].max()])
    if row.alpha.ok:
        axes.loglog(ends, np.exp(row.alpha.intercept) * ends**row.alpha.value, color=theme.red)
        centre = np.exp(np.log(sigma[positive]).mean())
        middle = np.exp(row.alpha.intercept) * centre**row.alpha.value
        axes.loglog(ends, middle * (ends / centre) ** 2, "--", color=theme.muted, lw=0.9)
    if (~positive).any():
        level = h[positive].min() * 0.5
        where = sigma[~positive & _drawable(sigma)]
        axes.loglog(where, np.full(len(where), level), "v", ms=4.5, mfc="none", mec=theme.orange)
    text = f"own-batch α = {_value(row.alpha)}"
    if row.num_nonpositive:
        text += f"\n{row.num_nonpositive} of {len(h)} h ≤ 0 (▽)"
    axes.text(0.03, 0.97, text, transform=axes.transAxes, va="top", fontsize=8.5)
    axes.set_xlabel("gradient singular value σₖ")
    axes.set_ylabel("curvature hₖ")
    _tame_log_ticks(axes)


def rank_profile(axes: Axes, row: LayerLandscape, theme: Theme) -> None:
    """σ_k against k with the three rank models; the BIC winner is drawn bold."""
    sigma, fits = row.arrays.sigma, row.rank_models
    axes.set_title(plain(row.name))
    positive = _drawable(sigma)
    if not fits.ok or not positive.any():
        message(axes, row.empty_reason or fits.reason or "no positive finite σ", theme)
        return
    rank = np.arange(1, len(sigma) + 1)
    axes.loglog(rank[positive], sigma[positive], "o", ms=4, color=theme.ink, mec=theme.paper, mew=0.5, zorder=3)
    fine = np.geomspace(1, len(sigma), 80)
    for model, role in MODEL_ROLES.items():
        best = model == fits.best
        values = fits.predict(model, fine)
        axes.loglog(
            fine, values, color=theme[role], lw=2.4 if best else 1.1, ls="-" if best else "--", label=MODEL_NAMES[model]
        )
    low, high = sigma[positive].min(), sigma[positive].max()
    axes.set_ylim(low / 2, high * 2)
    text = f"{MODEL_NAMES[fits.best]}, ΔBIC {fits.margin:.1f}"
    axes.text(0.03, 0.04, text, transform=axes.transAxes, fontsize=8.5)
    axes.set_xlabel("rank k")
    axes.set_ylabel("σₖ")
    _tame_log_ticks(axes)


def predicted_spectrum(axes: Axes, row: LayerLandscape, theme: Theme) -> None:
    """All singular values of G against the Couillet–Hachem prediction from the two factor spectra."""
    axes.set_title(plain(row.name))
    prediction, measured = row.prediction, row.arrays.sigma_all
    if prediction is None or len(measured) != len(prediction.sigma) or not _drawable(measured).any():
        message(axes, row.empty_reason or "not predicted (needs all eigenvalues of both factors)", theme)
        return
    measured = np.sort(np.where(_drawable(measured), measured, 0.0))[::-1]
    floor = measured[0] * 1e-5
    rank = np.arange(1, len(measured) + 1)
    kept = measured > floor
    axes.loglog(rank[kept], measured[kept], "o", ms=3.5, color=theme.ink, mec=theme.paper, mew=0.4, label="measured")
    shown = (prediction.sigma > floor) & _drawable(prediction.sigma)
    axes.loglog(rank[shown], prediction.sigma[shown], color=theme.green, lw=2, label="predicted")
    axes.text(0.03, 0.04, f"KS distance {prediction.ks:.2f}", transform=axes.transAxes, fontsize=8.5)
    axes.set_xlabel("rank k")
    axes.set_ylabel("σₖ")
    _tame_log_ticks(axes)


def quartiles(axes: Axes, row: LayerLandscape, theme: Theme) -> None:
    """α in each quarter of the rank index with its interval, over the α of all directions (App. F)."""
    axes.set_title(plain(row.name))
    fits = row.alpha_quartiles
    usable = [index for index, fit in enumerate(fits) if fit.ok]
    if not usable:
        message(axes, row.empty_reason or "too few directions in each quarter", theme)
        return
    for index in usable:
        _with_bar(axes, index, fits[index], theme.blue)
    if row.alpha.ok:
        axes.axhline(row.alpha.value, color=theme.red, lw=1.2)
    centre = [fits[index].value for index in usable]
    spread = max(1.0, 1.5 * (max(centre) - min(centre)))
    axes.set_ylim(min(centre) - spread, max(centre) + spread)
    axes.set_xticks(range(len(fits)), ["top", *[""] * (len(fits) - 2), "bottom"])
    axes.set_xlim(-0.5, len(fits) - 0.5)
    axes.set_xlabel("quarter of the rank index k")
    axes.set_ylabel("own-batch α")


def panels(landscape: Landscape, panel: Panel, theme: Theme, *, columns: int = 4) -> Figure:
    """One figure of all layers, ``columns`` panels per line."""
    rows = list(landscape.values())
    columns = max(1, min(columns, len(rows)))
    lines = max(1, math.ceil(len(rows) / columns))
    figure, axes = new_grid(lines, columns, legend=True)
    for place, row in zip(axes, rows):
        panel(place, row, theme)
    for place in axes[len(rows) :]:
        place.set_axis_off()
    _legend(figure, axes, theme)
    return figure


def single(row: LayerLandscape, panel: Panel, theme: Theme, title: str) -> Figure:
    """One panel on its own, for a page that lays them out to fit the screen and names the layer elsewhere."""
    figure, (axes,) = new_grid(1, 1, legend=False)
    panel(axes, row, theme)
    axes.set_title(title)
    return figure


def _legend(figure: Figure, axes: Sequence[Axes], theme: Theme) -> None:
    for place in axes:
        handles, labels = place.get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="lower center", ncols=len(labels))
            return


def _with_bar(axes: Axes, x: float, fit: Fit, colour: str) -> None:
    axes.errorbar(x, fit.value, whiskers(fit), fmt="o", ms=5, color=colour, lw=1.2, capsize=2)


def _value(fit: Fit) -> str:
    if not fit.ok:
        return "– (no fit)"
    return f"{fit.value:.2f} [{fit.interval[0]:.2f}, {fit.interval[1]:.2f}], R² {fit.r2:.2f}"


def _drawable(values: np.ndarray) -> np.ndarray:
    """Which values a logarithmic axis can hold with a margin around them."""
    return (values > 1e-290) & (values < 1e290)


def _tame_log_ticks(axes: Axes) -> None:
    """At most five labels on a logarithmic axis, also where it spans less than a decade."""
    for axis in (axes.xaxis, axes.yaxis):
        low, high = axis.get_view_interval()
        decades = math.log10(high / low)
        if decades >= 2:
            axis.set_major_locator(LogLocator(10, numticks=5))
        else:
            axis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0) if decades > 0.7 else (1, 1.5, 2, 3, 5, 7)))
            axis.set_major_formatter(FuncFormatter(_plain))
        axis.set_minor_locator(NullLocator())


def _plain(value: float, position: int) -> str:
    if 1e-3 <= value < 1e4:
        return f"{value:g}"
    exponent = math.floor(math.log10(value))
    return f"{value / 10**exponent:g}e{exponent}"
