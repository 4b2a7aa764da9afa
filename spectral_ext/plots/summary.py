"""Figures over all layers: α against depth (Fig. 2), the triangle (Fig. 3), Kronecker slack (Fig. 5), and more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spectral_ext.landscape import Landscape, LayerLandscape
from spectral_ext.landscape.cells import WEAK_R2
from spectral_ext.landscape.columns import finite_median
from spectral_ext.plots.style import (
    KIND_MARKERS,
    KIND_ROLES,
    Theme,
    layer_names,
    layer_width,
    message,
    new_figure,
    plain,
    whiskers,
)
from spectral_ext.spectra import Fit


def alpha_by_depth(landscape: Landscape, theme: Theme) -> Figure:
    """α and its interval in order of depth; the band is the paper's [1.85, 2.15], hollow markers have R² < 0.8."""
    rows = [row for row in landscape.values() if row.alpha.ok]
    figure, (axes,) = new_figure(layer_width(landscape), 3.8)
    if not rows:
        message(axes, "no layer has a fit of α", theme)
        return figure
    axes.axhspan(1.85, 2.15, color=theme.band, lw=0)
    for level in (1, 2):
        axes.axhline(level, color=theme.muted, lw=0.9, ls=":")
    for row in rows:
        _point(axes, row.depth, row.alpha, row, theme)
    values = np.array([value for row in rows for value in (row.alpha.value, *row.alpha.interval)])
    values = values[np.isfinite(values)]
    centre = np.array([row.alpha.value for row in rows])
    axes.set_ylim(max(values.min(), centre.min() - 2) - 0.15, min(values.max(), centre.max() + 2) + 0.15)
    axes.set_ylabel("own-batch curvature exponent α")
    layer_names(axes, landscape)
    _kind_legend(axes, rows, theme)
    return figure


def transfer_triangle(landscape: Landscape, theme: Theme) -> Figure:
    """s against αγ; bars are the bootstrap interval of s − αγ, the band is ±10 %, the colour is the verdict."""
    rows = [row for row in landscape.values() if row.transfer.ok and _finite(row.alpha_gamma, row.transfer.s)]
    figure, (axes,) = new_figure(5.6, 4.4)
    if not rows:
        message(axes, "no layer has α, γ and s", theme)
        return figure
    verdicts = {"holds": ("green", "o"), "not refuted": ("orange", "s"), "deviates": ("red", "X")}
    values = [value for row in rows for value in (row.alpha_gamma, row.transfer.s)]
    low, high = min(0.0, *values), 1.08 * max(values)
    line = np.array([low, high])
    axes.fill_between(line, 0.9 * line, 1.1 * line, color=theme.band, lw=0)
    axes.plot(line, line, color=theme.muted, lw=1, ls="--")
    for verdict, (role, marker) in verdicts.items():
        chosen = [row for row in rows if row.transfer.verdict == verdict]
        if not chosen:
            continue
        x = np.array([row.alpha_gamma for row in chosen])
        y = np.array([row.transfer.s for row in chosen])
        ends = np.array([row.transfer.deviation_interval for row in chosen])
        bars = np.stack([y - (x + ends[:, 0]), x + ends[:, 1] - y])
        bars = np.where(np.isfinite(bars), bars, 0.0).clip(0)
        label = f"{verdict} ({len(chosen)})"
        axes.errorbar(x, y, bars, fmt=marker, ms=6, color=theme[role], mec=theme.paper, lw=1.1, capsize=2, label=label)
    for row in [row for row in rows if row.transfer.relative_error > 0.1][:8]:
        axes.annotate(
            plain(row.name), (row.alpha_gamma, row.transfer.s), xytext=(7, -3), textcoords="offset points", fontsize=8
        )
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_xlabel("predicted αγ")
    axes.set_ylabel("measured s")
    axes.legend(loc="upper left", title="s = αγ", title_fontsize=8.5)
    return figure


