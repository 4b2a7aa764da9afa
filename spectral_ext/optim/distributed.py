"""Sharing the work between processes: each parameter's update is computed by one owner, chosen to balance the cost.

Replicas (DDP): every rank has every direction; owners compute, all ranks gather the results.
Shards (FSDP2, any DTensor): shards go to the owner, who has the whole direction, computes, and sends the shards of the
update back, in two all-to-all exchanges for all parameters together. Layouts with more than one sharded mesh dimension
are gathered in full on every rank instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from spectral_ext.optim.dtensor import DTensor, Replicate, Shard


class WholeUpdates(Protocol):
    """From whole directions to whole updates of the parameters ``indices``."""

    def costs(self, shapes: Sequence[torch.Size], indices: Sequence[int]) -> list[float]: ...

    def __call__(self, directions: Sequence[Tensor], indices: Sequence[int]) -> list[Tensor]: ...


def assign_owners(costs: Sequence[float], ranks: int) -> list[int]:
    """The rank that owns each item: largest first, to the rank with the least so far (LPT); the same on all ranks."""
    load, owners = [0.0] * ranks, [0] * len(costs)
    for item in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        owners[item] = min(range(ranks), key=lambda rank: (load[rank], rank))
        load[owners[item]] += costs[item]
    return owners


def _packed(tensors: Sequence[Tensor], like: Tensor) -> Tensor:
    """All elements in a row, in index order."""
    return torch.cat([like.new_empty(0), *(tensor.reshape(-1) for tensor in tensors)])


def _by_dtype(directions: Sequence[Tensor]) -> list[list[int]]:
    kinds: dict[torch.dtype, list[int]] = {}
    for i, direction in enumerate(directions):
        kinds.setdefault(direction.dtype, []).append(i)
    return list(kinds.values())


def replicated_updates(
    transform: WholeUpdates, directions: Sequence[Tensor], indices: Sequence[int], process_group: dist.ProcessGroup
) -> list[Tensor]:
    """The updates of the parameters ``indices`` on every rank, each computed on one."""
    ranks, rank = dist.get_world_size(process_group), dist.get_rank(process_group)
    owners = assign_owners(transform.costs([d.shape for d in directions], indices), ranks)
    own = [i for i, owner in enumerate(owners) if owner == rank]
    updates_here = transform([directions[i] for i in own], [indices[i] for i in own]) if own else []
    computed = dict(zip(own, updates_here))
    updates = [torch.empty(0)] * len(directions)
    for alike in _by_dtype(directions):
        like = directions[alike[0]]
        sizes = [sum(directions[i].numel() for i in alike if owners[i] == r) for r in range(ranks)]
        row = like.new_zeros(max(sizes))
        row[: sizes[rank]] = _packed([computed[i] for i in alike if i in computed], like)
        rows = like.new_empty(ranks * len(row))
        dist.all_gather_into_tensor(rows, row, group=process_group)
        for r, (line, size) in enumerate(zip(rows.view(ranks, -1), sizes)):
            members = [i for i in alike if owners[i] == r]
            for i, flat in zip(members, line[:size].split([directions[i].numel() for i in members])):
                updates[i] = flat.view(directions[i].shape)
    return updates


def sharded_updates(
    transform: WholeUpdates, directions: Sequence[Tensor], parameters: Sequence[Tensor], places: Sequence[int]
) -> list[Tensor]:
    """The local shards of all updates from the local shards of the directions; ``parameters`` are DTensors, at these
    places of their group."""
    updates = [torch.empty(0)] * len(directions)
    buckets: dict[tuple[Any, ...], list[int]] = {}
    for i, parameter in enumerate(parameters):
        placements, mesh = _placement(parameter)
        sharded = [d for d, placement in enumerate(placements) if not placement.is_replicate()]
        if any(placements[d].is_partial() for d in sharded):
            raise ValueError(f"a parameter of shape {tuple(parameter.shape)} has partial placement; redistribute it")
        one = sharded[0] if len(sharded) == 1 else None
        plain = one is not None and type(placements[one]) is Shard
        buckets.setdefault((mesh, one if plain else None, directions[i].dtype), []).append(i)
    for (mesh, dimension, _), indices in buckets.items():
        chosen = [directions[i] for i in indices], [parameters[i] for i in indices], [places[i] for i in indices]
        if dimension is None:
            results = _gathered(transform, *chosen)
        else:
            results = _exchanged(transform, *chosen, mesh.get_group(dimension), dimension)
        for i, update in zip(indices, results):
            updates[i] = update
    return updates


def _placement(parameter: Tensor) -> tuple[Any, Any]:
    """The placements and the mesh of a DTensor."""
    assert isinstance(parameter, DTensor)
    return parameter.placements, parameter.device_mesh


def _gathered(
    transform: WholeUpdates, directions: Sequence[Tensor], parameters: Sequence[Tensor], indices: Sequence[int]
) -> list[Tensor]:
    """Every rank gathers every direction and computes every update: any placement."""
    results = []
    for i, direction, p in zip(indices, directions, parameters):
        placements, mesh = _placement(p)
        sharded = DTensor.from_local(direction, mesh, placements, run_check=False, shape=p.shape, stride=p.stride())
        (update,) = transform([sharded.full_tensor()], [i])
        replicated = DTensor.from_local(update.contiguous(), mesh, [Replicate()] * mesh.ndim, run_check=False)
        results.append(replicated.redistribute(mesh, placements).to_local())
    return results


def _exchanged(
    transform: WholeUpdates,
    directions: Sequence[Tensor],
    parameters: Sequence[Tensor],
    indices: Sequence[int],
    group: dist.ProcessGroup,
    mesh_dimension: int,
) -> list[Tensor]:
    """Shards to the owners, whole updates there, shards back."""
    ranks, rank = dist.get_world_size(group), dist.get_rank(group)
    owners = assign_owners(transform.costs([p.shape for p in parameters], indices), ranks)
    like = directions[0]
    dims = [_placement(p)[0][mesh_dimension].dim for p in parameters]
    shapes = [[_shard_shape(p.shape, dim, ranks, r) for r in range(ranks)] for p, dim in zip(parameters, dims)]
    owned = [[k for k, owner in enumerate(owners) if owner == r] for r in range(ranks)]
    sent = [sum(directions[k].numel() for k in owned[r]) for r in range(ranks)]
    received = [sum(shapes[k][r].numel() for k in owned[rank]) for r in range(ranks)]

    def exchange(out: Tensor, out_sizes: list[int], values: Tensor, sizes: list[int]) -> Tensor:
        dist.all_to_all_single(out, values, out_sizes, sizes, group=group)
        return out

    outgoing = _packed([directions[k] for r in range(ranks) for k in owned[r]], like)
    arrived = exchange(like.new_empty(sum(received)), received, outgoing, sent).split(received)
    parts = [flat.split([shapes[k][r].numel() for k in owned[rank]]) for r, flat in enumerate(arrived)]
    wholes = [
        torch.cat([parts[r][j].view(shapes[k][r]) for r in range(ranks)], dims[k]) for j, k in enumerate(owned[rank])
    ]
    own = transform(wholes, [indices[k] for k in owned[rank]]) if wholes else []
    pieces = [update.split([s[dims[k]] for s in shapes[k]], dims[k]) for k, update in zip(owned[rank], own)]
    outgoing = _packed([shards[r] for r in range(ranks) for shards in pieces], like)
    returned = exchange(like.new_empty(sum(sent)), sent, outgoing, received)
    order = [k for r in range(ranks) for k in owned[r]]
    flat = dict(zip(order, returned.split([directions[k].numel() for k in order])))
    return [flat[k].view(direction.shape) for k, direction in enumerate(directions)]


def _shard_shape(shape: torch.Size, dim: int, ranks: int, rank: int) -> torch.Size:
    """The shape of a rank's shard: ⌈size/ranks⌉ each, as ``torch.chunk``, the last ones shorter or empty."""
    chunk = -(-shape[dim] // ranks)
    size = max(0, min(chunk, shape[dim] - rank * chunk))
    return torch.Size([*shape[:dim], size, *shape[dim + 1 :]])
