"""The compiled CPU path of spectral_newton: every matrix of a list in one parallel loop."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from spectral_ext._extension import compiled
from spectral_ext.ops.spectral_newton.partial_fractions import (
    LADDER,
    PartialFractions,
    extent_of,
    partial_fractions,
    rounded_reach,
)

NEEDS_FIT, ILL_CONDITIONED = compiled.NEWTON_STATUS["needs_fit"], compiled.NEWTON_STATUS["ill_conditioned"]
FIT_SHARE = 0.8
"""The part of the tolerance that the fit may use; rounding is held to the whole, and is a fraction of its estimate."""
POLE_LIMIT = 22
"""Above this many poles an eigendecomposition costs less (measured at n = 512)."""
MAX_FITS = 256

_fits: dict[float, dict[tuple[float, float], PartialFractions | None]] = {}
"""For each tolerance, the fits by (α, reach), None where more than POLE_LIMIT poles would be needed."""


def _fit(alpha: float, reach: float, tolerance: float) -> PartialFractions | None:
    known = _fits.setdefault(tolerance, {})
    if (alpha, reach) not in known:
        try:
            known[alpha, reach] = partial_fractions(alpha, reach, tolerance, POLE_LIMIT)
        except ValueError:
            known[alpha, reach] = None
    return known[alpha, reach]


def _ladder(y_max: float) -> float:
    """The next power of LADDER, the interval that one fit serves."""
    return LADDER ** math.ceil(math.log(max(y_max, 1e-300), LADDER))


def _table(fits: Sequence[PartialFractions]) -> Tensor:
    """One row per fit: the columns of ``NEWTON_FIT_COLUMNS``, then the poles and the residues, padded with zeros."""
    width = max((len(fit.poles) for fit in fits), default=0)
    rows = []
    for fit in fits:
        u, v = fit.pair
        values = dict(alpha=fit.alpha, y_min=fit.lowest, y_max=fit.reach, constant=fit.constant)
        values |= dict(b=fit.quadratic or 0.0, u=u, v=v, form=float(fit.form), poles=float(len(fit.poles)))
        spare = [0.0] * (width - len(fit.poles))
        rows.append(
            [*(values[name] for name in compiled.NEWTON_FIT_COLUMNS), *fit.poles, *spare, *fit.residues, *spare]
        )
    return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), len(compiled.NEWTON_FIT_COLUMNS) + 2 * width)


def partial_fractions_(
    G: Sequence[Tensor],
    out: Sequence[Tensor],
    alphas: Sequence[float],
    dampings: Sequence[float],
    mode: str,
    tolerance: float,
) -> list[tuple[int, int]]:
    """Writes T of every matrix of the batches G (B_i, m, n) to out; α, d flat over all. float32 or float64.

    The loop can bound σ_max² only when it has R = G Gᵀ. A matrix that no fit serves comes back and goes in again.

    Returns:
        ``(tensor, matrix)`` of those left undone: too ill-conditioned for the tolerance, or too many poles.
    """
    share = FIT_SHARE * tolerance
    if len(_fits.get(share, {})) >= MAX_FITS:  # a schedule of α makes some for each value
        _fits.pop(share)
    if mode == "spectral":
        for a, d in set(zip(alphas, dampings)):
            _fit(a, rounded_reach(extent_of(a, d, mode, 1)), share)
    else:  # the spectra of the last call are a good guess for a new α
        reaches = {reach for _, reach in list(_fits.get(share, {}))[-8:]} or {16.0}
        for a in set(alphas) - {a for a, _ in _fits.get(share, {})}:
            for reach in reaches:
                _fit(a, reach, share)
    owners = [(i, b) for i, g in enumerate(G) for b in range(len(g))]
    pending = list(range(len(owners)))
    undone = []
    batches, outs = list(G), list(out)
    while pending:
        status = torch.empty(len(pending), dtype=torch.int64)
        y_max = torch.empty(len(pending), dtype=torch.float64)
        alpha_column = torch.tensor([alphas[p] for p in pending], dtype=torch.float64)
        damping_column = torch.tensor([dampings[p] for p in pending], dtype=torch.float64)
        wanted = set(alphas)
        table = _table([fit for (a, _), fit in sorted(_fits.get(share, {}).items()) if fit and a in wanted])
        unit = compiled.NEWTON_DAMPING_MODE[mode]
        torch.ops.spectral_ext.spectral_newton_cpu_(
            batches, outs, alpha_column, damping_column, unit, tolerance, table, status, y_max
        )
        again = []
        for p, state, extent in zip(pending, status.tolist(), y_max.tolist()):
            needs = state == NEEDS_FIT and mode != "spectral"
            if needs and _fit(alphas[p], _ladder(extent), share):
                again.append(p)
            elif state in (NEEDS_FIT, ILL_CONDITIONED):
                undone.append(owners[p])
        pending = again
        batches = [G[i][b : b + 1] for i, b in (owners[p] for p in pending)]
        outs = [out[i][b : b + 1] for i, b in (owners[p] for p in pending)]
    return undone
