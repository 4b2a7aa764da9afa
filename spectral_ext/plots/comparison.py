"""α of several landscapes, layer by layer (Appendix C)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from spectral_ext.plots.chart import Chart, Marks, dots_of_fits
from spectral_ext.spectra import Fit

STYLES = (("blue", "o"), ("red", "s"), ("green", "D"), ("purple", "^"), ("orange", "X"), ("sky", "P"))
"""Colour and marker of each run that is laid over the others."""


def alpha_comparison(layers: Sequence[str], runs: Mapping[str, Sequence[Fit]]) -> list[Chart]:
    """α with its interval in every run, at the same place for the same layer.

    Args:
        layers: names, in the order in which they are drawn.
        runs: name of a landscape to its fit per layer; layers without a fit are left out of that run.
    """
    shift = 0.5 / max(len(runs), 1)
    marks: list[Marks] = [Marks("level", y=[2.0], role="muted")]
    for index, (run, fits) in enumerate(runs.items()):
        role, marker = STYLES[index % len(STYLES)]
        places = [place for place, fit in enumerate(fits) if fit.ok]
        if places:
            offset = (index - (len(runs) - 1) / 2) * shift
            marks.append(
                dots_of_fits(
                    [place + offset for place in places], [fits[place] for place in places], role=role, marker=marker,
                    label=run, names=[layers[place] for place in places],
                )
            )  # fmt: skip
    if len(marks) == 1:
        return [Chart(empty="no layer has a fit of α on both sides", size=(5.6, 3.6))]
    few = len(layers) <= 40
    return [
        Chart(
            x_label="" if few else "depth index of the layer",
            y_label="own-batch curvature exponent α",
            marks=marks,
            x_ticks=list(enumerate(layers)) if few else (),
            x_range=(-0.6, len(layers) - 0.4),
            size=(min(11.0, max(5.6, 1.8 + 0.34 * len(layers))), 3.8),
        )
    ]


def overlay(charts: Mapping[str, Chart]) -> Chart:
    """The dots of several runs of one layer's chart in the same axes, a colour and a marker per run.

    Lines and remarks are left out: with several runs they hide the measured values.
    """
    drawn = {run: chart for run, chart in charts.items() if not chart.empty}
    if not drawn:
        return next(iter(charts.values()))
    marks = []
    for index, (run, chart) in enumerate(charts.items()):
        role, marker = STYLES[index % len(STYLES)]
        dots = next((one for one in chart.marks if one.kind == "dot"), None)
        if run in drawn and dots is not None:
            marks.append(Marks("dot", dots.x, dots.y, role, run, marker, hollow=index > 0))
    first = next(iter(drawn.values()))
    return Chart(x_label=first.x_label, y_label=first.y_label, marks=marks, x_log=first.x_log, y_log=first.y_log)
