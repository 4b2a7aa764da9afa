"""Which layers are measured, which are not, and why."""

import pytest
import torch
from torch import nn

from spectral_ext.layers import find_layers, layer_of, why_no_layer
from spectral_ext.measurement.singular_directions import singular_directions


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
    assert list(chosen) == ["0", "2", "3", "5"]
    assert set(skipped) == {"1", "6"}
    assert chosen["2"].block_shape == (4, 2, 18) and chosen["2"].matrix_shape == (8, 72)
    assert "padding_mode" in chosen["3"].no_factors and "group" in chosen["2"].no_factors
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
    assert list(chosen) == ["0"] and not skipped
    a, b = nn.Linear(3, 3), nn.Linear(3, 3)
    b.weight = a.weight
    chosen, skipped = find_layers(nn.Sequential(a, b))
    assert list(chosen) == ["0"] and "shared with 0" in skipped["1"]
    assert list(find_layers(nn.Sequential(a, b), "1")[0]) == ["1"]


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
    assert type(layer_of("a", nn.Conv2d(4, 4, 3, groups=4))).__name__ == "GroupedConvolutionLayer"
    assert type(layer_of("a", nn.ConvTranspose1d(4, 2, 3))).__name__ == "TransposedConvolutionLayer"
    assert type(layer_of("a", nn.Embedding(3, 3))).__name__ == "TableLayer"
    assert type(layer_of("a", Table())).__name__ == "BareLayer"
    assert all(layer_of("a", module) is None for module in (nn.LayerNorm(3), nn.ReLU()))


def test_what_is_measured_on_request():
    model = nn.ModuleDict({"table": nn.Embedding(7, 4), "attention": nn.MultiheadAttention(4, 2)})
    chosen, skipped = find_layers(model)
    assert list(chosen) == ["attention.in_proj_weight", "attention.out_proj"]
    assert "embedding" in skipped["table"] and "name it" in skipped["table"]
    assert list(find_layers(model, "table")[0]) == list(find_layers(model, "tab*")[0]) == ["table"]
    assert list(find_layers(model, "*")[0]) == list(chosen)
    parts = find_layers(model, "attention.in_proj_weight.*")[0]
    assert list(parts) == [f"attention.in_proj_weight.{part}" for part in "qkv"]
    weight = model["attention"].in_proj_weight
    for part, expected in zip(parts.values(), weight.chunk(3), strict=True):
        assert torch.equal(part.matrix(weight), expected)
    assert list(find_layers(Tied(), "head")[0]) == ["head"]
    assert "embedding" in find_layers(Tied())[1]["head"]


@pytest.mark.parametrize(
    ("module", "own"),
    [
        (nn.Linear(4, 5), "weight"),
        (nn.Conv2d(4, 6, 3, groups=2), "weight"),
        (nn.Conv1d(4, 4, 3, groups=4), "weight"),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), "weight"),
        (nn.MultiheadAttention(4, 2), "in_proj_weight"),
        (nn.ParameterDict({"experts": nn.Parameter(torch.zeros(3, 4, 5))}), "experts"),
        (nn.ParameterDict({"table": nn.Parameter(torch.zeros(1, 4, 5))}), "table"),
    ],
)
def test_matrices_and_their_inverse(module, own):
    layer = layer_of("layer", module, own)
    tensor = torch.randn(layer.weight.shape)
    blocks, m, n = layer.block_shape
    assert layer.matrices(tensor).shape == (blocks, m, n)
    assert torch.equal(layer.tensor(layer.matrices(tensor).unsqueeze(0))[0], tensor)
    found = singular_directions(layer.matrices(tensor), 3)
    torch.testing.assert_close(
        found.sigma_all, torch.linalg.svdvals(layer.matrix(tensor).double())[: blocks * min(m, n)]
    )
    along = torch.stack([(direction * tensor).sum() for direction in layer.tangents(found.U.float(), found.V.float())])
    torch.testing.assert_close(along, found.sigma.float())
    assert layer.matrix(tensor).shape == layer.matrix_shape


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
    assert list(chosen) == ["0", "0.A", "0.B", "1"] and not skipped
    assert chosen["0.A"].matrix_shape == (2, 4) and not chosen["0.A"].has_output


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
    assert list(chosen) == ["1.parametrizations.weight.original", "2.parametrizations.weight.original1"]
    assert Counting.calls == before
    assert "no entries, shape (0, 4)" in skipped["0"]
    assert "remove_parametrizations" in skipped["1"] and "remove_parametrizations" in skipped["2"]


def test_names_without_wrappers():
    model = nn.Sequential(nn.Linear(2, 2), torch.compile(nn.Sequential(nn.Linear(2, 2)), backend="eager"))
    assert list(find_layers(model)[0]) == ["0", "1.0"]
    assert list(find_layers(model, "1.*")[0]) == ["1.0"]
