"""The compiled CPU path of spectral_newton: every matrix of a list in one parallel loop."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from spectral_ext._extension import compiled
from spectral_ext.ops.spectral_newton.partial_fractions import LADDER, PartialFractions, fit_partial_fractions, reach_of

NEEDS_FIT, ILL_CONDITIONED = compiled.NEWTON_STATUS["needs_fit"], compiled.NEWTON_STATUS["ill_conditioned"]
FIT_SHARE = 0.8
"""The part of the tolerance that the fit may use; rounding is held to the whole, and is a fraction of its estimate."""
POLE_LIMIT = 22
"""Above this many poles an eigendecomposition costs less (measured at n = 512)."""
MAX_LEVELS = 1024

_levels: dict[tuple[float, float], dict[float, PartialFractions | None]] = {}


def level(alpha: float, reach: float, tolerance: float) -> PartialFractions | None:
    """Coefficients that reach that far, None where more than POLE_LIMIT poles would be needed. Remembered."""
    known = _levels.setdefault((alpha, tolerance), {})
    if reach not in known:
        if len(known) >= MAX_LEVELS:  # a schedule of dampings makes one a value
            known.clear()
        try:
            fit = fit_partial_fractions(alpha, reach, tolerance, POLE_LIMIT)
        except ValueError:
            fit = None
        known[reach] = fit
    return known[reach]


def _rounded_reach(y_max: float) -> float:
    """The next power of LADDER: absolute damping meets few distinct levels over a training run."""
    return LADDER ** math.ceil(math.log(max(y_max, 1e-300), LADDER))


def _table(alphas: set[float], tolerance: float) -> Tensor:
    rows = [fit for a in sorted(alphas) for fit in list(_levels.get((a, tolerance), {}).values()) if fit]
    width = max((len(fit.poles) for fit in rows), default=0)
    header = len(compiled.NEWTON_FIT_COLUMNS)
    table = torch.zeros(len(rows), header + 2 * width, dtype=torch.float64)
    for row, fit in zip(table, rows):
        count, (u, v) = len(fit.poles), fit.pair
        values = {
            "alpha": fit.alpha,
            "y_min": fit.lowest,
            "y_max": fit.reach,
            "constant": fit.constant,
            "b": fit.quadratic or 0.0,
            "u": u,
            "v": v,
            "form": float(fit.form),
            "poles": float(count),
        }
        row[:header] = torch.tensor([values[name] for name in compiled.NEWTON_FIT_COLUMNS], dtype=torch.float64)
        row[header : header + count] = torch.tensor(fit.poles, dtype=torch.float64)
        row[header + width : header + width + count] = torch.tensor(fit.residues, dtype=torch.float64)
    return table


def partial_fractions_(
    G: Sequence[Tensor],
    out: Sequence[Tensor],
    alphas: Sequence[float],
    dampings: Sequence[float],
    mode: str,
    tolerance: float,
) -> list[tuple[int, int]]:
    """Writes T of every matrix of the batches G (B_i, m, n) to out; α, d flat over all. float32 or float64.

    Returns:
        ``(tensor, matrix)`` of those left undone: too ill-conditioned for the tolerance, or too many poles.
    """
    if mode == "spectral":
        for a, d in set(zip(alphas, dampings)):
            level(a, reach_of(a, d), FIT_SHARE * tolerance)
    elif not all(any(_levels.get((a, FIT_SHARE * tolerance), {}).values()) for a in set(alphas)):
        for a in set(alphas):
            level(a, 16.0, FIT_SHARE * tolerance)
    owners = [(i, b) for i, g in enumerate(G) for b in range(len(g))]
    pending = list(range(len(owners)))
    undone = []
    batches, outs = list(G), list(out)
    while pending:
        status = torch.empty(len(pending), dtype=torch.int64)
        y_max = torch.empty(len(pending), dtype=torch.float64)
        alpha_column = torch.tensor([alphas[p] for p in pending], dtype=torch.float64)
        damping_column = torch.tensor([dampings[p] for p in pending], dtype=torch.float64)
        table = _table(set(alphas), FIT_SHARE * tolerance)
        torch.ops.spectral_ext.spectral_newton_cpu_(
            batches,
            outs,
            alpha_column,
            damping_column,
            compiled.NEWTON_DAMPING_MODE[mode],
            tolerance,
            table,
            status,
            y_max,
        )
        again = []
        for p, state, extent in zip(pending, status.tolist(), y_max.tolist()):
            if (
                state == NEEDS_FIT
                and mode != "spectral"
                and level(alphas[p], _rounded_reach(extent), FIT_SHARE * tolerance)
            ):
                again.append(p)
            elif state in (NEEDS_FIT, ILL_CONDITIONED):
                undone.append(owners[p])
        pending = again
        batches = [G[i][b : b + 1] for i, b in (owners[p] for p in pending)]
        outs = [out[i][b : b + 1] for i, b in (owners[p] for p in pending)]
    return undone
