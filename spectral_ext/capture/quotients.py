"""Second pass over the data: second moments along each layer's directions."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from spectral_ext.capture.factors import add
from spectral_ext.capture.geometry import geometry, row_count
from spectral_ext.capture.recording import layer_gradients, recording
from spectral_ext.layers import Layer
from spectral_ext.measurement.batches import Batch, LossFunction, batch_loss, batch_size
from spectral_ext.ops import rayleigh_quotients


@dataclass
class Quotients:
    """Second pass for one layer, each (K,): see ``reference.RayleighQuotients``."""

    output: Tensor
    input: Tensor
    sum_of_products: Tensor
    gauss_newton: Tensor | None
    """None where the rows of x cannot be assigned to samples."""


def capture_quotients(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: list[Batch],
    layers: Mapping[str, Layer],
    directions: Mapping[str, tuple[Tensor, Tensor]],
    *,
    on_batch: Callable[[], None] = lambda: None,
) -> dict[str, Quotients]:
    """The four second moments along u_k, v_k of each layer: U (m, K) and V (n, K) in ``directions``."""
    sums: dict[str, dict[str, Any]] = {name: {} for name in layers}
    total = 0
    for batch in batches:
        samples = batch_size(batch)
        visit = partial(_add_quotients, layers, directions, sums, samples)
        with recording(model, layers, samples, visit):
            layer_gradients(batch_loss(model, loss_fn, batch), layers)
        total += samples
        on_batch()
    return {
        name: Quotients(
            output=held["output"] / total,
            input=held["input"] / held["rows"],
            sum_of_products=held["sop"] / held["rows"],
            gauss_newton=held["gn"] / total if held["grouped"] else None,
        )
        for name, held in sums.items()
    }


def _add_quotients(
    layers: Mapping[str, Layer],
    directions: Mapping[str, tuple[Tensor, Tensor]],
    sums: dict[str, dict[str, Any]],
    samples: int,
    name: str,
    x: Tensor,
    d: Tensor,
    source: Hashable,
) -> None:
    layer, held = layers[name], sums[name]
    U, V = directions[name]
    found = rayleigh_quotients(x, d, U.to(d), V.to(d), **geometry(layer))
    rows, leading = row_count(layer, d), d.shape[0]
    add(held, "output", found.output, leading)
    add(held, "input", found.input, rows)
    add(held, "sop", found.sum_of_products, rows)
    add(held, "gn", found.gauss_newton, leading)
    held["rows"] = held.get("rows", 0) + rows
    held["grouped"] = held.get("grouped", True) and leading == samples
