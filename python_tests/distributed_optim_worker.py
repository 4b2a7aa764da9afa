"""What two gloo processes check about SpectralNewton; started by ``test_optim_distributed.py``, one result per check.

One file, although long: two processes are started once for all checks.
"""

import copy
import tempfile
import traceback

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from spectral_ext.optim import NonFiniteGradientError, SpectralNewton

SETTINGS = {"alpha": {"0": 1.5, "*": 2.0}, "split": {"5": 3}}


def net():
    torch.manual_seed(3)
    body = [nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(24, 7), nn.Linear(7, 9), nn.Linear(9, 4))


def data(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, 3, 4, 4, generator=generator), torch.randint(4, (8,), generator=generator)


def train(model, optimizer, seeds):
    """Eval mode, so that the mean over ranks of half batches is the mean over the batch."""
    model.eval()
    ranks, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    for seed in seeds:
        x, y = (t.chunk(ranks)[rank] for t in data(seed))
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def one_process(settings, seeds):
    model = net()
    optimizer = SpectralNewton(model, **settings)
    model.eval()
    for seed in seeds:
        x, y = data(seed)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def full(p):
    return p.full_tensor() if isinstance(p, DTensor) else p


def assert_close(model, expected):
    for (name, p), q in zip(model.named_parameters(), expected.parameters()):
        torch.testing.assert_close(
            full(p).detach(), q.detach(), atol=2e-5, rtol=2e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


def sharded_net():
    model = net()
    for i in (0, 4, 5, 6):
        fully_shard(model[i])
    return fully_shard(model)


def check_ddp_shares_the_work():
    model = DistributedDataParallel(net())
    calls = []
    optimizer = SpectralNewton(model.module, **SETTINGS, process_group=dist.group.WORLD)
    from spectral_ext.optim import matrix_step

    original = matrix_step.Transform.__call__

    def counted(self, directions, indices):
        calls.append(len(directions))
        return original(self, directions, indices)

    matrix_step.Transform.__call__ = counted
    try:
        train(model, optimizer, range(4))
    finally:
        matrix_step.Transform.__call__ = original
    assert_close(model.module, one_process(SETTINGS, range(4)))
    counts = [None] * dist.get_world_size()
    dist.all_gather_object(counts, sum(calls))
    assert sum(counts) == 4 * 3 and min(counts) > 0, counts


def check_ddp_ranks_stay_bitwise_equal():
    model = DistributedDataParallel(net())
    train(model, SpectralNewton(model.module, process_group=dist.group.WORLD), range(3))
    for p in model.parameters():
        rows = [torch.empty_like(p) for _ in range(2)]
        dist.all_gather(rows, p.detach())
        assert torch.equal(*rows)


def check_fsdp_equals_one_process():
    model = sharded_net()
    optimizer = SpectralNewton(model, **SETTINGS)
    train(model, optimizer, range(4))
    assert all(isinstance(state["momentum_buffer"], DTensor) for state in list(optimizer.state.values())[:3])
    assert_close(model, one_process(SETTINGS, range(4)))


def check_other_placements():
    mesh = init_device_mesh("cpu", (2,))
    for placement in (Shard(0), Shard(1), Replicate()):
        torch.manual_seed(5)
        weights, gradients = [torch.randn(5, 7), torch.randn(3, 4, 2, 2)], [torch.randn(5, 7), torch.randn(3, 4, 2, 2)]
        plain = [nn.Parameter(w.clone()) for w in weights]
        sharded = [nn.Parameter(distribute_tensor(w, mesh, [placement])) for w in weights]
        for p, q, g in zip(plain, sharded, gradients):
            p.grad, q.grad = g.clone(), distribute_tensor(g, mesh, [placement])
        SpectralNewton(plain, 0.1).step()
        SpectralNewton(sharded, 0.1).step()
        for p, q in zip(plain, sharded):
            torch.testing.assert_close(q.full_tensor(), p.detach(), atol=1e-5, rtol=1e-4)


def check_two_sharded_mesh_dimensions():
    mesh = init_device_mesh("cpu", (2, 1))
    weight, gradient = torch.randn(6, 8), torch.randn(6, 8)
    dist.broadcast(weight, 0)
    dist.broadcast(gradient, 0)
    for placements in ([Shard(0), Shard(1)], [Shard(1), Shard(0)], [Replicate(), Shard(1)], [Shard(0), Replicate()]):
        plain = nn.Parameter(weight.clone())
        sharded = nn.Parameter(distribute_tensor(weight, mesh, placements))
        plain.grad, sharded.grad = gradient.clone(), distribute_tensor(gradient, mesh, placements)
        SpectralNewton([plain], 0.1).step()
        SpectralNewton([sharded], 0.1).step()
        torch.testing.assert_close(sharded.full_tensor(), plain.detach(), atol=1e-5, rtol=1e-4)


class Norms(nn.Module):
    """A tensor-parallel block: norms before a column-parallel and a row-parallel layer, and a head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.first, self.second = nn.LayerNorm(8), nn.LayerNorm(8)
        self.up, self.down, self.head = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.second(self.down(self.up(self.first(x)).relu())))


def train_norms(model, optimizer, sequence_parallel=False):
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        x, y = torch.randn(4, 6, 8, generator=generator), torch.randint(4, (24,), generator=generator)
        optimizer.zero_grad()
        out = model(x.chunk(2, 1)[dist.get_rank()] if sequence_parallel else x)
        F.cross_entropy(full(out).flatten(0, 1), y).backward()
        optimizer.step()


def check_tensor_parallel_norms_with_partial_gradients():
    """Under sequence parallelism the gradient of a norm is a partial sum; without it, norms are plain tensors."""
    mesh = init_device_mesh("cpu", (2,))
    expected = Norms()
    train_norms(expected, SpectralNewton(expected))
    plain = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    sequence = {
        "first": SequenceParallel(),
        "up": ColwiseParallel(input_layouts=Shard(1)),
        "down": RowwiseParallel(output_layouts=Shard(1)),
        "second": SequenceParallel(),
        "head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
    }
    for plan in (plain, sequence):
        model = parallelize_module(Norms(), mesh, plan)
        train_norms(model, SpectralNewton(model), plan is sequence)
        assert_close(model, expected)


def check_experts_without_gradient():
    """Whether a matrix has a gradient is known to all ranks that hold a part of it."""
    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(8)
    weight, first, second = (torch.randn(3, 4, 6) for _ in range(3))
    second[1] = 0
    second[0, 1:] = 0
    for placement in (Shard(0), Shard(1), Shard(2), Replicate()):
        plain = nn.Parameter(weight.clone())
        sharded = nn.Parameter(distribute_tensor(weight, mesh, [placement]))
        optimizers = [SpectralNewton([p], 0.1, batch_dims=1) for p in (plain, sharded)]
        for gradient in (first, second):
            plain.grad, sharded.grad = gradient.clone(), distribute_tensor(gradient, mesh, [placement])
            for optimizer in optimizers:
                optimizer.step()
        torch.testing.assert_close(sharded.full_tensor(), plain.detach(), atol=1e-5, rtol=1e-4)


def check_parts_of_a_fused_weight_without_gradient():
    """Shards that straddle the parts; a part whose rows lie on both ranks."""
    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(9)
    weight, first, second = (torch.randn(9, 6) for _ in range(3))
    second[3:6] = 0
    second[0] = 0
    for layout in ({"split": 3}, {"split": (3, 3, 3)}, {"split": 3, "split_dim": 1}):
        turn = (lambda t: t.t().contiguous()) if "split_dim" in layout else (lambda t: t.clone())
        for placement in (Shard(0), Shard(1), Replicate()):
            plain = nn.Parameter(turn(weight))
            sharded = nn.Parameter(distribute_tensor(turn(weight), mesh, [placement]))
            optimizers = [SpectralNewton([p], 0.1, weight_decay=0.0, **layout) for p in (plain, sharded)]
            for gradient in (first, second):
                before = plain.detach().clone()
                plain.grad, sharded.grad = turn(gradient), distribute_tensor(turn(gradient), mesh, [placement])
                for optimizer in optimizers:
                    optimizer.step()
            moved = turn(plain.detach() - before)
            assert moved[:3].any() and not moved[3:6].any() and moved[6:].any()
            torch.testing.assert_close(sharded.full_tensor(), plain.detach(), atol=1e-5, rtol=1e-4)


def check_a_replica_without_gradient_stops_all_ranks():
    model = net()
    optimizer = SpectralNewton(model, process_group=dist.group.WORLD)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    if dist.get_rank() == 1:
        model[4].weight.grad = None
    before = copy.deepcopy(model.state_dict())
    message = ""
    try:
        optimizer.step()
    except RuntimeError as error:
        message = str(error)
    assert "'4.weight'" in message and "on some ranks" in message, message
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def check_a_shard_without_gradient_counts_as_zeros():
    """An expert without a token on one rank: its shard has no gradient there."""
    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(8)
    gradient = torch.randn(4, 3, 5)
    gradient[2:] = 0
    for use_adamw in (False, True):
        plain = nn.Parameter(torch.ones(4, 3, 5))
        sharded = nn.Parameter(distribute_tensor(torch.ones(4, 3, 5), mesh, [Shard(0)]))
        plain.grad = gradient.clone()
        sharded.grad = distribute_tensor(gradient, mesh, [Shard(0)])
        if dist.get_rank() == 1:
            sharded.grad = None
        for p in (plain, sharded):
            SpectralNewton([p], 0.1, batch_dims=1, use_adamw=use_adamw).step()
        torch.testing.assert_close(sharded.full_tensor(), plain.detach(), atol=1e-5, rtol=1e-4)


def check_replicas_agree_about_gradients_that_are_not_finite():
    for nonfinite in ("raise", "skip"):
        model = net()
        optimizer = SpectralNewton(model, nonfinite=nonfinite, process_group=dist.group.WORLD)
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        if dist.get_rank() == 1:
            model[4].weight.grad[0, 0] = float("inf")
        raised = ""
        try:
            optimizer.step()
        except NonFiniteGradientError as error:
            raised = str(error)
        if nonfinite == "raise":
            assert ("4.weight" if dist.get_rank() == 1 else "another rank") in raised, raised
        else:
            assert optimizer.skipped_steps == 1 and not optimizer.state


def check_rounding_noise_of_replicas_and_shards():
    mesh = init_device_mesh("cpu", (2,))
    settings = {"low_precision": "stochastic_rounding", "weight_decay": 0.0}
    for placement in (Replicate(), Shard(0)):
        weight = nn.Parameter(distribute_tensor(torch.ones(64, 64, dtype=torch.bfloat16), mesh, [placement]))
        weight.grad = distribute_tensor(torch.eye(64, dtype=torch.bfloat16), mesh, [placement])
        SpectralNewton([weight], 1e-3, update_scale=None, momentum=0.0, **settings).step()
        here = weight.to_local().detach()
        rows = [torch.empty_like(here) for _ in range(2)]
        dist.all_gather(rows, here)
        if placement.is_replicate():
            assert torch.equal(*rows)
        else:
            assert not torch.equal((rows[0][:, :32] < 1).diagonal(), (rows[1][:, 32:] < 1).diagonal())


def check_a_state_of_another_layout_is_refused_by_name():
    model = sharded_net()
    optimizer = SpectralNewton(model)
    train(model, optimizer, range(1))
    state = optimizer.state_dict()
    for entries in state["state"].values():
        for key, value in entries.items():
            entries[key] = value.to_local() if isinstance(value, DTensor) else value
    other = SpectralNewton(sharded_net())
    message = ""
    try:
        other.load_state_dict(state)
    except ValueError as error:
        message = str(error)
    assert "0.weight" in message and "torch.distributed.checkpoint" in message and not other.state, message


def check_fsdp_over_tensor_parallel():
    """Both sharded mesh dimensions on the same dimension of a weight: strided shards."""
    for shape in ((1, 2), (2, 1)):
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("dp", "tp"))
        model = parallelize_module(Norms(), mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
        for layer in (model.up, model.down, model.head):
            fully_shard(layer, mesh=mesh["dp"])
        fully_shard(model, mesh=mesh["dp"])
        expected = Norms()
        train_norms(model, SpectralNewton(model))
        train_norms(expected, SpectralNewton(expected))
        assert_close(model, expected)


def check_zero_redundancy_of_matrices():
    from torch.distributed.optim import ZeroRedundancyOptimizer

    expected = net()
    model = DistributedDataParallel(net())
    parts = [[p for p in m.parameters() if p.dim() > 1] for m in (model, expected)]
    optimizer = ZeroRedundancyOptimizer(parts[0], optimizer_class=SpectralNewton, lr=0.05)
    train(model, optimizer, range(2))
    other = SpectralNewton(parts[1], lr=0.05)
    expected.eval()
    for seed in range(2):
        x, y = data(seed)
        other.zero_grad()
        F.cross_entropy(expected(x), y).backward()
        other.step()
    assert_close(model.module, expected)


def check_matrices_of_which_some_are_sharded():
    torch.manual_seed(6)
    model = Norms()
    fully_shard(model, ignored_params=set(model.up.parameters()))
    expected = Norms()
    for seed, (p, q) in enumerate(zip(model.parameters(), expected.parameters())):
        torch.manual_seed(seed)
        q.grad = torch.randn_like(q)
        p.grad = distribute_tensor(q.grad, p.device_mesh, p.placements) if isinstance(p, DTensor) else q.grad.clone()
    SpectralNewton(model).step()
    SpectralNewton(expected).step()
    assert_close(model, expected)


def check_fsdp1_is_refused():
    for use_orig_params in (True, False):
        model = FullyShardedDataParallel(net(), use_orig_params=use_orig_params, device_id=torch.device("cpu"))
        message = ""
        try:
            SpectralNewton(model)
        except TypeError as error:
            message = str(error)
        assert "fully_shard" in message, use_orig_params


def check_a_shard_that_is_not_finite_stops_all_ranks():
    for nonfinite in ("raise", "skip"):
        model = sharded_net()
        optimizer = SpectralNewton(model, nonfinite=nonfinite)
        train(model, optimizer, range(1))
        before = [full(p).detach().clone() for p in model.parameters()]
        if dist.get_rank() == 0:
            model[4].weight.grad.to_local()[0, 0] = float("nan")
        raised = None
        try:
            optimizer.step()
        except NonFiniteGradientError as error:
            raised = str(error)
        assert (raised is not None) == (nonfinite == "raise")
        assert raised is None or ("4.weight" if dist.get_rank() == 0 else "another rank") in raised, raised
        assert all(torch.equal(full(p).detach(), q) for p, q in zip(model.parameters(), before))


def check_distributed_checkpoint_round_trip():
    model = sharded_net()
    optimizer = SpectralNewton(model, **SETTINGS)
    train(model, optimizer, range(2))
    folder = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(folder)
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder[0])
    train(model, optimizer, range(2, 4))

    other = sharded_net()
    again = SpectralNewton(other, **SETTINGS)
    weights, state = get_state_dict(other, again)
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=folder[0])
    set_state_dict(other, again, model_state_dict=weights, optim_state_dict=state)
    train(other, again, range(2, 4))
    for p, q in zip(model.parameters(), other.parameters()):
        assert torch.equal(full(p), full(q))


def check_replicas_of_a_copy():
    """A process group is not copied: the copy computes all by itself, with the same result."""
    model = net()
    twin, optimizer = copy.deepcopy((model, SpectralNewton(model)))
    assert optimizer.process_group is None
    train(twin, optimizer, range(1))


def run(rank, port, results):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    for name, check in list(globals().items()):
        if name.startswith("check_"):
            try:
                check()
                results[rank, name] = None
            except Exception:
                results[rank, name] = traceback.format_exc()
    dist.destroy_process_group()
