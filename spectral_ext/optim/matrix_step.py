"""One Spectral Newton step of a group of matrices: momentum, T, scale, weight decay, batched across parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from spectral_ext.ops.spectral_newton import SpectralMap, spectral_map, spectral_newton
from spectral_ext.optim import distributed
from spectral_ext.optim.dtensor import is_sharded
from spectral_ext.optim.layout import Layout
from spectral_ext.optim.settings import layouts_of, values_of
from spectral_ext.optim.update_scale import UpdateScale, scale_factors, to_unit_scale
from spectral_ext.optim.zero_gradients import hold_without_gradient

BUCKET_BYTES = 8 << 20
"""Directions that are held at once, at least: beside them there are as many updates, and the solver's scratch."""
SHARED_BUCKET_BYTES = 64 << 20
"""The same per rank where ranks share the work, so that each bucket has matrices for all of them."""


def buckets(tensors: Sequence[Tensor], limit: int) -> Iterator[list[int]]:
    """Positions in order, cut where the tensors' bytes (in float32 or more) pass the limit; at least one in each."""
    own: list[int] = []
    held = 0
    for i, tensor in enumerate(tensors):
        size = tensor.numel() * max(4, tensor.dtype.itemsize)
        if own and held + size > limit:
            yield own
            own, held = [], 0
        own.append(i)
        held += size
    if own:
        yield own


