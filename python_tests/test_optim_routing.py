"""What goes where: heads found, given or guessed; embeddings; fused weights; slices without gradient; rates by name."""

import copy
import warnings

import pytest
import torch
from torch import nn

from spectral_ext.landscape.synthetic import synthetic_row
from spectral_ext.optim import SpectralNewton, parameter_groups


class Model(nn.Module):
    def __init__(self, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)


def adamws(optimizer):
    """The weights that AdamW takes, by layer."""
    return {
        line.name.removesuffix(".weight")
        for line in optimizer.routing()
        if line.optimizer == "AdamW" and len(line.shape) > 1
    }


HIDDEN = {"fc1": nn.Linear(16, 32), "fc2": nn.Linear(32, 32)}
SURE = {
    "last in a Sequential": (nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 10)), {"2"}),
    "last, named": (Model(**HIDDEN, head=nn.Linear(32, 10)), {"head"}),
    "last, of any name": (Model(**HIDDEN, z=nn.Linear(32, 10)), {"z"}),
    "a classifier of several layers": (
        Model(body=nn.Linear(16, 32), classifier=nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10))),
        {"classifier.2"},
    ),
    "an autoencoder": (nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 16)), {"1"}),
}
GUESSED = {
    "registered first": (Model(head=nn.Linear(32, 10), **HIDDEN), {"head"}),
    "two heads": (
        Model(**HIDDEN, policy_head=nn.Linear(32, 4), value_head=nn.Linear(32, 1)),
        {"policy_head", "value_head"},
    ),
    "a ModuleDict of heads": (
        Model(**HIDDEN, heads=nn.ModuleDict({"a": nn.Linear(32, 4), "b": nn.Linear(32, 5)})),
        {"heads.a", "heads.b"},
    ),
    "a convolution of one": (nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 1)), {"2"}),
    "registered first, of any name": (Model(z=nn.Linear(32, 10), **HIDDEN), {"fc2"}),
    "two heads of any name": (Model(**HIDDEN, y=nn.Linear(32, 4), z=nn.Linear(32, 7)), {"z"}),
    "a norm after it": (Model(**HIDDEN, z=nn.Linear(32, 10), norm=nn.LayerNorm(32)), set()),
}


@pytest.mark.parametrize("case", SURE)
def test_heads_that_are_known(case):
    model, expected = SURE[case]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert adamws(SpectralNewton(model)) == expected


