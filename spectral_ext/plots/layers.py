"""Charts of one layer: power law (Figure 1), rank profile (Figure 4), α by quarters (App. F), App. L, and more."""

from __future__ import annotations

import numpy as np

from spectral_ext.landscape import LayerLandscape
from spectral_ext.plots.chart import Chart, Marks, dots_of_fits, drawable
from spectral_ext.plots.style import MODEL_ROLES
from spectral_ext.spectra import Fit
from spectral_ext.spectra.rank_models import MODEL_NAMES

DRAWN_SIGMA = 64
"""A spectrum of more singular values is drawn at so many ranks, evenly spaced in log k."""


def power_law(row: LayerLandscape) -> Chart:
    """log h_k against log σ_k with the fit, its exponent and interval; h_k ≤ 0 are marked on the lower edge."""
    sigma, h = row.arrays.sigma, row.arrays.h
    if len(sigma) != len(h):
        return _empty(row, f"{len(h)} curvatures for {len(sigma)} directions")
    positive = drawable(h) & drawable(sigma)
    if not positive.any():
        return _empty(row, "no positive finite curvature")
    marks = []
    ends = np.array([sigma[positive].min(), sigma[positive].max()])
    if row.alpha.ok:
        centre = np.exp(np.log(sigma[positive]).mean())
        middle = np.exp(row.alpha.intercept) * centre**row.alpha.value
        marks = [
            Marks("line", ends, middle * (ends / centre) ** row.alpha.value, "red", "fit"),
            Marks("line", ends, middle * (ends / centre) ** 2, "muted", "slope 2", dashed=True),
        ]
    marks.append(Marks("dot", sigma[positive], h[positive], label="measured"))
    hidden = ~positive & drawable(sigma)
    if hidden.any():
        where = sigma[hidden]
        level = np.full(len(where), h[positive].min() * 0.5)
        marks.append(Marks("dot", where, level, "orange", "h ≤ 0", marker="v", hollow=True))
    text = f"own-batch α = {_value(row.alpha)}"
    if row.num_nonpositive:
        text += f"\n{row.num_nonpositive} of {len(h)} h ≤ 0 (▽)"
    return Chart(
        x_label="gradient singular value σₖ", y_label="curvature hₖ", marks=marks, x_log=True, y_log=True, remark=text
    )


def rank_profile(row: LayerLandscape) -> Chart:
    """σ_k against k with the three rank models; the BIC winner is drawn bold."""
    sigma, fits = row.arrays.sigma, row.rank_models
    positive = drawable(sigma)
    if not fits.ok or not positive.any():
        return _empty(row, fits.reason or "no positive finite σ")
    fine = np.geomspace(1, len(sigma), 24)
    marks = []
    for model, role in MODEL_ROLES.items():
        best = model == fits.best
        values = fits.predict(model, fine)
        kept = drawable(values)
        marks.append(
            Marks("line", fine[kept], values[kept], role, MODEL_NAMES[model], dashed=not best, bold=best)
        )  # fmt: skip
    rank = np.arange(1, len(sigma) + 1)
    marks.append(Marks("dot", rank[positive], sigma[positive], "ink"))
    return Chart(
        x_label="rank k",
        y_label="σₖ",
        marks=marks,
        x_log=True,
        y_log=True,
        y_range=(float(sigma[positive].min()) / 2, float(sigma[positive].max()) * 2),
        remark=f"{MODEL_NAMES[fits.best]}, ΔBIC {fits.margin:.1f}",
    )


def signal_and_noise(row: LayerLandscape) -> Chart:
    """σ_k of this batch beside σ̃_k, what samples confirm that did not choose the directions; filled: resolved."""
    if row.signal is None or not len(row.signal.sigma):
        return _empty(row, row.signal.reason if row.signal else "not cross-fitted: measure with folds=8")
    held, error = row.signal.sigma, row.signal.sigma_se
    rank = np.arange(1, len(held) + 1)
    own = row.arrays.sigma[: len(held)]
    resolved = np.isin(rank - 1, row.signal.resolved_directions)
    marks = [
        Marks("level", y=[0.0], role="muted"),
        Marks("line", rank[: len(own)], own, "muted", "own batch", dashed=True),
    ]
    for chosen, label, hollow in ((resolved, "resolved", False), (~resolved, "not resolved", True)):
        if chosen.any():
            spread = np.where(np.isfinite(error[chosen]), 2 * error[chosen], 0.0)
            y = held[chosen]
            marks.append(
                Marks("dot", rank[chosen], y, label=label, hollow=hollow, low=y - spread, high=y + spread)
            )  # fmt: skip
    remark = f"{row.signal.verdict}: {row.signal.resolved} of {len(held)} resolved"
    return Chart(x_label="rank k", y_label="σₖ on other samples (± 2 s.e.)", marks=marks, remark=remark)


