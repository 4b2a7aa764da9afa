"""Which layers are measured, which are not, and why."""

import pytest
import torch
from torch import nn

from spectral_ext.layers import find_layers, why_no_layer


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.head(self.body(self.embedding(x))) * self.scale


def test_every_parameter_owner_is_chosen_or_has_a_reason():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=4),
        nn.Conv2d(8, 8, 3, padding_mode="circular"),
        nn.Flatten(), nn.Linear(8, 2), nn.Linear(2, 2),
    )  # fmt: skip
    model[6].weight.requires_grad_(False)
    chosen, skipped = find_layers(model)
    assert list(chosen) == ["0", "5"]
    assert set(skipped) == {"1", "2", "3", "6"}
    assert "groups=4" in skipped["2"]
    assert "circular" in skipped["3"]
    assert "gradient" in skipped["6"]
    assert chosen["0"].matrix_shape == (8, 27)
    assert chosen["0"].is_convolution and not chosen["5"].is_convolution


def test_tied_weights_are_named():
    chosen, skipped = find_layers(Tied())
    assert list(chosen) == ["body"]
    assert "embedding" in skipped["head"]
    assert "" in skipped


def test_module_used_under_two_names():
    shared = nn.Linear(3, 3)
    chosen, skipped = find_layers(nn.Sequential(shared, nn.ReLU(), shared))
    assert not chosen
    assert "shared" in skipped["0"]


def test_patterns():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    chosen, skipped = find_layers(model, "1.*")
    assert list(chosen) == ["1.0", "1.1"]
    assert skipped == {"0": "not asked for"}
    with pytest.raises(KeyError, match="nowhere"):
        find_layers(model, ["0", "nowhere*"])


def test_what_is_said_where_nothing_is_left():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    assert "BatchNorm1d has no weight matrix" in why_no_layer(find_layers(model, "0")[1])
    assert "not asked for" not in why_no_layer(find_layers(model, "0")[1])
    assert "no parameters" in why_no_layer(find_layers(nn.ReLU())[1])
    with pytest.raises(TypeError, match=r"nn\.Module, not str"):
        find_layers("model")
