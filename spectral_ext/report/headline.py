"""The headline of a report: sentences that follow from a landscape."""

from __future__ import annotations

from collections import Counter

import numpy as np

from spectral_ext.landscape import Landscape, LayerLandscape
from spectral_ext.landscape.cells import WEAK_R2
from spectral_ext.landscape.columns import gauss_newton_share
from spectral_ext.signal.verdict import VERDICTS
from spectral_ext.spectra.rank_models import MODEL_NAMES

NEAR_NOISE = 0.2
"""An own-batch α this close to 2/γ counts as near the α of noise."""


def sentences(landscape: Landscape) -> list[str]:
    """What the landscape says, most important first; each sentence gives its counts."""
    rows = [row for row in landscape.values() if not row.empty_reason]
    if not rows:
        return ["No layer could be measured; the reasons are listed below."]
    found = [
        _signal(rows),
        _use(rows),
        _noise(rows),
        _alpha(rows),
        _doubt(rows),
        _transfer(rows),
        _laws(rows),
        _participation(rows),
        _sign(rows),
        _advice(rows),
    ]
    return [sentence for sentence in found if sentence]


def advice(landscape: Landscape) -> list[tuple[str, list[str]]]:
    """What to do, most important first: a sentence, and the layers that it is about."""
    rows = [row for row in landscape.values() if not row.empty_reason]
    if not rows:
        return [("No layer could be measured: see the reasons below.", [])]
    found: list[tuple[str, list[str]]] = []
    judged = [row for row in rows if row.signal is not None]
    noise = [row.name for row in judged if row.signal and row.signal.verdict == "noise"]
    if not judged:
        text = "First find out whether these exponents hold on other samples: measure again with folds=8 (--folds 8)."
        found.append((text, []))
    elif noise:
        text = "Do not use the measured α here: no direction holds on other samples. Take more samples, or α = 2."
        found.append((text, noise))
    given = [(row.name, row.recommendation) for row in rows if row.recommendation and row.name not in noise]
    for source, what in (("held out", "the held-out α"), ("own batch", "the own-batch α, which was not tested")):
        values = {name: one.alpha for name, one in given if one.source == source and one.trust}
        if values:
            low, high = min(values.values()), max(values.values())
            span = f"{low:.2f} to {high:.2f}" if f"{low:.2f}" != f"{high:.2f}" else f"{low:.2f}"
            found.append((f"Use {what}, drawn towards 2 by its error: {span}.", list(values)))
    weak = [name for name, one in given if not one.trust and one.source != "fallback"]
    if weak:
        found.append((f"Do not lean on the own-batch α: its R² is below {WEAK_R2}.", weak))
    without = [name for name, one in given if one.source == "fallback"]
    if without:
        found.append(("Keep the fallback α = 2: too few directions carry a fit.", without))
    return found


def _signal(rows: list[LayerLandscape]) -> str:
    judged = [row for row in rows if row.signal is not None]
    if not judged:
        return (
            "Every α is that of this batch: its directions, σ and h come from the same samples. Whether they hold on "
            "other samples was not measured; folds=8 (--folds 8) measures it."
        )
    by_verdict = {
        verdict: [row.name for row in judged if row.signal and row.signal.verdict == verdict] for verdict in VERDICTS
    }
    parts = [f"{verdict} in {len(names)} ({_some(names)})" for verdict, names in by_verdict.items() if names]
    groups = max(row.signal.groups for row in judged if row.signal)
    text = (
        f"On other samples ({groups} groups) the gradient's directions are {'; '.join(parts)} of {len(judged)} layers."
    )
    fitted = [row.signal.alpha.value for row in judged if row.signal and row.signal.alpha.ok]
    if fitted:
        text += (
            f" Over the directions that hold, α runs from {min(fitted):.2f} to {max(fitted):.2f}, median "
            f"{np.median(fitted):.2f}, in {len(fitted)} layers."
        )
    return text


def _use(rows: list[LayerLandscape]) -> str:
    """Which α the advice rests on."""
    given = [row for row in rows if row.recommendation is not None]
    if not any(row.signal for row in given):
        return ""
    counts = Counter(row.recommendation.source for row in given if row.recommendation)
    parts = [
        f"the {source.replace(' ', '-')} α in {counts[source]}"
        for source in ("held out", "own batch")
        if counts[source]
    ]
    text = f"The advised α rests on {' and '.join(parts)} of {len(given)} layers" if parts else "The advised α is 2"
    if not counts["fallback"]:
        return f"{text}."
    if not parts:
        return f"{text} in all {len(given)} layers, since no law holds on other samples."
    return f"{text}; in {counts['fallback']} it is 2, since no law holds on other samples."


def _noise(rows: list[LayerLandscape]) -> str:
    """Whether the own-batch α is what sampling noise gives."""
    known = [row for row in rows if row.alpha.ok and np.isfinite(row.noise_alpha)]
    if not known:
        return ""
    near = [row.name for row in known if abs(row.alpha.value - row.noise_alpha) <= NEAR_NOISE]
    return (
        f"Sampling noise alone would give an own-batch α of {np.median([row.noise_alpha for row in known]):.2f} at the "
        f"median (2/γ of the noise). In {len(near)} of {len(known)} layers the own-batch α lies within {NEAR_NOISE} of "
        "its layer's value."
    )


