"""Where models live: compiled, wrapped, checkpointed, sharded, under autocast. Measured, or refused by the reason."""

import copy
import sys

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from spectral_ext import directional_curvature, measure
from spectral_ext.measurement.environment import measurement, unwrapped
from spectral_ext.measurement.options import check_options

LOSS = nn.CrossEntropyLoss()
CALLS = [measure, directional_curvature]


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 6)).double()


def vectors():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(16, 8, generator=generator).double(), torch.randint(6, (16,), generator=generator)


def curvature(call, net, loss=LOSS):
    found = call(net, loss, [vectors()], top_k=4, progress=False)
    return {n: torch.as_tensor(row.arrays.h if call is measure else row.h) for n, row in found.items()}


def same(found, expected):
    assert list(found) == list(expected)
    for name, h in expected.items():
        torch.testing.assert_close(found[name], h, rtol=1e-8, atol=1e-12)


def compiled_inside():
    net = mlp()
    net[2] = torch.compile(net[2], backend="aot_eager")
    return net


def compiled_in_place():
    net = mlp()
    net.compile(backend="aot_eager")
    return net


class Autocast(nn.Module):
    """As Accelerate leaves a model: forward runs under autocast, or functional code inside it does."""

    def __init__(self, whole, enabled=True):
        super().__init__()
        self.net, self.whole, self.enabled = mlp().float(), whole, enabled

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.enabled):
            if self.whole:
                return self.net(x).float()
            x = x @ self.net[0].weight.T
        return self.net[1:](x.float())


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.net, self.reentrant = mlp(), reentrant

    def forward(self, x):
        x = torch.tanh(self.net[0](x))
        return self.net[4](checkpoint(lambda v: torch.tanh(self.net[2](v)), x, use_reentrant=self.reentrant))


@pytest.mark.parametrize("call", CALLS)
def test_compiled_models_are_measured_uncompiled(call):
    expected = curvature(call, mlp())
    for make in (lambda: torch.compile(mlp(), backend="aot_eager"), compiled_inside, compiled_in_place):
        net = make()
        net(vectors()[0])  # compiled before the measurement
        same(curvature(call, net), expected)
        net(vectors()[0])
    loss = torch.compile(lambda output, target: F.cross_entropy(output, target), backend="aot_eager")
    same(curvature(call, mlp(), loss), expected)


@pytest.mark.parametrize("call", CALLS)
def test_checkpointing(call):
    expected = {f"net.{name}": h for name, h in curvature(call, mlp()).items()}
    for reentrant in (False, True):
        same(curvature(call, Checkpointed(reentrant)), expected)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("whole", [True, False])
def test_autocast_inside_forward_is_off_during_a_measurement(call, whole):
    x, y = vectors()
    torch.manual_seed(1)
    net = Autocast(whole)
    plain = copy.deepcopy(net)
    plain.enabled = False
    decorated = copy.deepcopy(plain)
    decorated.forward = torch.autocast("cpu", torch.bfloat16)(decorated.forward)
    expected, *others = (call(one, LOSS, [(x.float(), y)], top_k=2, progress=False) for one in (plain, net, decorated))
    for found in others:
        assert list(found) == list(expected) == ["net.0", "net.2", "net.4"]
        for name, row in found.items():
            h, wanted = (getattr(one, "arrays", one).h for one in (row, expected[name]))
            torch.testing.assert_close(torch.as_tensor(h), torch.as_tensor(wanted), rtol=1e-6, atol=0)
        if call is measure:
            assert any("autocast(cpu)" in note for note in found.meta["notes"])
    with torch.autocast("cpu", torch.bfloat16):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


@pytest.mark.parametrize("call", CALLS)
def test_autocast_switched_on_by_hand_is_named(call):
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp().float()

        def forward(self, x):
            torch.set_autocast_enabled("cpu", True)
            return self.net(x).float()

    x, y = vectors()
    with pytest.raises(RuntimeError, match=r"torch\.autocast\('cpu'\)"):
        call(Hidden(), LOSS, [(x.float(), y)], top_k=2, progress=False)


