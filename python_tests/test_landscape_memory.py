"""The memory of a measurement: groups of layers that fit a budget, factors of a large side, the estimate."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from spectral_ext import measure

LOSS = nn.CrossEntropyLoss()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 9))


def batch(samples=30):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(samples, 24, generator=generator), torch.randint(9, (samples,), generator=generator)


@pytest.mark.parametrize("folder", [False, True])
def test_groups_give_the_rows_of_the_whole(tmp_path, folder):
    net, (x, y) = network().double(), batch()
    data = [(x.double(), y)]
    whole = measure(net, LOSS, data, top_k=4, progress=False)
    options = {"resume": tmp_path / "run"} if folder else {}
    parts = measure(net, LOSS, data, top_k=4, progress=False, memory_budget=90_000, **options)
    assert whole.meta["memory"]["groups"] == 1
    assert parts.meta["memory"]["groups"] > 1
    assert parts.meta["memory"]["bytes"] <= 90_000 < whole.meta["memory"]["bytes"]
    assert list(parts) == list(whole)
    for name, row in parts.items():  # the curvature sums over other pieces of the data
        for key in ("sigma", "h", "h_kron", "h_sop", "gn_sample", "spectrum_A", "spectrum_delta"):
            ours, theirs = (torch.as_tensor(getattr(one.arrays, key)) for one in (row, whole[name]))
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-15)
        assert row.notes == whole[name].notes


def test_a_budget_that_no_layer_fits_is_refused_before_a_pass():
    passes = []
    net = network()
    net.register_forward_hook(lambda *_: passes.append(1))
    with pytest.raises(ValueError, match=r"memory_budget=9000 is too small for .* '0'|samples? alone is too large"):
        measure(net, LOSS, [batch(1)], top_k=4, progress=False, memory_budget=9_000)


def test_the_estimate_is_printed(capfd):
    measure(network(), LOSS, [batch()], top_k=2, progress=True, layers="4")
    assert "memory: gradients and factors" in capfd.readouterr().err


def test_a_wide_head_has_its_whole_spectrum_and_no_matrix():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 6000))
    data = torch.randn(8, 16), torch.randint(6000, (8,))
    row = measure(net, nn.functional.cross_entropy, [data], top_k=4, layers="2", progress=False, memory_budget=64 << 20)
    row = row["2"]
    assert (row.softmax.classes, row.softmax.is_softmax) == (6000, True)
    assert row.softmax.rank == 8
    assert row.prediction is not None and not any("top 100 eigenvalues" in note for note in row.notes)
    assert row.effective_rank_delta.count == 8 or row.effective_rank_delta.participation <= 8


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 5)
        self.reentrant = reentrant

    def forward(self, x):
        x = self.first(x)
        if self.reentrant is None:
            return self.head(torch.tanh(self.body(x)))
        return self.head(checkpoint(lambda v: torch.tanh(self.body(v)), x, use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("method", ["auto", "double_backward_output"])
def test_activation_checkpoints_of_both_kinds(reentrant, method):
    data = [(torch.randn(12, 4), torch.randint(5, (12,)))]
    plain = measure(Checkpointed(None), LOSS, data, top_k=3, progress=False, method=method)
    found = measure(Checkpointed(reentrant), LOSS, data, top_k=3, progress=False, method=method)
    assert list(found) == ["first", "body", "head"]
    for name, row in found.items():
        for key in ("h", "h_kron", "spectrum_A"):
            ours, theirs = (torch.as_tensor(getattr(one.arrays, key)) for one in (row, plain[name]))
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)