def _alpha(rows: list[LayerLandscape]) -> str:
    fitted = [row for row in rows if row.alpha.ok]
    if not fitted:
        return "No layer has a fit of α."
    if len(fitted) == 1:
        (row,) = fitted
        ends = f"{100 * row.alpha.level:.0f} % [{row.alpha.interval[0]:.2f}, {row.alpha.interval[1]:.2f}]"
        return f"The own-batch curvature exponent α of {row.name} is {row.alpha.value:.2f}, {ends}."
    low, high = (pick(fitted, key=lambda row: row.alpha.value) for pick in (min, max))
    middle = float(np.median([row.alpha.value for row in fitted]))
    two = sum(row.alpha.interval[0] <= 2 <= row.alpha.interval[1] for row in fitted)
    one = sum(row.alpha.interval[0] <= 1 <= row.alpha.interval[1] for row in fitted)
    level = f"{100 * fitted[0].alpha.level:.0f} %"
    return (
        f"The own-batch curvature exponent α runs from {low.alpha.value:.2f} ({low.name}) to {high.alpha.value:.2f} "
        f"({high.name}), median {middle:.2f}. The {level} interval of the fit contains 2 in {two} of {len(fitted)} "
        f"layers, and 1 in {one}."
    )


def _doubt(rows: list[LayerLandscape]) -> str:
    weak = [row.name for row in rows if row.alpha.ok and row.alpha.r2 < WEAK_R2]
    without = [row.name for row in rows if not row.alpha.ok]
    parts = []
    if weak:
        parts.append(
            f"In {_some(weak)} R² is below {WEAK_R2}: there h is no clear power of σ, and the own-batch α should not "
            "be used."
        )
    if without:
        parts.append(f"The own-batch α could not be fitted in {_some(without)}.")
    return " ".join(parts)


def _transfer(rows: list[LayerLandscape]) -> str:
    checked = [row for row in rows if row.transfer.ok]
    if not checked:
        return ""
    counts = Counter(row.transfer.verdict for row in checked)
    errors = [row.transfer.relative_error for row in checked]
    return (
        f"The identity s = αγ holds within 10 % in {counts['holds']} of {len(checked)} layers, is not refuted in "
        f"{counts['not refuted']}, and deviates in {counts['deviates']}; the median error over all of them is "
        f"{100 * np.median(errors):.1f} %. {_unrelated(checked)}"
    ).rstrip()


def _unrelated(rows: list[LayerLandscape]) -> str:
    tested = [row.transfer_null for row in rows if row.transfer_null is not None]
    if not tested:
        return ""
    as_good = sum(null.p_sorted > 0.05 for null in tested)
    return (
        f"In {as_good} of {len(tested)} an h that is unrelated to σ, sorted, has as small an error in more than 5 % of "
        "the draws, so that the identity says nothing there."
    )


def _laws(rows: list[LayerLandscape]) -> str:
    fits = [row.rank_models for row in rows if row.rank_models.ok]
    if not fits:
        return ""
    counts = Counter(one.best for one in fits)
    parts = [f"{MODEL_NAMES[name]} in {count}" for name, count in counts.most_common()]
    close = sum(one.margin < 2 for one in fits)
    text = f"By BIC the gradient's spectrum is {', '.join(parts)} of {len(fits)} layers"
    return f"{text}; in {close} the lead is below 2, too small to decide."


def _participation(rows: list[LayerLandscape]) -> str:
    curvature = [row.pr_curvature for row in rows if np.isfinite(row.pr_curvature)]
    gradient = [row.pr_gradient for row in rows if np.isfinite(row.pr_gradient)]
    if not curvature or not gradient:
        return ""
    above = sum(row.pr_curvature > row.zeta_bound for row in rows)
    text = (
        f"Curvature sits on {np.median(curvature):.1f} directions at the median (participation ratio), the gradient on "
        f"{np.median(gradient):.1f}."
    )
    return text + (
        f" In {above} of {len(rows)} it exceeds the zeta bound, which assumes exact power laws." if above else ""
    )


def _sign(rows: list[LayerLandscape]) -> str:
    total = sum(row.num_directions for row in rows)
    negative = sum(row.num_nonpositive for row in rows)
    layers = sum(row.num_nonpositive > 0 for row in rows)
    shares = [share for share in map(gauss_newton_share, rows) if np.isfinite(share)]
    text = (
        f"{negative} of {total} measured directions have no positive curvature, in {layers} of {len(rows)} layers."
        if negative
        else f"All {total} measured directions have positive curvature."
    )
    if shares:
        text += f" Gauss–Newton makes up {100 * np.median(shares):.0f} % of the curvature in the median layer."
    return text


def _advice(rows: list[LayerLandscape]) -> str:
    given = [row.recommendation for row in rows if row.recommendation is not None]
    if not given:
        return ""
    counts = Counter(one.kronecker_justified for one in given)
    return (
        f"A Kronecker preconditioner is justified in {counts['yes']} of {len(given)} layers, not in {counts['no']}, "
        f"undecided in {counts['undecided']}."
    )


def _some(names: list[str], limit: int = 4) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
