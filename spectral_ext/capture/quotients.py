"""Second pass over the data: second moments along each layer's directions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spectral_ext.capture.recording import Call, pass_over, recording
from spectral_ext.layers import Layer
from spectral_ext.measurement.batches import Batch, LossFunction
from spectral_ext.measurement.masks import row_mask
from spectral_ext.measurement.ranks import all_sum
from spectral_ext.ops import rayleigh_quotients


@dataclass
class Quotients:
    """Second moments along the directions of one layer, each (K,): see ``reference.RayleighQuotients``."""

    output: Tensor
    input: Tensor
    sum_of_products: Tensor
    gauss_newton: Tensor | None
    """None where the rows of x cannot be assigned to samples."""


@dataclass
class QuotientSums:
    """Sums over this process's batches, each a mean times the samples or rows that it is over."""

    output: Tensor | float = 0.0
    input: Tensor | float = 0.0
    products: Tensor | float = 0.0
    gauss_newton: Tensor | float = 0.0
    samples: int = 0
    count: float = 0.0
    rows: int = 0
    ungrouped: int = 0
    """Batches whose rows cannot be assigned to samples."""

    def __add__(self, other: QuotientSums) -> QuotientSums:
        """The sums over the batches of both, along the same directions."""
        return QuotientSums(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __getitem__(self, part: slice) -> QuotientSums:
        """The sums along some of the directions."""
        output, inputs, products, gauss_newton = (
            s[part] if isinstance(s, Tensor) else s for s in (self.output, self.input, self.products, self.gauss_newton)
        )
        return replace(self, output=output, input=inputs, products=products, gauss_newton=gauss_newton)

    def reduced(self, group: Any = None) -> Quotients:
        """The moments over the batches of all ranks of a process group, each of which must call this."""
        assert isinstance(self.output, Tensor)
        moments = torch.stack([self.output, self.input, self.products, self.gauss_newton])  # type: ignore[list-item]
        counts = torch.tensor(
            [self.samples, self.count, self.rows, self.ungrouped], dtype=torch.float64, device=moments.device
        )
        output, rows_input, products, gauss_newton = all_sum(moments, group)
        samples, count, rows, ungrouped = all_sum(counts, group).tolist()
        unit = (samples / count) ** 2  # each error is the count times the hook's gradient
        return Quotients(
            output=output * unit / samples,
            input=rows_input / rows,
            sum_of_products=products * unit / rows,
            gauss_newton=None if ungrouped else gauss_newton * unit / samples,
        )


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
    sums = sum_quotients(model, loss_fn, batches, layers, directions, on_batch=on_batch)
    return {name: held.reduced() for name, held in sums.items()}


def sum_quotients(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: list[Batch],
    layers: Mapping[str, Layer],
    directions: Mapping[str, tuple[Tensor, Tensor]],
    *,
    on_batch: Callable[[], None] = lambda: None,
) -> dict[str, QuotientSums]:
    """The part of :func:`capture_quotients` that does not communicate."""
    sums = {name: QuotientSums() for name in layers}
    for index, batch in enumerate(batches):
        visit = partial(_add_quotients, layers, directions, sums, batch)
        with recording(model, layers, batch, row_mask(batch, loss_fn), visit) as calls:
            pass_over(model, loss_fn, batch, f"batch {index}", layers, calls)
        on_batch()
    return sums


def _add_quotients(
    layers: Mapping[str, Layer],
    directions: Mapping[str, tuple[Tensor, Tensor]],
    sums: dict[str, QuotientSums],
    batch: Batch,
    name: str,
    call: Call,
) -> None:
    layer: Any = layers[name]
    held, x, d = sums[name], call.x, call.d
    U, V = directions[name]
    found = rayleigh_quotients(x, d, U.to(d), V.to(d), **layer.geometry)
    rows, leading = layer.rows(d), d.shape[0]
    held.output += found.output * leading
    held.input += found.input * rows
    held.products += found.sum_of_products * rows
    held.gauss_newton += found.gauss_newton * leading
    held.samples += batch.samples
    held.count += batch.count
    held.rows += rows - call.left_out
    held.ungrouped += leading != batch.samples
