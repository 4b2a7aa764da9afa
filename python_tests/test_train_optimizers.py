"""The training experiment: its rule for the learning rate, its journal, and one short real run."""

import json

import pytest
import torch

from experiments import cifar10, train_optimizers
from experiments.cifar_resnet import CifarResNet
from experiments.train_optimizers import OPTIMIZERS, TUNING_SEED, Journal, summary, train


@pytest.fixture
def journal(tmp_path, monkeypatch):
    monkeypatch.setattr(train_optimizers, "RUNS", tmp_path / "runs.jsonl")
    monkeypatch.setattr(cifar10, "load_cached", lambda cache: ())
    return Journal()


@pytest.mark.parametrize("best", [2**-4, 2**-8, 2**-11])
def test_tuning_walks_uphill_and_does_not_repeat(journal, monkeypatch, best):
    calls = []

    def fake(name, lr, seed, data, prune_below):
        calls.append(lr)
        score = 60 - 5 * abs(torch.tensor(lr / best).log2().item())
        return {"name": name, "lr": lr, "seed": seed, "validation": [30, score], "test": score, "seconds": 1}

    monkeypatch.setattr(train_optimizers, "train", fake)
    assert journal.tune("AdamW") == best
    assert len(calls) == len(set(calls))
    assert Journal().tune("AdamW") == best
    assert len(calls) == len(set(calls))
    table = summary(Journal())["optimizers"]["AdamW"]
    assert table["best_lr"] == best and table["sweep"][best] == 60
    assert json.dumps(table)


def test_a_limit_stops_before_the_next_run(journal, monkeypatch):
    monkeypatch.setattr(
        train_optimizers, "train", lambda name, lr, seed, *_: {"name": name, "lr": lr, "seed": seed, "validation": [1]}
    )
    journal.limit = 1
    journal.run("AdamW", 0.1, 0)
    journal.run("AdamW", 0.1, 0)
    with pytest.raises(train_optimizers.LimitReachedError):
        journal.run("AdamW", 0.2, 0)


def test_the_network_has_seven_convolutions():
    model = CifarResNet(4)
    assert sum(isinstance(module, torch.nn.Conv2d) for module in model.modules()) == 7
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_a_short_real_run(shared, monkeypatch):
    monkeypatch.setattr(train_optimizers, "EPOCHS", 1)
    monkeypatch.setattr(train_optimizers, "WIDTH", 4)
    data = cifar10.load(256, 128, 128)
    assert data[0].x.shape == (256, 3, 32, 32) and set(data[1].y.tolist()) == set(range(10))
    for name in list(OPTIMIZERS)[:4]:
        run = train(name, 2**-7, TUNING_SEED, data)
        assert run["loss"][0] < 3 and run["test"] > 5 and len(run["validation"]) == 1