@pytest.mark.parametrize("case", GUESSED)
def test_heads_that_are_a_guess_are_said_to_be_one(case):
    model, expected = GUESSED[case]
    with pytest.warns(UserWarning, match=r"output head.*heads=.*routing\(\)"):
        assert adamws(SpectralNewton(model)) == expected
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert adamws(SpectralNewton(model, heads=())) == set()
        names = [name for name, layer in model.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
        assert adamws(SpectralNewton(model, heads=[names[0]])) == {names[0]}


def test_heads_of_a_name_that_fits_nothing():
    with pytest.raises(KeyError, match=r"heads: no layer matches 'haed'.*'head'"):
        SpectralNewton(SURE["last, named"][0], heads="haed")
    with pytest.raises(ValueError, match="heads= needs the model"):
        SpectralNewton([nn.Parameter(torch.ones(2, 3))], heads="head")


def test_a_layer_named_multihead_is_no_head():
    model = Model(multi_head=nn.Linear(16, 16), attention=nn.MultiheadAttention(16, 2), z=nn.Linear(16, 3))
    assert adamws(SpectralNewton(model)) == {"z"}


def test_the_table():
    model = nn.Sequential(nn.Embedding(9, 16), nn.MultiheadAttention(16, 2), nn.LayerNorm(16), nn.Linear(16, 9))
    model.append(nn.Linear(9, 9).requires_grad_(False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = SpectralNewton(model, 0.1, {"1.in_proj*": 1.5, "*": 2.0}, adamw_lr=0.01, heads="3")
    routing = optimizer.routing()
    line = routing["1.in_proj_weight"]
    assert (line.optimizer, line.reason) == ("Spectral Newton", "MultiheadAttention, 3 fused")
    assert (line.matrices, line.alpha, line.lr) == ("3 by rows", 1.5, 0.1)
    assert (routing["0.weight"].reason, routing["3.weight"].reason) == ("embedding", "output head, given by heads=")
    assert routing["2.weight"].reason == "weight of LayerNorm" and routing["2.weight"].lr == 0.01
    assert routing["4.weight"].optimizer == "left out" and routing["4.weight"].reason == "frozen"
    text = str(routing).splitlines()
    assert len(text) == len(routing) + 1 and text[0].split()[:2] == ["parameter", "shape"]
    assert any(row.startswith("0.weight") and "9×16" in row and "AdamW" in row for row in text)


def test_parameters_without_names_are_warned_of():
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 9))
    with pytest.warns(UserWarning, match=r"without names.*Pass the model.*\"model\": model"):
        SpectralNewton(model.parameters())
    decay = {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1}
    rest = {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0}
    with pytest.warns(UserWarning, match="without names"):
        SpectralNewton([decay, rest])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SpectralNewton(model)
        SpectralNewton(decay["params"])


def test_names_alone_tell_embeddings_and_heads_of_language_models():
    names = ["wte", "transformer.embed_tokens", "patch_embed.proj", "h.0.attn", "lm_head"]
    optimizer = SpectralNewton([(f"{name}.weight", nn.Parameter(torch.ones(4, 4))) for name in names])
    assert adamws(optimizer) == {"wte", "transformer.embed_tokens", "lm_head"}
    optimizer = SpectralNewton([("wte.weight", nn.Parameter(torch.ones(4, 4)))], use_adamw=False)
    assert optimizer.routing()[0].optimizer == "Spectral Newton"


def test_rates_by_name():
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 9))
    optimizer = SpectralNewton(
        model, {"1": 0.3, "*": 0.1}, adamw_lr={"0": 0.01, "3.weight": 0.02, "*.bias": 0.03},
        weight_decay=0.5, adamw_weight_decay={"*.bias": 0.0},
    )  # fmt: skip
    found = {line.name: (line.lr, line.weight_decay) for line in optimizer.routing()}
    assert found["1.weight"] == (0.3, 0.5) and found["2.weight"] == (0.1, 0.5)
    assert found["0.weight"] == (0.01, 0.5) and found["3.weight"] == (0.02, 0.5) and found["1.bias"] == (0.03, 0.0)
    assert all(isinstance(group["lr"], float) for group in optimizer.param_groups)
    kinds = [group["use_adamw"] for group in optimizer.param_groups]
    assert kinds == sorted(kinds)
    for settings in ({"lr": {"x": 0.1, "*": 0.2}}, {"adamw_lr": {"0": 0.1, "y": 0.1}}):
        with pytest.raises(ValueError, match=r"no parameter's or layer's name fits '[xy]'"):
            SpectralNewton(model, **settings)
    with pytest.raises(TypeError, match=r"lr of .* must be a number or a mapping"):
        SpectralNewton(model, lr=[0.1, 0.2])
    loaded = SpectralNewton(copy.deepcopy(model), {"1": 1.0, "*": 2.0}, adamw_lr={"0": 3.0, "3.weight": 4.0, "*": 5.0})
    with pytest.raises(ValueError):
        SpectralNewton(model).load_state_dict(loaded.state_dict())


