"""Charts over all layers: α against depth (Fig. 2), the triangle (Fig. 3), Kronecker slack (Fig. 5), and more."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spectral_ext.landscape import Landscape, LayerLandscape
from spectral_ext.landscape.cells import WEAK_R2
from spectral_ext.landscape.columns import finite_median
from spectral_ext.plots.chart import LARGEST, Chart, Marks, dots_of_fits
from spectral_ext.plots.style import KIND_MARKERS, KIND_ROLES

MAX_NAMES = 40
"""Up to this many layers are named on the depth axis; beyond it, the axis counts them."""


VERDICTS = {
    "signal": ("green", ""),
    "mixed": ("orange", "///"),
    "noise": ("red", "..."),
    "too few groups": ("muted", "xxx"),
}
"""Colour and hatch of each verdict of the folds."""


def alpha_by_depth(landscape: Landscape) -> list[Chart]:
    """α and its interval in order of depth; the band is the paper's [1.85, 2.15], hollow markers have R² < 0.8."""
    rows = [row for row in landscape.values() if row.alpha.ok]
    if not rows:
        return [_nothing("no layer has a fit of α")]
    ends = _ends(landscape)
    marks = [Marks("band", ends, low=[1.85, 1.85], high=[2.15, 2.15], role="band")]
    marks += [Marks("level", y=[level], role="muted") for level in (1.0, 2.0)]
    for kind in dict.fromkeys(row.kind for row in rows):
        for weak in (False, True):
            chosen = [row for row in rows if row.kind == kind and weak == (not row.alpha.r2 >= WEAK_R2)]
            if chosen:
                marks.append(
                    dots_of_fits(
                        [row.depth for row in chosen], [row.alpha for row in chosen], names=_names(chosen),
                        role=KIND_ROLES.get(kind, "green"), marker=KIND_MARKERS.get(kind, "P"), hollow=weak,
                        label=f"{kind}, R² < {WEAK_R2}" if weak else kind,
                    )
                )  # fmt: skip
    values = np.array([value for row in rows for value in (row.alpha.value, *row.alpha.interval)])
    values = values[np.isfinite(values)]
    centre = np.array([row.alpha.value for row in rows])
    span = (
        max(float(values.min()), float(centre.min()) - 2) - 0.15,
        min(float(values.max()), float(centre.max()) + 2) + 0.15,
    )
    return [_by_depth(landscape, "own-batch curvature exponent α", marks, y_range=span)]


def signal_by_depth(landscape: Landscape) -> list[Chart]:
    """α by depth: held out with its interval over the resolved directions, of the own batch, and of noise alone; and
    which part of the directions is resolved.
    """
    rows = [row for row in landscape.values() if not row.empty_reason]
    noise = [row for row in rows if np.isfinite(row.noise_alpha) and 0 < row.noise_alpha < 6]
    own = [row for row in rows if row.alpha.ok]
    tested = [(row, row.signal) for row in rows if row.signal is not None]
    held = [(row, signal) for row, signal in tested if signal.alpha.ok]
    if not (own or held):
        return [_nothing("no layer has an α")]
    marks = [
        Marks("dot", [row.depth for row in noise], [row.noise_alpha for row in noise], "red", "of noise, 2/γ", "_",
              names=_names(noise)),
        Marks("dot", [row.depth for row in own], [row.alpha.value for row in own], "muted", "own batch", "o",
              names=_names(own), hollow=True),
    ]  # fmt: skip
    if held:
        low, high = np.array([signal.alpha.interval for _, signal in held]).T
        value = np.array([signal.alpha.value for _, signal in held])
        marks.append(
            Marks("dot", [row.depth for row, _ in held], value, "blue", "held out", "D",
                  low=np.where(np.isfinite(low), low, value), high=np.where(np.isfinite(high), high, value),
                  names=_names([row for row, _ in held]))
        )  # fmt: skip
    values = np.concatenate([np.asarray(mark.y, dtype=float) for mark in marks])
    span = (float(values.min()) - 0.5, float(values.max()) + 0.5)
    alphas = _by_depth(landscape, "curvature exponent α", marks, y_range=span)
    if not tested:
        return [alphas]
    bars = []
    for verdict, (role, hatch) in VERDICTS.items():
        chosen = [(row, signal) for row, signal in tested if signal.verdict == verdict]
        if chosen:
            share = np.array([100 * signal.resolved / max(len(signal.sigma), 1) for _, signal in chosen])
            # A layer without a resolved direction has a bar that can still be seen.
            bars.append(
                _bars([row for row, _ in chosen], np.zeros(len(share)), np.maximum(share, 1.0), role,
                      f"{verdict} ({len(chosen)})", hatch)
            )  # fmt: skip
    return [alphas, _by_depth(landscape, "resolved directions, %", bars, y_range=(0, 100))]


