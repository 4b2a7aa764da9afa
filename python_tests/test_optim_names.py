"""Patterns and landscapes name what is there: a name that fits nothing is an error that says what is near."""

import copy

import pytest
import torch
from torch import nn

from spectral_ext.landscape import Landscape
from spectral_ext.landscape.synthetic import synthetic_row
from spectral_ext.optim import ScalarSpectralAdam, SpectralNewton, parameter_groups
from spectral_ext.optim.names import aliases, known_as
from spectral_ext.spectra.regression import Fit


class Attention(nn.Module):
    def __init__(self, d=6):
        super().__init__()
        self.qkv, self.proj = nn.Linear(d, 3 * d), nn.Linear(d, d)


class GPT(nn.Module):
    """Tied embeddings, fused query, key and value, a frozen layer."""

    def __init__(self, d=6):
        super().__init__()
        self.wte = nn.Embedding(11, d)
        self.frozen = nn.Linear(d, d).requires_grad_(False)
        self.blocks = nn.ModuleList(nn.ModuleDict({"attn": Attention(d), "norm": nn.LayerNorm(d)}) for _ in range(2))
        self.lm_head = nn.Linear(d, 11, bias=False)
        self.lm_head.weight = self.wte.weight


class Wrapped(nn.Module):
    """As DistributedDataParallel names a model."""

    def __init__(self, model):
        super().__init__()
        self.module = model


def settings_of(optimizer, key):
    group = optimizer.param_groups[0]
    values = group[key] if isinstance(group[key], list) else [group[key]] * len(group["params"])
    return dict(zip((known_as(name)[-1] for name in group["param_names"]), values))


ROWS = {f"blocks.{i}.attn.{name}": 1.0 + i / 2 for i in range(2) for name in ("qkv", "proj")}


@pytest.mark.parametrize("key", ["alpha", "damping", "damping_mode", "batch_dims", "split", "split_dim"])
@pytest.mark.parametrize("route", ["model", "names", "group"])
def test_a_pattern_that_fits_nothing_names_its_neighbours(key, route):
    model = GPT()
    value = {"alpha": 2.0, "damping": 0.1, "damping_mode": "rms"}.get(key, 0 if key != "split" else 1)
    setting = {key: {"*.atn.qkv": value, "*": value}}
    names = list(model.named_parameters())
    params = {"model": model, "names": names, "group": [{"params": names, **setting}]}[route]
    with pytest.raises(ValueError, match=rf"{key}.*'\*\.atn\.qkv'.*near.*'blocks\.0\.attn\.qkv\.weight'"):
        SpectralNewton(params, **({} if route == "group" else setting))


def test_what_a_pattern_may_name():
    model = GPT()
    names = ["frozen", "lm_head", "wte.weight", "*.norm", "blocks.1.*", "*"]
    assert settings_of(SpectralNewton(model, alpha=dict.fromkeys(names, 1.5)), "alpha")["blocks.0.attn.qkv"] == 1.5
    assert SpectralNewton([nn.Parameter(torch.ones(2, 3))], alpha={"*": 1.5}).param_groups[0]["alpha"] == 1.5
    SpectralNewton([("bias", nn.Parameter(torch.ones(3)))], alpha={"*": 1.5})
    groups = parameter_groups(model, adamw="lm_head")
    assert groups[1]["params"][0][0] == "wte.weight"


def test_a_pattern_after_the_catch_all_is_refused():
    with pytest.raises(ValueError, match=r"'\*' fits every name, so '\*\.qkv' never applies"):
        SpectralNewton(GPT(), alpha={"*": 2.0, "*.qkv": 1.0})


def test_patterns_need_names():
    with pytest.raises(ValueError, match=r"'parameter 0 of group 0, shape \(2, 3\)' has none.*named_parameters"):
        SpectralNewton([nn.Parameter(torch.ones(2, 3))], split={"qkv": 2})


def test_a_groups_patterns_are_judged_by_the_group():
    model = GPT()
    optimizer = SpectralNewton(list(model.blocks[0].named_parameters()), alpha={"attn.qkv": 1.0, "*": 2.0})
    optimizer.add_param_group({"params": [("late.weight", model.frozen.weight)], "damping": {"late": 0.3}})
    assert (optimizer.param_groups[-1]["alpha"], optimizer.param_groups[-1]["damping"]) == (2.0, 0.3)
    with pytest.raises(ValueError, match=r"damping.*'late'"):
        optimizer.add_param_group({"params": [("more.weight", nn.Parameter(torch.ones(2, 3)))], "damping": {"late": 1}})


def test_aliases():
    assert aliases("module._orig_mod.a.weight") == ("module._orig_mod.a.weight", "module.a.weight", "a.weight")
    assert aliases("_orig_mod.module.a") == ("_orig_mod.module.a", "module.a", "a")
    assert known_as("module.module.weight")[-2:] == ("module", "")


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("wrap", [None, "compile", "ddp", "compile in ddp", "ddp in compile"])
def test_wrappers_do_not_count_on_either_side(prefix, wrap):
    model = GPT()
    for step in reversed((wrap or "").split(" in ")):
        model = {"compile": torch.compile, "ddp": Wrapped, "": lambda m: m}[step](model)
    rows = {prefix + name: value for name, value in ROWS.items()} | {prefix + "lm_head": 1.3, prefix + "frozen": 2.0}
    attention = [(name, p) for name, p in model.named_parameters() if "attn" in name]
    for optimizer in (
        SpectralNewton.from_landscape(model, rows),
        SpectralNewton(attention, alpha="landscape", landscape=rows),
    ):
        assert settings_of(optimizer, "alpha") == ROWS
    del rows[prefix + "lm_head"]
    mean = sum(ROWS.values()) / 4
    for group in ScalarSpectralAdam(model, rows, 1.0).param_groups:
        layer = aliases(group["layer"])[-1]
        assert group["lr"] == pytest.approx(ROWS[layer] / mean if layer in ROWS else 1.0)