def test_a_fused_weight_of_transformers_is_cut_by_columns():
    transformers = pytest.importorskip("transformers")
    from transformers.pytorch_utils import Conv1D

    config = transformers.GPT2Config(vocab_size=40, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    routing = SpectralNewton(transformers.GPT2LMHeadModel(config)).routing()
    attention = routing["transformer.h.0.attn.c_attn.weight"]
    assert (attention.shape, attention.matrices, attention.reason) == (
        (8, 24),
        "3 by columns",
        "Conv1D, 3 fused by columns",
    )
    assert routing["transformer.h.0.mlp.c_fc.weight"].matrices == "1"
    assert routing["transformer.wte.weight"].reason == "embedding, tied"
    layer = nn.Module()
    layer.c_attn = Conv1D(24, 8)
    parts = [nn.Parameter(p.detach().clone()) for p in layer.c_attn.weight.split(8, 1)]
    gradient = torch.randn(8, 24)
    layer.c_attn.weight.grad = gradient.clone()
    SpectralNewton(layer, 0.1, heads=()).step()
    for part, g in zip(parts, gradient.split(8, 1)):
        part.grad = g.clone()
        SpectralNewton([part], 0.1).step()
    torch.testing.assert_close(layer.c_attn.weight, torch.cat(parts, 1))


CUT = {
    "query, key, value": ((24, 8), {"split": 3}, lambda t: list(t.split(8))),
    "grouped-query attention": ((12, 8), {"split": (8, 2, 2)}, lambda t: list(t.split((8, 2, 2)))),
    "by columns": ((8, 24), {"split": 3, "split_dim": 1}, lambda t: list(t.split(8, 1))),
    "by unequal columns": ((8, 12), {"split": (8, 4), "split_dim": 1}, lambda t: list(t.split((8, 4), 1))),
    "groups of a convolution": ((8, 3, 3, 3), {"split": 4}, lambda t: list(t.split(2))),
    "experts": ((3, 4, 6), {"batch_dims": 1}, list),
    "fused experts": ((3, 8, 6), {"batch_dims": 1, "split": 2}, lambda t: [q for e in t for q in e.split(4)]),
    "fused experts by columns": (
        (3, 6, 8), {"batch_dims": 1, "split": 2, "split_dim": 1}, lambda t: [q for e in t for q in e.split(4, 1)]
    ),
}  # fmt: skip


@pytest.mark.parametrize("dead", [0, 1, -1])
@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("case", CUT)
def test_a_part_without_gradient_does_not_move(case, dead, capturable):
    shape, layout, cut = CUT[case]
    weight = nn.Parameter(torch.zeros(shape))
    settings = {"capturable": capturable, "nonfinite": "skip"}
    optimizer = SpectralNewton([weight], 1.0, weight_decay=0.0, **layout, **settings)
    weight.grad = torch.randn(shape)
    optimizer.step()
    before = weight.detach().clone()
    weight.grad = torch.randn(shape)
    cut(weight.grad)[dead].zero_()
    optimizer.step()
    moved = [bool(piece.any()) for piece in cut(weight.detach() - before)]
    assert moved == [i != dead % len(moved) for i in range(len(moved))]


def test_new_exponents_with_hysteresis_are_saved(caplog):
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3))
    optimizer = SpectralNewton(model, alpha={"0": 1.0, "*": 2.0})
    rows = {"0": 1.2, "1": synthetic_row("1", alpha=1.5, noise=0.01), "2": float("nan"), "3": 4.0}
    with caplog.at_level("INFO", logger="spectral_ext.optim"):
        changes = optimizer.set_exponents(rows, hysteresis=0.25)
    assert list(changes) == ["1.weight"] and changes["1.weight"] == (2.0, pytest.approx(1.5, abs=0.05))
    assert optimizer.param_groups[0]["alpha"] == [1.0, changes["1.weight"][1], 2.0] and "1.weight" in caplog.text
    assert optimizer.set_exponents(rows, hysteresis=0.25) == {}
    assert optimizer.set_exponents({"0": 1.2}, hysteresis=0.0) == {"0.weight": (1.0, 1.2)}
    again = SpectralNewton(copy.deepcopy(model))
    again.load_state_dict(optimizer.state_dict())
    assert again.param_groups[0]["alpha"] == optimizer.param_groups[0]["alpha"]
    before = list(optimizer.param_groups[0]["alpha"])
    for bad, message in (({"0": 3.0, "1": 7.0}, "alpha for '1.weight'"), ({"0": 3.0, "x": 1.0}, "names 'x'")):
        with pytest.raises(ValueError, match=message):
            optimizer.set_exponents(bad)
        assert optimizer.param_groups[0]["alpha"] == before
    with pytest.raises(ValueError, match="hysteresis"):
        optimizer.set_exponents({"0": 3.0}, hysteresis=-1)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()


def test_groups_from_parameter_groups_keep_layouts_and_reasons_of_the_model():
    model = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Flatten(), nn.Linear(8, 3))
    optimizer = SpectralNewton(parameter_groups(model))
    assert optimizer.routing()["0.weight"].matrices == "2 by rows" and adamws(optimizer) == {"2"}