def transfer_triangle(landscape: Landscape) -> list[Chart]:
    """s against αγ; bars are the bootstrap interval of s − αγ, the band is ±10 %, the colour is the verdict."""
    rows = [row for row in landscape.values() if row.transfer.ok and _finite(row.alpha_gamma, row.transfer.s)]
    if not rows:
        return [_nothing("no layer has α, γ and s")]
    values = [value for row in rows for value in (row.alpha_gamma, row.transfer.s)]
    line = np.array([min(0.0, *values), 1.08 * max(values)])
    marks = [
        Marks("band", line, low=0.9 * line, high=1.1 * line, role="band"),
        Marks("line", line, line, "muted", "s = αγ", dashed=True),
    ]
    verdicts = {"holds": ("green", "o"), "not refuted": ("orange", "s"), "deviates": ("red", "X")}
    for verdict, (role, marker) in verdicts.items():
        chosen = [row for row in rows if row.transfer.verdict == verdict]
        if not chosen:
            continue
        x = np.array([row.alpha_gamma for row in chosen])
        y = np.array([row.transfer.s for row in chosen])
        low, high = (x[:, None] + np.array([row.transfer.deviation_interval for row in chosen])).T
        marks.append(
            Marks("dot", x, y, role, f"{verdict} ({len(chosen)})", marker,
                  low=np.where(np.isfinite(low), np.minimum(low, y), y),
                  high=np.where(np.isfinite(high), np.maximum(high, y), y), names=_names(chosen))
        )  # fmt: skip
    ends = (float(line[0]), float(line[1]))
    return [
        Chart(x_label="predicted αγ", y_label="measured s", marks=marks, x_range=ends, y_range=ends, size=(5.6, 4.4))
    ]


def kronecker_slack(landscape: Landscape) -> list[Chart]:
    """Against |α − 2|: the distance of the median concentration ratio from 1, and the R² of the power law."""
    rows = [row for row in landscape.values() if row.alpha.ok and np.isfinite(row.arrays.concentration).any()]
    if not rows:
        return [_nothing("no layer has α and a concentration ratio")]
    slack, fit = [], [Marks("level", y=[0.97], role="muted")]
    for answer, (role, marker) in {
        "yes": ("green", "o"), "undecided": ("orange", "s"), "no": ("red", "X"),
    }.items():  # fmt: skip
        chosen = [
            row for row in rows if row.recommendation is not None and row.recommendation.kronecker_justified == answer
        ]
        if chosen:
            x = [abs(row.alpha.value - 2) for row in chosen]
            y = [abs(finite_median(row.arrays.concentration) - 1) for row in chosen]
            label, names = f"Kronecker: {answer} ({len(chosen)})", _names(chosen)
            slack.append(Marks("dot", x, y, role, label, marker, names=names))
            fit.append(Marks("dot", x, [row.alpha.r2 for row in chosen], role, label, marker, names=names))
    size = (3.6, 3.6)
    return [
        Chart(x_label="|α − 2|", y_label="|SoP/PoS − 1|, median over k", marks=slack, size=size),
        Chart(x_label="|α − 2|", y_label="R² of h = c σᵅ", marks=fit, size=size),
    ]