def directions_of(gradients: list[Tensor], buffers: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
    """D of each parameter, in new tensors, from gradients and buffers that stay as they are."""
    mu, ema = group["momentum"], group["momentum_mode"] == "ema"
    if not buffers:
        return [gradient.clone() for gradient in gradients]
    if ema:
        # (1 − μ) g + μ M of the buffer M after this step, which is (1 − μ²) g + μ² M of the buffer before it.
        return list(torch._foreach_lerp(gradients, buffers, mu**2 if group["nesterov"] else mu))
    scaled = torch._foreach_mul(gradients, 1 + mu if group["nesterov"] else 1.0)
    torch._foreach_add_(scaled, buffers, alpha=mu**2 if group["nesterov"] else mu)
    return list(scaled)


def advance(gradients: list[Tensor], buffers: list[Tensor], group: dict[str, Any], found_inf: Tensor | None) -> None:
    """M ← μ M + (1 − μ) g for "ema", μ M + g for "sum", in place, except where ``found_inf`` is 1."""
    if not buffers:
        return
    mu, ema = group["momentum"], group["momentum_mode"] == "ema"
    new = buffers if found_inf is None else [buffer.clone() for buffer in buffers]
    if ema:
        torch._foreach_lerp_(new, gradients, 1 - mu)
    else:
        torch._foreach_mul_(new, mu)
        torch._foreach_add_(new, gradients)
    if found_inf is not None:
        for buffer, after in zip(buffers, new):
            buffer.copy_(torch.where(found_inf > 0, buffer, after))


class Transform:
    """D → c·T(D) for whole parameters of a group, each with its layout and settings; or with a map in place of T."""

    def __init__(self, group: dict[str, Any], transfer: SpectralMap | None = None) -> None:
        self.transfer = transfer
        self.layouts: list[Layout] = layouts_of(group)
        self.settings = list(zip(*(values_of(group, key) for key in ("alpha", "damping", "damping_mode"))))
        self.update_scale: UpdateScale = group["update_scale"]
        self.options = {"solver": group["solver"], "tolerance": group["tolerance"]}

    def costs(self, shapes: Sequence[torch.Size], indices: Sequence[int]) -> list[float]:
        """Operations of the updates of the parameters ``indices``, up to a factor."""
        return [self.layouts[i].cost(shape) for i, shape in zip(indices, shapes)]

    def __call__(self, directions: Sequence[Tensor], indices: Sequence[int]) -> list[Tensor]:
        """The updates of the parameters ``indices``, from their directions, whole."""
        pieces = [self.layouts[i].matrices(direction) for i, direction in zip(indices, directions)]
        settings = [self.settings[i] for i, own in zip(indices, pieces) for _ in own]
        matrices = [matrix for own in pieces for matrix in own]
        if isinstance(self.update_scale, str):
            free = [place for place, (_, _, mode) in enumerate(settings) if self._unit(mode) != "absolute"]
            for place, matrix in zip(free, to_unit_scale([matrices[place] for place in free])):
                matrices[place] = matrix
        updates = self._map(matrices, settings)
        transfers = settings if self.transfer is None else [None] * len(settings)
        factors = scale_factors(updates, matrices, transfers, self.update_scale)
        if all(isinstance(factor, Tensor) and factor.dim() == 0 for factor in factors):
            torch._foreach_mul_(updates, factors)  # type: ignore[arg-type]
        elif self.update_scale is not None:
            updates = [update * factor for update, factor in zip(updates, factors)]
        flat = iter(updates)
        return [
            self.layouts[i].tensor([next(flat).to(direction.dtype) for _ in own], direction)
            for i, own, direction in zip(indices, pieces, directions)
        ]

    def _unit(self, mode: str) -> str:
        """What the map measures singular values in, or d for T."""
        return mode if self.transfer is None else self.transfer.unit

    def _map(self, matrices: list[Tensor], settings: Sequence[tuple[Any, ...]]) -> list[Tensor]:
        """T(D) of each matrix with its (α, d, mode), or its image under the map."""
        if self.transfer is not None:
            return list(spectral_map(matrices, self.transfer, self.options["tolerance"] or 1e-3))
        updates = list(matrices)
        for mode in dict.fromkeys(mode for _, _, mode in settings):
            places = [place for place, (_, _, own) in enumerate(settings) if own == mode]
            results = spectral_newton(
                [matrices[place] for place in places],
                [settings[place][0] for place in places],
                [settings[place][1] for place in places],
                damping_mode=mode,
                **self.options,
            )
            for place, result in zip(places, results):
                updates[place] = result
        return updates


def parts_of(parameters: Sequence[Tensor], process_group: torch.distributed.ProcessGroup | None) -> Iterator[list[int]]:
    """Buckets of parameters of one kind: plain tensors and DTensors apart. Ranks that share the work cut alike, a
    quarter of the whole at a time."""
    for sharded in (False, True):
        places = [i for i, p in enumerate(parameters) if is_sharded(p) == sharded]
        if not places:
            continue
        own, limit = [parameters[i] for i in places], BUCKET_BYTES
        if sharded or process_group is not None:
            ranks = torch.distributed.get_world_size(None if sharded else process_group)
            total = sum(p.numel() * max(4, p.dtype.itemsize) for p in own)
            limit = max(SHARED_BUCKET_BYTES * ranks, total // 4)
        for bucket in buckets(own, limit):
            yield [places[i] for i in bucket]


def updates_of(
    transform: Transform,
    parameters: Sequence[Tensor],
    directions: Sequence[Tensor],
    indices: Sequence[int],
    process_group: torch.distributed.ProcessGroup | None,
) -> list[Tensor]:
    """c·T(D) of parameters of one kind, at these places of their group; of DTensors the local shards."""
    if is_sharded(parameters[0]):
        return distributed.sharded_updates(transform, directions, parameters, indices)
    if process_group is not None:
        return distributed.replicated_updates(transform, directions, indices, process_group)
    return transform(directions, indices)


def matrix_updates(
    transform: Transform,
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    buffers: Sequence[Tensor],
    indices: Sequence[int],
    group: dict[str, Any],
    found_inf: Tensor | None,
    process_group: torch.distributed.ProcessGroup | None,
) -> list[Tensor]:
    """The updates of a bucket, local, and the momentum advanced after them: a setting at which T fails changes nothing.

    ``gradients`` and ``buffers`` are local and of one dtype.
    """
    own = list(gradients)
    if found_inf is not None:
        own = [torch.where(found_inf > 0, torch.zeros_like(gradient), gradient) for gradient in own]
    if group["maximize"]:
        own = list(torch._foreach_neg(own))
    directions = directions_of(own, list(buffers), group)
    updates = updates_of(transform, parameters, directions, indices, process_group)
    hold_without_gradient(updates, gradients, parameters, [transform.layouts[i] for i in indices])
    advance(own, list(buffers), group, found_inf)
    return updates