@pytest.mark.parametrize("call", CALLS)
def test_models_that_cannot_be_measured_are_named_and_left_alone(call):
    def refused(error, message, net, batch=None, loss=LOSS):
        with pytest.raises(error, match=message):
            call(net, loss, [batch or vectors()], progress=False)

    lazy = nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.Linear(8, 6))
    x, y = vectors()
    refused(ValueError, "'0.weight' is lazy", lazy, (x.float(), y))
    assert lazy(x.float()).shape == (16, 6)
    assert list(call(lazy, LOSS, [(x.float(), y)], top_k=2, progress=False)) == ["0", "2"]
    refused(ValueError, "'0.weight' is on the meta device", mlp().to("meta"))
    refused(TypeError, "weight of '0' is torch.bfloat16", mlp().bfloat16())
    refused(TypeError, "batch 0 holds float32 inputs, and the weights are float64", mlp(), (x.float(), y))
    refused(ValueError, "does not require a gradient", mlp().requires_grad_(False))
    refused(ValueError, "TorchScript", torch.jit.trace(mlp(), x))
    with torch.inference_mode():
        made_inside, inside = nn.Sequential(nn.Linear(8, 6)), (x * 1, y * 1)
    refused(ValueError, "'0.weight' was made under torch.inference_mode", made_inside, (x.float(), y))
    assert list(call(mlp(), LOSS, [inside], top_k=2, progress=False)) == ["0", "2", "4"]
    refused(TypeError, "must be an nn.Module, not function", lambda x: x)

    def overflow(output, target):
        return LOSS(output, target) * 1e308 * 1e10

    refused(
        ValueError,
        "inputs, target and weights are finite, so the forward pass or the loss overflows",
        mlp(),
        loss=overflow,
    )
    broken = mlp()
    with torch.no_grad():
        broken[2].bias[0] = float("nan")
    refused(ValueError, "'2.bias' holds NaN or Inf", broken)


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch without gloo")
def test_wrapped_and_sharded_models(tmp_path):
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(mlp())
        assert unwrapped(wrapped) is wrapped.module
        sharded = mlp()
        fully_shard(sharded, mesh=dist.init_device_mesh("cpu", (1,)))
        for call in CALLS:
            same(curvature(call, wrapped), curvature(call, mlp()))
            with pytest.raises(TypeError, match=r"'0\.weight' is a DTensor"):
                curvature(call, sharded)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("option", "error"),
    [
        (dict(top_k=0), ValueError), (dict(top_k=2.5), TypeError), (dict(top_k=True), TypeError),
        (dict(method="sqrt"), ValueError), (dict(method=None), ValueError), (dict(split=1), TypeError),
        (dict(memory_budget=0), ValueError), (dict(memory_budget="1GB"), TypeError),
        (dict(memory_budget=1), ValueError),
        (dict(layers=3), TypeError), (dict(layers=[3]), TypeError), (dict(layers="nothing*"), KeyError),
        (dict(seed=-1), ValueError), (dict(seed=None), TypeError), (dict(level=1), ValueError),
        (dict(level="a"), TypeError), (dict(resume=5), TypeError), (dict(batch_size="many"), ValueError),
    ],
)  # fmt: skip
def test_options_are_judged_before_the_first_pass(option, error):
    passes = []

    def loss(output, target):
        if output.requires_grad:
            passes.append(1)
        return LOSS(output, target)

    calls = [measure] if option.keys() & {"seed", "level", "resume"} else CALLS
    for call in calls:
        passes.clear()
        with pytest.raises(error, match=next(iter(option))):
            call(mlp(), loss, [vectors()] * 3, progress=False, **option)
        # The budget is compared with the traced shapes, for which batch 0 runs once; nothing runs for the others.
        assert len(passes) <= (1 if option == dict(memory_budget=1) else 0)


def test_options_by_name():
    check_options(top_k=3, seed=0, level=0.5, split=True, memory_budget=None, layers=["a"], resume="folder")
    with pytest.raises(KeyError):
        check_options(nonsense=1)


def test_compiling_is_not_imported_for_its_own_sake():
    had = "torch._dynamo" in sys.modules
    with measurement(nn.Linear(2, 2)):
        assert ("torch._dynamo" in sys.modules) == had
