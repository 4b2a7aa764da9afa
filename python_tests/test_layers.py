"""Which layers are measured, which are not, and why."""

import pytest
import torch
from torch import nn

from spectral_ext.layers import find_layers, layer_of, why_no_layer


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


def test_kinds():
    class SquareLinear(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.eye(3))

    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.eye(3))

    assert type(layer_of("a", SquareLinear())).__name__ == "LinearLayer"
    assert type(layer_of("a", nn.Conv2d(2, 3, 3))).__name__ == "ConvolutionLayer"
    assert all(layer_of("a", module) is None for module in (Table(), nn.Embedding(3, 3), nn.LayerNorm(3), nn.ReLU()))


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Linear(4, 5), (3, 7, 4)),
        (nn.Linear(4, 5), (3, 4)),
        (nn.Conv1d(4, 5, 3, padding="same", dilation=2), (3, 4, 9)),
        (nn.Conv2d(4, 5, (3, 2), stride=2, padding=1), (3, 4, 8, 7)),
        (nn.Conv3d(2, 3, 2), (2, 2, 3, 4, 5)),
    ],
)
def test_a_kind_knows_its_rows_and_its_gradient(module, shape):
    module, x = module.double(), torch.randn(shape, dtype=torch.float64)
    layer = layer_of("layer", module)
    z = module(x)
    d = torch.randn_like(z)
    (gradient,) = torch.autograd.grad(z, module.weight, d)
    torch.testing.assert_close(layer.weight_gradient(x, d), gradient.flatten(1))
    assert layer.rows(d) * layer.matrix_shape[0] == d.numel()
    assert layer.rows_without_error(d) == 0
    flat = d.flatten(0, -2) if isinstance(module, nn.Linear) else d.flatten(2)[0].mT
    flat[:2] = 0
    assert layer.rows_without_error(d) == 2
    assert layer.geometry["bias"] is False


def test_what_stands_beside_a_weight_is_named():
    class Lora(nn.Linear):
        def __init__(self):
            super().__init__(4, 4)
            self.A, self.B = nn.Parameter(torch.ones(2, 4)), nn.Parameter(torch.ones(4, 2))

    chosen, skipped = find_layers(nn.Sequential(Lora(), nn.Linear(4, 2)))
    assert list(chosen) == ["0", "1"] and set(skipped) == {"0.A", "0.B"}
    assert "beside the weight" in skipped["0.A"]


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_layers_of_size_zero_and_computed_weights():
    class Counting(nn.Module):
        calls = 0

        def forward(self, weight):
            Counting.calls += 1
            return weight * 2

    model = nn.Sequential(
        nn.Linear(4, 0), nn.Linear(4, 4, bias=False), nn.utils.parametrizations.weight_norm(nn.Linear(4, 2))
    )
    nn.utils.parametrize.register_parametrization(model[1], "weight", Counting())
    before = Counting.calls
    chosen, skipped = find_layers(model)
    assert not chosen and Counting.calls == before
    assert "no entries, shape (0, 4)" in skipped["0"]
    assert "remove_parametrizations" in skipped["1"] and "remove_parametrizations" in skipped["2"]


def test_names_without_wrappers():
    model = nn.Sequential(nn.Linear(2, 2), torch.compile(nn.Sequential(nn.Linear(2, 2)), backend="eager"))
    assert list(find_layers(model)[0]) == ["0", "1.0"]
    assert list(find_layers(model, "1.*")[0]) == ["1.0"]
