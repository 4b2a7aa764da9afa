"""α of two landscapes, layer by layer (Appendix C)."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from spectral_ext.plots.style import Theme, message, new_figure, plain, whiskers
from spectral_ext.spectra import Fit


def alpha_comparison(pairs: Sequence[tuple[str, Fit, Fit]], names: tuple[str, str], theme: Theme) -> Figure:
    """α with its interval before and after, one line per layer, in the order given.

    Args:
        pairs: layer name, fit before, fit after; pairs without both fits are left out.
        names: of the two landscapes.
    """
    kept = [(name, a, b) for name, a, b in pairs if a.ok and b.ok]
    figure, (axes,) = new_figure(6.4, max(2.4, 0.9 + 0.36 * len(kept)))
    if not kept:
        message(axes, "no layer has a fit of α on both sides", theme)
        return figure
    axes.axvline(2, color=theme.muted, ls=":", lw=0.9)
    for place, (_, *fits) in enumerate(kept):
        axes.plot([fit.value for fit in fits], [place, place], color=theme.rule, lw=2.5, zorder=1)
        for fit, role, marker, shift in zip(fits, ("blue", "red"), ("o", "s"), (-0.1, 0.1)):
            axes.errorbar(
                fit.value,
                place + shift,
                xerr=whiskers(fit),
                fmt=marker,
                ms=6,
                lw=1.1,
                capsize=2,
                color=theme[role],
                mec=theme.paper,
                label=plain(names[role == "red"]) if place == 0 else None,
            )
    axes.set_yticks(range(len(kept)), [plain(name, 30) for name, _, _ in kept])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("own-batch curvature exponent α")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2)
    return figure
