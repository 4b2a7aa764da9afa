"""The short measurement for an optimizer that follows its landscape: σ, h and α along its momentum, nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from spectral_ext._version import __version__
from spectral_ext.curvature import directional_curvature
from spectral_ext.landscape.recommendation import recommend
from spectral_ext.landscape.row import DirectionArrays, LayerLandscape
from spectral_ext.landscape.table import Landscape
from spectral_ext.layers import find_layers
from spectral_ext.measurement.batches import Batch, LossFunction
from spectral_ext.measurement.direction_sources import direction_matrices
from spectral_ext.measurement.environment import unwrapped
from spectral_ext.measurement.ranks import directions_of_first
from spectral_ext.measurement.singular_directions import singular_directions
from spectral_ext.spectra import Fit, FitError, fit_alpha

OPTIONS = ("batch_size", "draws", "layers", "level", "memory_budget", "process_group", "seed", "top_k")
NOTE = "σ, u and v are those of the optimizer's momentum; only h, the Gauss–Newton part, and α were measured"


def along_momentum(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    *,
    top_k: int = 20,
    layers: str | Iterable[str] | None = None,
    draws: int = 8,
    level: float = 0.95,
    process_group: Any = None,
    **options: Any,
) -> Landscape:
    """A landscape with σ_k, h_k, α and the recommendation of each layer whose weight has a momentum, by
    ``sampled_gauss_newton`` with ``draws`` labels for each sample. For the arguments see ``measure`` and
    ``directional_curvature``, whose errors it raises.
    """
    every, skipped = find_layers(unwrapped(model), layers)
    matrices = direction_matrices(optimizer, every)
    found = {name: singular_directions(matrix, top_k) for name, matrix in matrices.items()}
    along = {name: directions_of_first(own, process_group) for name, own in found.items()}
    pairs = {name: (own.U.to(matrices[name]), own.V.to(matrices[name])) for name, own in along.items() if own}
    curvature = directional_curvature(
        model, loss_fn, batches, directions=pairs, method="sampled_gauss_newton", draws=draws,
        process_group=process_group, **options,
    )  # fmt: skip
    rows = {}
    for depth, (name, layer) in enumerate(every.items()):
        held, one = along.get(name), curvature.get(name)
        if held is None or one is None:
            skipped.setdefault(name, curvature.skipped.get(name, "it has no momentum, or a momentum of zero"))
            continue
        sigma, h = (t.detach().double().cpu().numpy() for t in (held.sigma, one.h))
        row = LayerLandscape(name, layer.kind, layer.matrix_shape, depth, method=one.method)
        row.arrays, row.notes = DirectionArrays(sigma=sigma, h=h, h_gauss_newton=h), [*one.notes, NOTE]
        if one.standard_error is not None:
            row.arrays.h_standard_error = one.standard_error.double().cpu().numpy()
        try:
            row.alpha = fit_alpha(sigma, h, level=level)
        except FitError as error:
            row.alpha = Fit.empty(str(error))
        row.recommendation = recommend(row.alpha, (), h)
        rows[name] = row
    meta = {"version": __version__, "torch": torch.__version__, "method": "sampled_gauss_newton", "draws": draws}
    return Landscape(rows, skipped, meta | {"top_k": top_k, "level": level, "notes": [NOTE]})
