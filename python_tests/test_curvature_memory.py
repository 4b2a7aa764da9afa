"""The memory estimate against what is really allocated, and budgets: same numbers, less memory."""

import gc
import weakref

import pytest
import torch
from curvature_cases import C, build, mlp, resnet
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spectral_ext.curvature import directional_curvature, estimate_memory

CE = nn.CrossEntropyLoss()


class Peak(TorchDispatchMode):
    """The most bytes that were alive at once in storages made inside."""

    def __init__(self):
        super().__init__()
        self.alive, self.now, self.peak = set(), 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for t in tree_leaves(result):
            if isinstance(t, torch.Tensor) and not isinstance(t, FakeTensor):
                storage = t.untyped_storage()
                if storage._cdata not in known and storage._cdata not in self.alive:
                    self.alive.add(storage._cdata)
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self.gone, storage._cdata, storage.nbytes())
        return result

    def gone(self, key, size):
        self.alive.discard(key)
        self.now -= size


def peak_of(call):
    gc.collect()
    with Peak() as mode:
        result = call()
    return mode.peak, result


def wide(kind):
    if kind == "mlp":
        model = nn.Sequential(
            nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 256), nn.LayerNorm(256), nn.GELU(), nn.Linear(256, C)
        )
        return model.double(), [(torch.randn(256, 64).double(), torch.randint(0, C, (256,)))]
    return resnet(nn.BatchNorm2d).double().eval(), [(torch.randn(64, 3, 16, 16).double(), torch.randint(0, C, (64,)))]


def measure(model, batches, **options):
    return directional_curvature(model, CE, batches, **{"method": "tangent_adjoint", **options})


@pytest.mark.parametrize("method", ["tangent_adjoint", "auto"])
@pytest.mark.parametrize("kind", ["mlp", "resnet"])
def test_the_estimate_bounds_the_peak(kind, method):
    model, batches = wide(kind)
    estimate = estimate_memory(model, CE, batches[0])
    for lanes in (1, 4):
        budget = estimate.total(lanes) if method != "auto" else max(estimate.total(lanes), estimate.self_check)
        peak, _ = peak_of(lambda b=budget: measure(model, batches, top_k=4, method=method, memory_budget=b))
        assert peak <= 1.1 * budget, (lanes, peak / budget)
        assert peak >= 0.3 * budget, (lanes, peak / budget)


@pytest.mark.parametrize("kind", ["mlp", "resnet"])
def test_results_do_not_depend_on_the_budget(kind):
    model, batches = wide(kind)
    whole = measure(model, batches, top_k=5, split=True)
    need = estimate_memory(model, CE, batches[0])
    for budget in (need.total(2), need.total(1), need.total(1) // 3, need.gradients + need.total(1) // 10):
        found = directional_curvature(
            model, CE, batches, top_k=5, method="tangent_adjoint", memory_budget=budget, split=True
        )
        for name, result in found.items():
            scale = float(whole[name].h.abs().max())
            assert torch.allclose(result.h, whole[name].h, rtol=1e-9, atol=1e-12 * scale)
            for part in result.parts:
                assert torch.allclose(result.parts[part], whole[name].parts[part], rtol=1e-9, atol=1e-10 * scale)


def test_a_budget_cuts_the_peak():
    model, batches = wide("resnet")
    need = estimate_memory(model, CE, batches[0]).total(1)
    peak, found = peak_of(lambda: measure(model, batches, top_k=2, memory_budget=need // 4))
    assert peak <= 1.15 * need / 4 + 3 * batches[0][0].nbytes
    assert found.samples == 64


def test_sqrt_gn_and_auto_keep_their_numbers_under_a_budget():
    model, batches = wide("resnet")
    whole = directional_curvature(model, CE, batches, top_k=3)
    found = directional_curvature(
        model, CE, batches, top_k=3, memory_budget=estimate_memory(model, CE, batches[0]).total() // 3
    )
    for name in whole:
        assert whole[name].method == found[name].method == "sqrt_gn"
        assert torch.allclose(whole[name].h, found[name].h, rtol=1e-9)


def test_estimate_grows_with_samples_and_names_layers():
    model, batches = wide("mlp")
    x, y = batches[0]
    small, large = (estimate_memory(model, CE, (x[:n], y[:n])) for n in (32, 256))
    weights = sum(2 * p.nbytes for n, p in model.named_parameters() if p.dim() > 1)
    assert large.base - weights == pytest.approx(8 * (small.base - weights), rel=0.01)
    assert set(large.per_direction) == {"0", "2", "5"}
    assert large.per_direction["0"] >= large.per_direction["2"] >= large.per_direction["5"] > 0
    assert large.samples == 256


def test_what_cannot_be_cut_says_so():
    model, loss, batches = build("resnet, batch norm in train mode")
    budget = estimate_memory(model, loss, batches[0]).gradients + 1000
    with pytest.raises(ValueError, match="1 couples the samples in train mode"):
        directional_curvature(model, loss, batches, memory_budget=budget)
    model, loss, batches = build("relu, class weights")
    budget = estimate_memory(model, loss, batches[0]).total() // 2
    with pytest.raises(ValueError, match="not the mean of its samples' losses"):
        directional_curvature(model, loss, batches, memory_budget=budget)
    model, batch = mlp(nn.ReLU()).double(), (torch.randn(3, 7).double(), torch.zeros(3).long())
    need = estimate_memory(model, CE, batch)
    with pytest.raises(ValueError, match="one sample alone"):
        directional_curvature(model, CE, [batch], memory_budget=need.gradients + 10)
    with pytest.raises(
        ValueError, match=r"gradients of \d layers take about \d+ bytes .* memory_budget=10: raise it, or"
    ):
        directional_curvature(model, CE, [batch], memory_budget=10)


def test_the_estimate_covers_the_decomposition_of_a_large_gradient():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(700, 500), nn.Tanh(), nn.Linear(500, C)).double()
    batch = torch.randn(4, 700).double(), torch.randint(0, C, (4,))
    estimate = estimate_memory(model, CE, batch)
    assert estimate.decomposition > max(estimate.total(), estimate.self_check)
    peak, _ = peak_of(lambda: measure(model, [batch], top_k=2))
    assert 0.3 * estimate.decomposition <= peak <= 1.1 * estimate.peak(2)
    text = str(estimate)
    assert text.startswith("memory for 4 samples: gradients 5 MiB, their singular value decomposition")
    assert "self-check" in text and "float64 where terms cancel" in text


def test_the_estimate_covers_float64_arithmetic(monkeypatch):
    from spectral_ext.curvature import verification

    model, batches = wide("mlp")
    model, batches = model.float(), [(batches[0][0].float(), batches[0][1])]
    estimate = estimate_memory(model, CE, batches[0])
    monkeypatch.setattr(verification, "_cancelling", lambda result: list(range(len(result.size))))
    peak, found = peak_of(lambda: measure(model, batches, top_k=1, self_check=False))
    assert all("float64 arithmetic" in result.notes[0] for result in found.values())
    assert 0.3 * estimate.float64 <= peak <= 1.1 * estimate.peak(1)