def mechanism_split(landscape: Landscape) -> list[Chart]:
    """Shares of Σ_k |part of h_k|: Gauss–Newton, and the residual by mechanism."""
    rows = [row for row in landscape.values() if _splits(row)]
    if not rows:
        return [_nothing("the method that measured h does not split it")]
    names = sorted({name for row in rows for name, part in row.arrays.h_residual.items() if np.any(part)})
    peaks = [max(float(np.abs(part).max(initial=0.0)) for part in _parts(row)) or 1.0 for row in rows]
    parts = {"Gauss–Newton": [float(np.abs(row.arrays.h_gauss_newton / p).sum()) for row, p in zip(rows, peaks)]}
    for name in names:
        parts[name] = [
            float(np.abs(row.arrays.h_residual.get(name, np.zeros(1)) / p).sum()) for row, p in zip(rows, peaks)
        ]
    total = np.maximum(np.sum(list(parts.values()), axis=0), np.finfo(float).tiny)
    marks, base = [], np.zeros(len(rows))
    roles = ["orange", "purple", "green", "red", "sky", "yellow"]
    hatches = ("///", "...", "\\\\\\", "xxx", "---", "ooo")
    for index, (name, values) in enumerate(parts.items()):
        top = base + 100 * np.array(values) / total
        role = "blue" if index == 0 else roles[(index - 1) % len(roles)]
        hatch = "" if index == 0 else hatches[(index - 1) % len(hatches)]
        marks.append(_bars(rows, base, top, role, name, hatch))
        base = top
    return [_by_depth(landscape, "share of Σ |part of hₖ|, %", marks, y_range=(0, 100))]


def decomposition(landscape: Landscape) -> list[Chart]:
    """What α is made of: β (factor eigenvalues), φ (alignment) and d log χ/d log σ add up to it."""
    rows = [row for row in landscape.values() if row.beta.ok and row.phi.ok and row.chi_slope.ok]
    if not rows:
        return [_nothing("no layer has both factor spectra")]
    parts = (
        ("β, factor eigenvalues", "blue", "", [row.beta.value for row in rows]),
        ("φ, alignment", "orange", "///", [row.phi.value for row in rows]),
        ("slope of log χ", "green", "...", [row.chi_slope.value for row in rows]),
    )
    above, below = np.zeros(len(rows)), np.zeros(len(rows))
    marks = []
    for label, role, hatch, values in parts:
        value = np.array(values)
        base = np.where(value >= 0, above, below)
        marks.append(_bars(rows, np.minimum(base, base + value), np.maximum(base, base + value), role, label, hatch))
        above += value.clip(min=0)
        below += value.clip(max=0)
    depth = [row.depth for row in rows]
    marks.append(Marks("level", y=[0.0], role="muted"))
    marks.append(Marks("dot", depth, [row.alpha.value for row in rows], "ink", "own-batch α", "D", names=_names(rows)))
    return [_by_depth(landscape, "slope against log σ", marks)]