def kronecker_slack(landscape: Landscape, theme: Theme) -> Figure:
    """Against |α − 2|: the distance of the median concentration ratio from 1, and the R² of the power law."""
    rows = [row for row in landscape.values() if row.alpha.ok and np.isfinite(row.arrays.concentration).any()]
    figure, axes = new_figure(7.2, 3.6, 1, 2)
    if not rows:
        for place in axes:
            message(place, "no layer has α and a concentration ratio", theme)
        return figure
    advice = {"yes": ("green", "o"), "undecided": ("orange", "s"), "no": ("red", "X")}
    for answer, (role, marker) in advice.items():
        chosen = [
            row for row in rows if row.recommendation is not None and row.recommendation.kronecker_justified == answer
        ]
        if not chosen:
            continue
        distance = [abs(row.alpha.value - 2) for row in chosen]
        slack = [abs(finite_median(row.arrays.concentration) - 1) for row in chosen]
        style: dict[str, Any] = dict(ms=6.5, color=theme[role], mec=theme.paper, ls="none", marker=marker)
        axes[0].plot(distance, slack, label=f"{answer} ({len(chosen)})", **style)
        axes[1].plot(distance, [row.alpha.r2 for row in chosen], **style)
    axes[0].set_ylabel("|SoP/PoS − 1|, median over k")
    axes[0].legend(title="Kronecker justified", title_fontsize=8.5)
    axes[0].set_ylim(bottom=0)
    axes[1].axhline(0.97, color=theme.muted, ls=":", lw=1)
    axes[1].set_ylabel("R² of h = c σᵅ")
    for place in axes:
        place.set_xlabel("|α − 2|")
        place.set_xlim(left=0)
    return figure


def mechanism_split(landscape: Landscape, theme: Theme) -> Figure:
    """Shares of Σ_k |part of h_k|: Gauss–Newton, and the residual by mechanism."""
    rows = [row for row in landscape.values() if _splits(row)]
    figure, (axes,) = new_figure(layer_width(landscape), 3.8)
    if not rows:
        message(axes, "the method that measured h does not split it", theme)
        return figure
    names = sorted({name for row in rows for name, part in row.arrays.h_residual.items() if np.any(part)})
    roles = ["orange", "purple", "green", "red", "sky", "yellow"]
    peaks = [max(float(np.abs(part).max(initial=0.0)) for part in _parts(row)) or 1.0 for row in rows]
    parts = {"Gauss–Newton": [float(np.abs(row.arrays.h_gauss_newton / p).sum()) for row, p in zip(rows, peaks)]}
    for name in names:
        parts[plain(name)] = [
            float(np.abs(row.arrays.h_residual.get(name, np.zeros(1)) / p).sum()) for row, p in zip(rows, peaks)
        ]
    total = np.maximum(np.sum(list(parts.values()), axis=0), np.finfo(float).tiny)
    base = np.zeros(len(rows))
    for index, (name, values) in enumerate(parts.items()):
        share = 100 * np.array(values) / total
        colour = theme.blue if index == 0 else theme[roles[(index - 1) % len(roles)]]
        hatch = None if index == 0 else ("///", "...", "\\\\\\", "xxx", "---", "ooo")[(index - 1) % 6]
        axes.bar(
            [row.depth for row in rows],
            share,
            0.75 * _step(rows),
            base,
            color=colour,
            label=name,
            hatch=hatch,
            ec=theme.paper,
            lw=0.4,
        )
        base += share
    axes.set_ylabel("share of Σ |part of hₖ|, %")
    axes.set_ylim(0, 100)
    layer_names(axes, landscape)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=4)
    return figure


def decomposition(landscape: Landscape, theme: Theme) -> Figure:
    """What α is made of: β (factor eigenvalues), φ (alignment) and d log χ/d log σ add up to it."""
    rows = [row for row in landscape.values() if row.beta.ok and row.phi.ok and row.chi_slope.ok]
    figure, (axes,) = new_figure(layer_width(landscape), 3.8)
    if not rows:
        message(axes, "no layer has both factor spectra", theme)
        return figure
    x = np.array([row.depth for row in rows])
    parts = (
        ("β, factor eigenvalues", "blue", None, [row.beta.value for row in rows]),
        ("φ, alignment", "orange", "///", [row.phi.value for row in rows]),
        ("slope of log χ", "green", "...", [row.chi_slope.value for row in rows]),
    )
    above, below = np.zeros(len(rows)), np.zeros(len(rows))
    for label, role, hatch, values in parts:
        value = np.array(values)
        base = np.where(value >= 0, above, below)
        axes.bar(x, value, 0.7 * _step(rows), base, color=theme[role], hatch=hatch, ec=theme.paper, lw=0.4, label=label)
        above += value.clip(min=0)
        below += value.clip(max=0)
    axes.plot(x, [row.alpha.value for row in rows], "D", ms=5, color=theme.ink, mec=theme.paper, label="own-batch α")
    axes.axhline(0, color=theme.muted, lw=0.9)
    axes.set_ylabel("slope against log σ")
    layer_names(axes, landscape)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2)
    return figure


