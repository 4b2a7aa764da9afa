"""The public call: data → directions → h_k by the chosen methods → a mapping from layer name to result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from spectral_ext.layers import Layer, find_layers
from spectral_ext.task import Batch, LossFunction, as_batches, to_device

from .directions import Directions, given_directions, singular_directions
from .distributed import all_sum, directions_from_first
from .double_backward import NotApplicable, double_backward_output, double_backward_weight
from .environment import measurement
from .gradients import Piece, mean_gradients, pieces_of
from .result import DirectionalCurvature, LayerCurvature

METHODS = ("auto", "tangent_adjoint", "sqrt_gn", "double_backward_output", "double_backward_weight")


def directional_curvature(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Iterable[Batch],
    *,
    directions: Mapping[str, Any] | None = None,
    layers: str | Iterable[str] | None = None,
    top_k: int = 20,
    method: str = "auto",
    split: bool = False,
    memory_budget: int | None = None,
    progress: bool = False,
    process_group: Any = None,
) -> DirectionalCurvature:
    """h_k = vec(D_k)ᵀ H vec(D_k) for every layer."""
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, not {top_k}")
    chosen, skipped = find_layers(model, layers)
    if not chosen:
        raise ValueError(f"no layer to measure: {skipped}")
    device = next(iter(chosen.values())).weight.device
    data = [to_device(batch, device) for batch in as_batches(batches)]
    with measurement(model):
        pieces, samples = pieces_of(data, device, process_group)
        loss, gradients = mean_gradients(model, loss_fn, pieces, chosen)
        found: dict[str, tuple[Tensor, Directions]] = {}
        given = given_directions(directions, chosen) if directions is not None else None
        for name, gradient in gradients.items():
            if given is not None and name not in given:
                skipped[name] = "no directions were given for it"
            elif gradient is None:
                skipped[name] = "the loss does not depend on its weight"
            else:
                gradient = all_sum(gradient, process_group)
                if not bool(gradient.isfinite().all()):
                    raise ValueError(f"the gradient of {name!r} holds NaN or Inf")
                if given is not None:
                    found[name] = given[name].along(gradient), given[name]
                elif not bool(gradient.any()):
                    skipped[name] = "its gradient is zero: there are no singular directions"
                else:
                    sigma, pairs = singular_directions(gradient, top_k)
                    found[name] = sigma, directions_from_first(pairs, process_group)
        layers_found = {name: chosen[name] for name in found}
        results = {}
        for name in tqdm(found, desc="directional curvature", disable=not progress, unit="layer"):
            h, used, reason = _double_backward(model, loss_fn, pieces, chosen[name], found[name][1])
            sigma, d = found[name]
            results[name] = LayerCurvature(
                name, sigma, d.U, d.V, all_sum(h, process_group), used, reason, directions=d.dense
            )
    mode = "train" if model.training else "eval"
    return DirectionalCurvature(results, skipped, float(loss), samples, mode)


def _double_backward(
    model: nn.Module, loss_fn: LossFunction, pieces: list[Piece], layer: Layer, directions: Directions
) -> tuple[Tensor, str, str]:
    h = torch.zeros(len(directions), dtype=torch.float64, device=layer.weight.device)
    method, reason, engine = "double_backward_output", "its weight is used once", double_backward_output
    for piece in pieces:
        try:
            part = engine(model, loss_fn, piece.batch, {layer.name: layer}, {layer.name: directions})
        except NotApplicable as why:
            method, reason, engine = "double_backward_weight", str(why), double_backward_weight
            part = engine(model, loss_fn, piece.batch, {layer.name: layer}, {layer.name: directions})
        h += piece.weight * part[layer.name].double()
    return h.to(layer.weight.dtype), method, reason
