"""Layouts and the sorting of parameters: views, fused weights, groups of convolutions, and what goes to AdamW."""

import pytest
import torch
from torch import nn

from spectral_ext.optim import SpectralNewton, parameter_groups
from spectral_ext.optim.layout import Layout

SHAPES = [
    ((6, 4), Layout()),
    ((6, 4, 3, 3), Layout()),
    ((5, 6, 4), Layout(batch_dims=1)),
    ((2, 5, 6, 4, 3), Layout(batch_dims=2)),
    ((6, 4), Layout(split=3)),
    ((6, 4), Layout(split=(1, 2, 3))),
    ((6, 4), Layout(split=2, split_dim=1)),
    ((6, 4), Layout(split=(1, 3), split_dim=1)),
    ((6, 4, 3, 3), Layout(split=2)),
    ((5, 6, 4), Layout(batch_dims=1, split=3)),
    ((5, 6, 2, 2), Layout(batch_dims=1, split=2, split_dim=1)),
]


@pytest.mark.parametrize("shape, layout", SHAPES)
@pytest.mark.parametrize("order", ["contiguous", "reversed"])
def test_matrices_and_back(shape, layout, order):
    t = torch.arange(torch.Size(shape).numel(), dtype=torch.float64).reshape(shape)
    if order == "reversed":
        dims = list(range(t.dim()))[::-1]
        t = t.permute(dims).contiguous().permute(dims)
    matrices = layout.matrices(t)
    assert sum(m.numel() for m in matrices) == t.numel()
    assert torch.equal(layout.tensor(matrices, t), t)


def test_a_channels_last_weight_is_read_without_a_copy():
    t = torch.randn(8, 4, 3, 3).contiguous(memory_format=torch.channels_last)
    (matrix,) = Layout().matrices(t)
    assert matrix.shape == (8, 36) and matrix.data_ptr() == t.data_ptr()


def test_equal_parts_are_a_batch_and_unequal_parts_are_slices():
    t = torch.randn(6, 4)
    (batch,) = Layout(split=3).matrices(t)
    assert torch.equal(batch, t.view(3, 2, 4))
    first, second = Layout(split=(2, 4)).matrices(t)
    assert torch.equal(first, t[:2]) and torch.equal(second, t[2:])
    (columns,) = Layout(split=2, split_dim=1).matrices(t)
    assert torch.equal(columns, torch.stack([t[:, :2], t[:, 2:]]))


@pytest.mark.parametrize(
    "shape, layout, message",
    [
        ((6,), Layout(), "is no matrix"),
        ((6, 4), Layout(batch_dims=1), "is no matrix"),
        ((6, 4), Layout(split=4), "does not divide 6"),
        ((6, 4), Layout(split=(2, 3)), "add up to 6"),
        ((6, 4), Layout(split_dim=2), "split_dim"),
        ((6, 2, 2), Layout(split=(1, 3), split_dim=1), "2-D"),
    ],
)
def test_a_layout_that_does_not_fit_names_the_parameter(shape, layout, message):
    with pytest.raises(ValueError, match=f"conv.weight.*{message}"):
        layout.check("conv.weight", torch.Size(shape))


class Zoo(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.conv = nn.Conv2d(3, 8, 3)
        self.grouped = nn.Conv2d(8, 8, 3, groups=2)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.norm = nn.BatchNorm2d(8)
        self.attention = nn.MultiheadAttention(8, 2, add_bias_kv=True)
        self.lstm = nn.LSTM(8, 4)
        self.linear = nn.Linear(8, 8)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.bare = nn.Parameter(torch.zeros(3, 8))
        self.experts_up = nn.Parameter(torch.zeros(3, 16, 8))
        self.experts_up_bias = nn.Parameter(torch.zeros(3, 16))
        self.A_log = nn.Parameter(torch.zeros(8, 4))
        self.magnitude = nn.Parameter(torch.ones(8, 1))
        self.temperature = nn.Parameter(torch.ones(()))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.pos_embed = nn.Parameter(torch.zeros(5, 8))
        self.layer_scale = nn.Parameter(torch.zeros(1, 8, 1, 1))
        self.head = nn.Linear(8, 11, bias=False)


def names(group):
    return [name for name, _ in group["params"]]


def test_sorting_by_module_type():
    matrices, rest = parameter_groups(Zoo())
    split = dict(zip(names(matrices), matrices["split"]))
    assert split == {
        "bare": 1,
        "experts_up": 1,
        "conv.weight": 1,
        "grouped.weight": 2,
        "attention.in_proj_weight": 3,
        "attention.out_proj.weight": 1,
        "lstm.weight_ih_l0": 4,
        "lstm.weight_hh_l0": 4,
        "linear.weight": 1,
    }
    batch_dims = dict(zip(names(matrices), matrices["batch_dims"]))
    assert [name for name, count in batch_dims.items() if count] == ["experts_up"]
    assert {"experts_up_bias", "A_log", "magnitude", "attention.bias_k", "layer_scale", "cls_token"} <= set(names(rest))
    assert {"embedding.weight", "depthwise.weight", "norm.weight", "linear.bias", "head.weight"} <= set(names(rest))
    assert not any("frozen" in name for name in names(matrices) + names(rest))


def test_a_tied_head_goes_to_adamw_and_patterns_override():
    model = Zoo()
    model.head.weight = model.embedding.weight
    matrices, rest = parameter_groups(model, matrices="embedding", adamw=["attention.*"], heads=())
    assert "embedding.weight" in names(matrices) and "attention.in_proj_weight" in names(rest)
    matrices, rest = parameter_groups(model)
    assert "embedding.weight" in names(rest)
    assert "linear.weight" in names(matrices)
    with pytest.raises(KeyError, match="atention"):
        parameter_groups(model, adamw="atention.*")


@pytest.mark.parametrize("of_model", [True, False])
def test_patterns_go_before_what_was_found_and_leave_the_rest(of_model):
    settings = {"split": {"linear": 2, "attention": (8, 16)}, "batch_dims": {"experts_up": 0}}
    model = Zoo()
    optimizer = SpectralNewton(model if of_model else parameter_groups(model), **settings)
    group = optimizer.param_groups[0]
    split = dict(zip(group["param_names"], group["split"]))
    assert split["linear.weight"] == 2 and split["attention.in_proj_weight"] == (8, 16)
    assert split["grouped.weight"] == 2 and split["lstm.weight_hh_l0"] == 4 and split["conv.weight"] == 1
    assert group["batch_dims"] == 0


def test_experts_take_steps_of_their_own():
    model = Zoo()
    optimizer = SpectralNewton(model, 0.1, weight_decay=0.0)
    gradient = torch.randn(3, 16, 8)
    model.experts_up.grad = gradient.clone()
    optimizer.step()
    alone = nn.Parameter(torch.zeros(16, 8))
    alone.grad = gradient[1].clone()
    SpectralNewton([alone], 0.1, weight_decay=0.0).step()
    torch.testing.assert_close(model.experts_up[1], alone)


def test_the_only_matrix_is_not_taken_for_a_head():
    matrices, rest = parameter_groups(nn.Linear(3, 2))
    assert names(matrices) == ["weight"] and names(rest) == ["bias"]
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        parameter_groups(nn.ReLU())
