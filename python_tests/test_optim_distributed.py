"""Two gloo processes: DDP, FSDP2 and other DTensors equal one process; checkpoints; and who owns what."""

import inspect

import pytest
import torch
from processes import CONTEXT, run_ranks

from spectral_ext.optim.distributed import _shard_shape, assign_owners

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="torch without gloo"
)
if torch.distributed.is_available():
    import distributed_optim_worker as worker

    CHECKS = [name for name, _ in inspect.getmembers(worker, inspect.isfunction) if name.startswith("check_")]
else:
    CHECKS = []


@pytest.fixture(scope="module")
def outcomes():
    with CONTEXT.Manager() as manager:
        results = manager.dict()
        run_ranks(worker.run, results)
        return dict(results)


@pytest.mark.parametrize("name", CHECKS)
def test_two_processes(outcomes, name):
    errors = [outcomes[rank, name] for rank in (0, 1) if outcomes[rank, name] is not None]
    assert not errors, errors[0]


def test_owners_balance_the_cost():
    costs = [9.0, 1.0, 5.0, 4.0, 1.0, 2.0, 2.0]
    owners = assign_owners(costs, 3)
    loads = [sum(c for c, owner in zip(costs, owners) if owner == rank) for rank in range(3)]
    assert max(loads) == 9.0 and min(loads) > 6
    assert assign_owners(costs, 1) == [0] * 7


@pytest.mark.parametrize("size", [0, 1, 2, 5, 6, 7, 8])
def test_shards_are_those_of_chunk(size):
    t = torch.zeros(3, size)
    parts = [part.shape[1] for part in t.chunk(4, 1)] if size else []
    parts += [0] * (4 - len(parts))
    assert [_shard_shape(t.shape, 1, 4, rank)[1] for rank in range(4)] == parts