@pytest.mark.parametrize("stranger", ["blocks.2.attn.qkv", "blocks.0.atn.qkv", "transformer.blocks.0.attn.qkv"])
def test_a_row_of_another_model_is_an_error(stranger):
    rows = ROWS | {stranger: 1.0}
    message = rf"'{stranger}'.*near names: .*'blocks\.[01]\.attn\.qkv"
    with pytest.raises(ValueError, match=f"the landscape names {message}"):
        SpectralNewton.from_landscape(GPT(), rows)
    with pytest.raises(ValueError, match=f"the landscape names {message}"):
        SpectralNewton(GPT(), alpha="landscape", landscape=rows, default_alpha=2.0)
    with pytest.raises(ValueError, match=f"s names {message}"):
        ScalarSpectralAdam(GPT(), rows)


def test_rows_of_layers_that_are_no_matrices_or_frozen_are_fine():
    rows = ROWS | {"wte": 1.0, "lm_head": 1.0, "frozen": 1.0, "blocks.0.norm": 1.0}
    assert settings_of(SpectralNewton.from_landscape(GPT(), rows), "alpha") == ROWS


def test_a_landscape_of_which_nothing_is_used():
    names = list(GPT().blocks[0].named_parameters())
    rows = {"attn.qkv": 1.0, "elsewhere": 2.0}
    optimizer = SpectralNewton(names, alpha="landscape", landscape=rows, default_alpha=1.5)
    assert settings_of(optimizer, "alpha") == {"attn.qkv": 1.0, "attn.proj": 1.5}
    with pytest.raises(ValueError, match="no layer of these parameters"):
        SpectralNewton(names, alpha="landscape", landscape={"elsewhere": 2.0}, default_alpha=1.5)


def test_a_mixed_group_takes_its_matrices_alphas():
    """Vectors between the matrices: each α belongs to its own layer."""
    names = [(name, p) for name, p in GPT().named_parameters() if "blocks" in name]
    assert settings_of(SpectralNewton(names, alpha="landscape", landscape=ROWS), "alpha") == ROWS


def test_a_layer_that_could_not_be_measured_says_why_or_takes_the_default():
    rows = {name: synthetic_row(name, alpha=value, noise=0.01) for name, value in ROWS.items()}
    skipped = {"blocks.1.attn.qkv": "its weight is computed"}
    del rows["blocks.1.attn.qkv"]
    with pytest.raises(KeyError, match=r"'blocks\.1\.attn\.qkv\.weight' \(its weight is computed\).*default_alpha"):
        SpectralNewton.from_landscape(GPT(), Landscape(rows, skipped))
    empty = copy.deepcopy(rows["blocks.0.attn.proj"])
    empty.recommendation, empty.empty_reason = None, "its gradient is zero"
    empty.alpha = Fit.empty(empty.empty_reason)
    rows["blocks.0.attn.proj"] = empty
    alphas = settings_of(SpectralNewton.from_landscape(GPT(), Landscape(rows, skipped), default_alpha=2.5), "alpha")
    assert alphas["blocks.0.attn.proj"] == alphas["blocks.1.attn.qkv"] == 2.5 != alphas["blocks.0.attn.qkv"]
    with pytest.raises(ValueError, match=r"blocks\.0\.attn\.proj.*its gradient is zero.*default_alpha"):
        SpectralNewton.from_landscape(GPT(), rows | {"blocks.1.attn.qkv": 2.0})


def test_what_is_no_landscape():
    for landscape in ("runs/1", ["blocks"], 2.0):
        with pytest.raises(TypeError, match=r"mapping from layer name.*Landscape\.load"):
            SpectralNewton.from_landscape(GPT(), landscape)
        with pytest.raises(TypeError, match=r"mapping from layer name.*Landscape\.load"):
            SpectralNewton.from_landscape(GPT(), landscape, measured=True)
    for row in (None, "two"):
        with pytest.raises(TypeError, match=r"value for 'blocks\.0\.attn\.qkv' must be a number"):
            SpectralNewton.from_landscape(GPT(), ROWS | {"blocks.0.attn.qkv": row})
        with pytest.raises(TypeError, match=r"value for 'blocks\.0\.attn\.qkv' must be a number"):
            ScalarSpectralAdam(GPT(), ROWS | {"blocks.0.attn.qkv": row})
    rows = {name: torch.tensor(value) for name, value in ROWS.items()}
    assert settings_of(SpectralNewton.from_landscape(GPT(), rows), "alpha") == ROWS


def test_a_tied_matrix_has_one_name():
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "head": nn.Linear(3, 2)})
    model["b"].weight = model["a"].weight
    with pytest.raises(ValueError, match=r"fits 'b\.weight'; near names: .*'a\.weight'"):
        SpectralNewton(model, alpha={"b.weight": 1.0, "*": 2.0})
    assert settings_of(SpectralNewton(model, alpha={"a.weight": 1.0, "*": 2.0}), "alpha") == {"a": 1.0}


def test_copies_have_no_landscape():
    optimizer = copy.deepcopy(SpectralNewton.from_landscape(GPT(), ROWS))
    group = {"params": [("new.weight", nn.Parameter(torch.ones(2, 3)))]}
    with pytest.raises(ValueError, match=r"alpha of 'new\.weight'.*copies of an optimizer have none"):
        optimizer.add_param_group(dict(group))
    optimizer.add_param_group({**group, "alpha": 1.5})
    assert optimizer.param_groups[-1]["alpha"] == 1.5
