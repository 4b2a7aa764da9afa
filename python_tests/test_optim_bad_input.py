"""Every bad setting or gradient is an error that names the parameter."""

import math

import pytest
import torch
from torch import nn

from spectral_ext.optim import ScalarSpectralAdam, SpectralNewton


def named(*shape):
    return [("layer.weight", nn.Parameter(torch.ones(*(shape or (3, 4)))))]


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": -1.0},
        {"lr": math.nan},
        {"lr": torch.ones(2)},
        {"alpha": 0.0},
        {"alpha": -1.0},
        {"alpha": math.nan},
        {"alpha": 7.0},
        {"alpha": {"layer": 0.0}},
        {"damping": 0.0},
        {"damping": -0.1},
        {"damping": math.nan},
        {"damping": math.inf},
        {"damping_mode": "relative"},
        {"momentum": 1.0},
        {"momentum": -0.1},
        {"momentum_mode": "heavy"},
        {"weight_decay": -0.1},
        {"update_scale": "muon"},
        {"solver": "magic"},
        {"tolerance": 0.0},
        {"tolerance": 1.0},
        {"split": 2},
        {"batch_dims": 3, "use_adamw": False},
        {"alpha": [1.0, 2.0]},
        {"alpha": {"other*": 2.0}},
        {"alpha": "2.0"},
        {"damping": {"layer": -1.0}},
        {"damping_mode": {"layer": "relative"}},
        {"weight_decay": math.inf},
        {"adamw_betas": 0.9},
    ],
    ids=str,
)
def test_settings_out_of_range(settings):
    with pytest.raises(ValueError, match=r"layer\.weight"):
        SpectralNewton(named(*((3,) if "adamw_betas" in settings else ())), **settings)


@pytest.mark.parametrize("key", ["lr", "alpha", "damping", "momentum", "weight_decay", "tolerance"])
@pytest.mark.parametrize("value", ["much", "0.1", [[1.0]], object()], ids=["text", "digits", "list", "object"])
def test_what_is_no_number(key, value):
    with pytest.raises((TypeError, ValueError), match=rf"{key} of 'layer\.weight' must be a number|neither a number"):
        SpectralNewton(named(), **{key: value})


@pytest.mark.parametrize(
    "setting", [{"batch_dims": 0.5}, {"split": 1.5}, {"split": "three"}, {"split": {"*": (1.0, 2)}}]
)
def test_what_is_no_layout(setting):
    with pytest.raises(TypeError, match=r"layer\.weight: (batch_dims|split) must be"):
        SpectralNewton(named(), **setting)


def test_unnamed_parameters_are_named_by_place_and_shape():
    with pytest.raises(ValueError, match=r"alpha of 'parameter 1 of group 0, shape \(3, 4\)'"):
        SpectralNewton([nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(3, 4))], alpha=[1.0, -1.0])


def test_other_settings():
    for settings in ({"nonfinite": "ignore"}, {"capturable": True}, {"alpha": "landscape"}, {"landscape": {}}):
        with pytest.raises(ValueError):
            SpectralNewton(named(), **settings)
    for settings in ({"adamw_betas": (1.0, 0.9)}, {"adamw_eps": -1.0}):
        with pytest.raises(ValueError, match=r"layer\.weight"):
            SpectralNewton(named(3), **settings)


def test_empty_groups():
    with pytest.raises(ValueError, match="empty"):
        SpectralNewton([])
    with pytest.raises(ValueError, match="param group 1 is empty"):
        SpectralNewton([{"params": [p for _, p in named()]}, {"params": []}])
    with pytest.raises(TypeError, match="expected a tensor"):
        SpectralNewton([1.0])


def test_a_setting_changed_between_steps():
    weights = [("other.weight", nn.Parameter(torch.ones(2, 2))), *named()]
    optimizer = SpectralNewton(weights, alpha=[1.0, 2.0])
    for _, weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    for key, value in (("alpha", [1.0, -2.0]), ("damping", [0.1, 0.0]), ("damping_mode", ["rms", "x"])):
        before = optimizer.param_groups[0][key]
        optimizer.param_groups[0][key] = value
        with pytest.raises(ValueError, match=rf"{key} of 'layer\.weight'"):
            optimizer.step()
        optimizer.param_groups[0][key] = before
    optimizer.step()