def participation_ratios(landscape: Landscape, theme: Theme) -> Figure:
    """Participation ratios of curvature and gradient, with the zeta bound where αγ > 1."""
    rows = [row for row in landscape.values() if np.isfinite(row.pr_curvature) or np.isfinite(row.pr_gradient)]
    figure, (axes,) = new_figure(layer_width(landscape), 3.8)
    if not rows:
        message(axes, "no layer has a participation ratio", theme)
        return figure
    x = np.array([row.depth for row in rows])
    curvature, gradient = (np.array([getattr(row, name) for row in rows]) for name in ("pr_curvature", "pr_gradient"))
    bound = np.array([row.zeta_bound for row in rows])
    axes.vlines(x, np.fmin(curvature, gradient), np.fmax(curvature, gradient), color=theme.rule, lw=2)
    axes.plot(x, gradient, "s", ms=5.5, color=theme.orange, mec=theme.paper, label="gradient, all σ")
    axes.plot(x, curvature, "o", ms=6, color=theme.blue, mec=theme.paper, label="curvature, h > 0")
    axes.set_yscale("log")
    drawn = np.concatenate([curvature, gradient])
    drawn = drawn[(drawn > 0) & (drawn < 1e290)]
    if not len(drawn):
        message(axes, "no participation ratio is positive and finite", theme)
        return figure
    top = 3 * float(drawn.max())
    inside = bound <= top
    axes.plot(x[inside], bound[inside], "_", ms=13, mew=1.8, color=theme.red, label="ζ(αγ)²/ζ(2αγ)")
    beyond = np.isfinite(bound) & ~inside
    if beyond.any():
        axes.plot(x[beyond], np.full(beyond.sum(), top), "^", ms=6, color=theme.red, label="bound above the axis")
    axes.set_ylim(0.7 * float(drawn.min()), 1.15 * top)
    axes.set_ylabel("participation ratio")
    layer_names(axes, landscape)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2)
    return figure


def weight_exponents(landscape: Landscape, theme: Theme) -> Figure:
    """α_weight and the rank slope s_weight against s; Corollary 8 puts α_weight below the diagonal."""
    rows = [row for row in landscape.values() if row.weight is not None and row.s.ok]
    figure, (axes,) = new_figure(5.6, 4.4)
    if not rows:
        message(axes, "no layer has a weight spectrum and s", theme)
        return figure
    s = np.array([row.s.value for row in rows])
    tail = np.array([row.weight.alpha_weight.value for row in rows if row.weight])
    slope = np.array([row.weight.s_weight.value for row in rows if row.weight])
    top = 1.05 * float(np.nanmax([*s, *tail, *slope]))
    axes.plot([0, top], [0, top], "--", color=theme.muted, lw=1)
    axes.plot(s, tail, "o", ms=6, color=theme.blue, mec=theme.paper, label="α_weight, tail exponent")
    axes.plot(s, slope, "s", ms=5.5, color=theme.orange, mec=theme.paper, label="s_weight, slope in rank")
    axes.set_xlabel("Hessian decay exponent s")
    axes.set_ylabel("exponent of the weight's spectrum")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2)
    return figure


def _point(axes: Axes, x: float, fit: Fit, row: LayerLandscape, theme: Theme) -> None:
    colour = theme[KIND_ROLES.get(row.kind, "green")]
    face = colour if fit.r2 >= WEAK_R2 else theme.paper
    axes.errorbar(
        x,
        fit.value,
        whiskers(fit),
        fmt=KIND_MARKERS.get(row.kind, "P"),
        ms=6.5,
        color=colour,
        mfc=face,
        mec=colour,
        lw=1.1,
        capsize=2,
    )


def _kind_legend(axes: Axes, rows: Sequence[LayerLandscape], theme: Theme) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [],
            [],
            ls="none",
            marker=KIND_MARKERS.get(kind, "P"),
            color=theme[KIND_ROLES.get(kind, "green")],
            label=plain(kind),
        )
        for kind in dict.fromkeys(row.kind for row in rows)
    ]
    if any(not row.alpha.r2 >= WEAK_R2 for row in rows):
        hollow = dict(ls="none", marker="o", mfc=theme.paper, mec=theme.muted)
        handles.append(Line2D([], [], label=f"hollow: R² < {WEAK_R2}", **hollow))  # type: ignore[arg-type]
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=5)


def _step(rows: Sequence[LayerLandscape]) -> float:
    """Smallest distance between neighbours on the depth axis, for the width of bars."""
    gaps = np.diff(np.unique([row.depth for row in rows]))
    return float(gaps.min()) if len(gaps) else 1.0


def _finite(*values: float) -> bool:
    return all(np.isfinite(values)) and max(map(abs, values)) < 1e290


def _parts(row: LayerLandscape) -> list[np.ndarray]:
    return [row.arrays.h_gauss_newton, *row.arrays.h_residual.values()]


def _splits(row: LayerLandscape) -> bool:
    return bool(len(row.arrays.h_gauss_newton)) and all(np.isfinite(part).all() for part in _parts(row))
