"""Whether the loss is a mean over samples, the same twice, finite; the same answer for measure and its curvature."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from spectral_ext import directional_curvature, measure
from spectral_ext.measurement.batches import as_batches
from spectral_ext.measurement.checks import check_reduction, check_task
from spectral_ext.measurement.digest import digest, state_digest

CE = nn.CrossEntropyLoss()


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.body, self.head = nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 11)

    def forward(self, ids):
        return self.head(torch.tanh(self.body(self.embed(ids))))


def token_mean(output, target):
    return F.cross_entropy(output.flatten(0, 1), target.flatten(), ignore_index=-100)


def sample_mean(output, target):
    """The mean over samples of each sample's token mean."""
    losses = F.cross_entropy(output.mT, target, ignore_index=-100, reduction="none")
    return (losses.sum(1) / (target != -100).sum(1)).mean()


def tokens(samples=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(11, (samples, 10), generator=generator)
    return ids, ids.roll(-1, 1).clone()


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def vectors(samples=16):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(samples, 6, generator=generator), torch.randint(3, (samples,), generator=generator)


def masked(short=slice(0, 4)):
    ids, labels = tokens()
    labels[short, 2:] = -100
    return [(ids[:4], labels[:4]), (ids[4:], labels[4:])]


@pytest.mark.parametrize(
    ("model", "loss", "data", "expected"),
    [
        (Tokens(), token_mean, [tokens(), tokens(6, 1)], "mean"),
        (Tokens(), token_mean, masked(), "unknown"),
        (Tokens(), sample_mean, masked(), "mean"),
        (mlp(), CE, [vectors(), vectors(5)], "mean"),
        (mlp(), nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 9.0])), [vectors()], "unknown"),
        (mlp(), CE, [vectors(1)], "unchecked"),
        (mlp(), CE, [vectors(1), vectors(1)], "mean"),
        (mlp(), lambda o, t: F.cross_entropy(o @ o.mT, torch.arange(len(o))), [vectors()], "unknown"),
    ],
)
def test_reduction(model, loss, data, expected):
    modes = [module.training for module in model.modules()]
    assert check_reduction(model, loss, as_batches(data, model)) == expected
    assert [module.training for module in model.modules()] == modes


def test_a_token_mean_in_any_later_batch_is_seen():
    ids, labels = tokens(20)
    labels[16:, 1:] = -100
    data = [(ids[i : i + 4], labels[i : i + 4]) for i in range(0, 20, 4)]
    assert check_reduction(Tokens(), token_mean, as_batches(data)) == "unknown"
    assert check_reduction(Tokens(), token_mean, as_batches(data[:4])) == "mean"


@pytest.mark.parametrize("call", [measure, directional_curvature])
@pytest.mark.parametrize("cut", [[16], [8, 8], [15, 1], [1, 1]])
def test_a_sum_is_refused_alike(call, cut):
    x, y = vectors()
    data, start = [], 0
    for samples in cut:
        data.append((x[start : start + samples], y[start : start + samples]))
        start += samples
    with pytest.raises(ValueError, match=r"is a sum over samples.*reduction='mean'"):
        call(mlp(), lambda o, t: F.cross_entropy(o, t, reduction="sum"), data, top_k=2, progress=False)


def test_a_mean_over_something_else_is_noted_and_warned_of():
    found = measure(Tokens(), token_mean, masked(), top_k=2, progress=False)
    assert "depend on how the data are cut" in found.meta["notes"][0]
    with pytest.warns(UserWarning, match="depend on how the data are cut"):
        directional_curvature(Tokens(), token_mean, masked(), top_k=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        directional_curvature(Tokens(), sample_mean, masked(), top_k=2)
        (ids, labels), (more_ids, more_labels) = masked()
        whole = [(torch.cat([ids, more_ids]), torch.cat([labels, more_labels]))]
        directional_curvature(Tokens(), token_mean, whole, top_k=2)  # h of one batch is h of its loss


def test_the_check_costs_few_forward_passes():
    passes = []

    def counting(output, target):
        passes.append(len(target))
        return CE(output, target)

    check_task(mlp(), counting, as_batches([vectors(400)] * 5))
    assert passes.count(400) == 2 and len(passes) < 20 and sum(passes) < 1200


def test_digests():
    x = torch.arange(6.0)
    assert digest({"a": x}) == digest({"a": x.clone()}) != digest({"b": x}) != digest({"a": x.double()})
    assert digest([x, x]) != digest([[x], x]) and digest(x) != digest(x.reshape(2, 3))
    model = mlp()
    before = state_digest(model)
    assert state_digest(mlp()) == before != state_digest(mlp().eval())
    with torch.no_grad():
        model[0].weight[0, 0] += 1e-6
    assert state_digest(model) != before