def test_sets_and_half_named_groups():
    weight, other = (nn.Parameter(torch.ones(3, 4)) for _ in range(2))
    for params in ({weight}, [{"params": {weight}}]):
        with pytest.raises(TypeError, match="is a set, whose order changes"):
            SpectralNewton(params)
    for params in ([("a", weight), other], [weight, ("b", other)]):
        with pytest.raises(ValueError, match="entry 1: name all parameters"):
            SpectralNewton(params)


@pytest.mark.parametrize(
    "key, ours",
    [("betas", "adamw_betas"), ("eps", "adamw_eps"), ("use_muon", "use_adamw"), ("adjust_lr_fn", "update_scale"),
     ("ns_steps", "tolerance")],
)  # fmt: skip
def test_a_groups_settings_of_other_optimizers_are_not_ignored(key, ours):
    with pytest.raises(ValueError, match=f"param group 1: SpectralNewton has no '{key}'; see {ours}"):
        SpectralNewton([{"params": named()}, {"params": [("b", nn.Parameter(torch.ones(3)))], key: 1}])


@pytest.mark.parametrize("setting", [{"capturable": True}, {"nonfinite": "skip"}])
def test_what_holds_for_all_groups_cannot_be_one_groups(setting):
    with pytest.raises(ValueError, match=f"param group 0: {next(iter(setting))} holds for all groups"):
        SpectralNewton([{"params": named(), **setting}])
    with pytest.raises(ValueError, match="use_adamw must be"):
        SpectralNewton(named(), use_adamw="yes")
    with pytest.raises(TypeError, match="process_group must be"):
        SpectralNewton(named(), process_group=0)


def test_lazy_modules_need_a_batch_first():
    with pytest.raises(ValueError, match=r"'0\.weight' has no shape yet: run a batch"):
        SpectralNewton(nn.Sequential(nn.LazyLinear(3)))


def test_a_group_that_cannot_be_added_leaves_no_trace():
    optimizer = SpectralNewton(named())
    matrix, vector = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="alpha of 'm'"):
        optimizer.add_param_group({"params": [("m", matrix)], "alpha": -1.0})
    with pytest.raises(ValueError, match="non-leaf"):
        optimizer.add_param_group({"params": [("m", matrix), ("v", vector * 2)]})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [("m", matrix), ("v", vector)]})
    assert len(optimizer.param_groups) == 3


def test_complex_integer_and_mixed_devices():
    with pytest.raises(TypeError, match=r"'layer\.weight' is complex"):
        SpectralNewton([("layer.weight", nn.Parameter(torch.ones(3, 4, dtype=torch.complex64)))])
    with pytest.raises(TypeError, match=r"'count' is torch\.int64"):
        SpectralNewton([("count", torch.ones(3, 4, dtype=torch.int64))])
    meta = ("far.weight", nn.Parameter(torch.ones(3, 4, device="meta")))
    with pytest.raises(ValueError, match=r"'far\.weight' is on meta and 'layer\.weight' on cpu"):
        SpectralNewton([*named(), meta])


def test_sparse_gradients():
    model = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Linear(3, 2))
    model(torch.tensor([1, 2])).sum().backward()
    before = model[1].weight.detach().clone()
    with pytest.raises(TypeError, match=r"'0\.weight' is sparse"):
        SpectralNewton(model).step()
    assert torch.equal(model[1].weight, before)


def test_a_state_of_another_layout_is_refused():
    state = SpectralNewton(named()).state_dict()
    with pytest.raises(ValueError, match="parameter group"):
        SpectralNewton([*named(), ("b", nn.Parameter(torch.ones(3)))]).load_state_dict(state)


def test_scalar_spectral_adam():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="s of '0' must be positive"):
        ScalarSpectralAdam(model, {"0": -1.0})
    with pytest.raises(ValueError, match="s names 'x', which is no layer of the model"):
        ScalarSpectralAdam(model, {"x": 1.0})
    model[0].requires_grad_(False)
    with pytest.raises(KeyError, match="no trainable layer"):
        ScalarSpectralAdam(model, {"0": 1.0})
    with pytest.raises(ValueError, match="beta"):
        ScalarSpectralAdam(model, {"0": 1.0}, beta=math.nan)


def test_capturable_refuses_what_waits_for_the_device():
    model = nn.Linear(4, 3, device="meta")
    settings = {"capturable": True, "nonfinite": "skip", "alpha": 1.3}
    with pytest.raises(ValueError, match=r"capturable.*'eigh'.*'weight'.*alpha=1.3.*larger damping"):
        SpectralNewton(model, **settings, use_adamw=None, solver="eigh")
    for mode in ("rms", "spectral", "absolute"):
        SpectralNewton(model, **settings, damping_mode=mode)