def mechanisms(row: LayerLandscape) -> Chart:
    """h_k as the sum of its Gauss–Newton part and the residual of each mechanism, over rank."""
    parts = [("Gauss–Newton", row.arrays.h_gauss_newton), *row.arrays.h_residual.items()]
    if not len(parts[0][1]) or not all(np.isfinite(part).all() for _, part in parts):
        return _empty(row, "the method that measured h does not split it")
    rank = np.arange(1, len(parts[0][1]) + 1)
    roles = ("blue", "orange", "purple", "green", "red", "sky", "yellow")
    markers = ("o", "s", "^", "D", "X", "P", "v")
    marks = [Marks("level", y=[0.0], role="muted")]
    drawn = [(name, part) for name, part in parts if np.any(part) and np.abs(part).max() < 1e290]
    for (name, part), role, marker in zip(drawn, roles, markers):
        marks.append(Marks("dot", rank, part, role, name, marker=marker))
    return Chart(x_label="rank k", y_label="part of hₖ", marks=marks)


def predicted_spectrum(row: LayerLandscape) -> Chart:
    """All singular values of G against the Couillet–Hachem prediction from the two factor spectra."""
    prediction, measured = row.prediction, row.arrays.sigma_all
    if prediction is None or len(measured) != len(prediction.sigma) or not drawable(measured).any():
        return _empty(row, "not predicted (needs all eigenvalues of both factors)")
    measured = np.sort(np.where(drawable(measured), measured, 0.0))[::-1]
    floor = measured[0] * 1e-5
    shown = np.unique(np.geomspace(1, len(measured), DRAWN_SIGMA).round().astype(int)) - 1
    kept = shown[measured[shown] > floor]
    line = shown[(prediction.sigma[shown] > floor) & drawable(prediction.sigma[shown])]
    marks = [
        Marks("dot", kept + 1, measured[kept], "ink", "measured"),
        Marks("line", line + 1, prediction.sigma[line], "green", "predicted", bold=True),
    ]
    return Chart(
        x_label="rank k", y_label="σₖ", marks=marks, x_log=True, y_log=True, remark=f"KS distance {prediction.ks:.2f}"
    )


def quartiles(row: LayerLandscape) -> Chart:
    """α in each quarter of the rank index with its interval, over the α of all directions (App. F)."""
    fits = row.alpha_quartiles
    usable = [index for index, fit in enumerate(fits) if fit.ok]
    if not usable:
        return _empty(row, "too few directions in each quarter")
    marks = [dots_of_fits(usable, [fits[index] for index in usable])]
    if row.alpha.ok:
        marks.append(Marks("level", y=[row.alpha.value], role="red", label="all directions"))
    centre = [fits[index].value for index in usable]
    spread = max(1.0, 1.5 * (max(centre) - min(centre)))
    names = ["top", *[""] * (len(fits) - 2), "bottom"]
    return Chart(
        x_label="quarter of the rank index k",
        y_label="own-batch α",
        marks=marks,
        x_ticks=list(enumerate(names)),
        x_range=(-0.5, len(fits) - 0.5),
        y_range=(min(centre) - spread, max(centre) + spread),
    )


def _empty(row: LayerLandscape, why: str) -> Chart:
    return Chart(empty=row.empty_reason or why)


def _value(fit: Fit) -> str:
    if not fit.ok:
        return "– (no fit)"
    return f"{fit.value:.2f} [{fit.interval[0]:.2f}, {fit.interval[1]:.2f}], R² {fit.r2:.2f}"