def participation_ratios(landscape: Landscape) -> list[Chart]:
    """Participation ratios of curvature and gradient, with the zeta bound where αγ > 1."""
    rows = [row for row in landscape.values() if np.isfinite(row.pr_curvature) or np.isfinite(row.pr_gradient)]
    if not rows:
        return [_nothing("no layer has a participation ratio")]
    x = np.array([row.depth for row in rows], float)
    curvature, gradient = (np.array([getattr(row, name) for row in rows]) for name in ("pr_curvature", "pr_gradient"))
    bound = np.array([row.zeta_bound for row in rows])
    drawn = np.concatenate([curvature, gradient])
    drawn = drawn[(drawn > 0) & (drawn < LARGEST)]
    if not len(drawn):
        return [_nothing("no participation ratio is positive and finite")]
    top = 3 * float(drawn.max())
    inside = np.isfinite(bound) & (bound <= top)
    beyond = np.isfinite(bound) & (bound > top)

    def dots(chosen: np.ndarray, y: np.ndarray, role: str, label: str, marker: str) -> Marks:
        return Marks("dot", x[chosen], y[chosen], role, label, marker,
                     names=[row.name for row, one in zip(rows, chosen) if one])  # fmt: skip

    marks = [
        dots((gradient > 0) & (gradient < LARGEST), gradient, "orange", "gradient, all σ", "s"),
        dots((curvature > 0) & (curvature < LARGEST), curvature, "blue", "curvature, h > 0", "o"),
        dots(inside, bound, "red", "bound ζ(αγ)²/ζ(2αγ)", "_"),
        dots(beyond, np.full(len(rows), top), "red", "bound above the axis", "^"),
    ]
    return [
        _by_depth(landscape, "participation ratio", [one for one in marks if len(one.x)], y_log=True,
                  y_range=(0.7 * float(drawn.min()), 1.15 * top))
    ]  # fmt: skip


def weight_exponents(landscape: Landscape) -> list[Chart]:
    """α_weight and the rank slope s_weight against s; Corollary 8 puts α_weight below the diagonal."""
    rows = [row for row in landscape.values() if row.weight is not None and row.s.ok]
    if not rows:
        return [_nothing("no layer has a weight spectrum and s")]
    s = np.array([row.s.value for row in rows])
    tail = np.array([row.weight.alpha_weight.value for row in rows if row.weight])
    slope = np.array([row.weight.s_weight.value for row in rows if row.weight])
    top = 1.05 * float(np.nanmax([*s, *tail, *slope]))
    marks = [
        Marks("line", [0, top], [0, top], "muted", dashed=True),
        Marks("dot", s, tail, "blue", "α_weight, tail exponent", names=_names(rows)),
        Marks("dot", s, slope, "orange", "s_weight, slope in rank", "s", names=_names(rows)),
    ]
    return [
        Chart(x_label="Hessian decay exponent s", y_label="exponent of the weight's spectrum", marks=marks,
              size=(5.6, 4.4))
    ]  # fmt: skip


def _nothing(why: str) -> Chart:
    return Chart(empty=why, size=(5.6, 3.8))


def _names(rows: Sequence[LayerLandscape]) -> list[str]:
    return [row.name for row in rows]


def _ends(landscape: Landscape) -> list[float]:
    depths = [row.depth for row in landscape.values()]
    return [min(depths) - 0.6, max(depths) + 0.6]


def _by_depth(
    landscape: Landscape,
    y_label: str,
    marks: Sequence[Marks],
    *,
    y_log: bool = False,
    y_range: tuple[float, float] | None = None,
) -> Chart:
    """A chart over depth: layer names under the axis, or the depth index alone where there are too many of them."""
    rows = list(landscape.values())
    few = len(rows) <= MAX_NAMES
    low, high = _ends(landscape)
    return Chart(
        x_label="" if few else "depth index of the layer",
        y_label=y_label,
        marks=marks,
        y_log=y_log,
        x_ticks=[(row.depth, row.name) for row in rows] if few else (),
        x_range=(low, high),
        y_range=y_range,
        size=(min(11.0, max(5.6, 1.8 + 0.34 * len(rows))), 3.8),
    )


def _bars(
    rows: Sequence[LayerLandscape], low: np.ndarray, high: np.ndarray, role: str, label: str, hatch: str
) -> Marks:
    return Marks(
        "bar", [row.depth for row in rows], high, role, label, low=low, high=high, names=_names(rows), hatch=hatch
    )


def _finite(*values: float) -> bool:
    return all(np.isfinite(values)) and max(map(abs, values)) < LARGEST


def _parts(row: LayerLandscape) -> list[np.ndarray]:
    return [row.arrays.h_gauss_newton, *row.arrays.h_residual.values()]


def _splits(row: LayerLandscape) -> bool:
    return bool(len(row.arrays.h_gauss_newton)) and all(np.isfinite(part).all() for part in _parts(row))
