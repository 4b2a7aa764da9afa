"""State that follows its parameter: casts, swaps, parametrizations, freezing, groups added later, memory of a step."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from spectral_ext.optim import SpectralNewton
from spectral_ext.optim.matrix_step import buckets


def net():
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 3))


def set_gradients(model, seed=0, dtype=None):
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        if p.requires_grad:
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(dtype or p.dtype)


@pytest.mark.parametrize("steps_before", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_cast_of_the_model(steps_before, dtype):
    model = net()
    optimizer = SpectralNewton(model)
    for seed in range(steps_before):
        set_gradients(model, seed)
        optimizer.step()
    momentum = copy.deepcopy(optimizer.state.get(model[0].weight, {}))
    model.to(dtype)
    set_gradients(model, 9)
    optimizer.step()
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    for p in model.parameters():
        assert all(v.dtype == expected for key, v in optimizer.state[p].items() if key != "step")
    if momentum:
        moved = 0.95 * momentum["momentum_buffer"].to(expected) + 0.05 * model[0].weight.grad.to(expected)
        torch.testing.assert_close(optimizer.state[model[0].weight]["momentum_buffer"], moved)


def test_a_move_of_device_takes_the_state_along():
    model = net()
    optimizer = SpectralNewton(model)
    model.to("meta")
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    state = {p: optimizer.state[p] for p in model.parameters()}
    from spectral_ext.optim.state import current_state

    matrix = current_state(
        {"momentum_buffer": torch.ones(8, 6)}, model[0].weight, optimizer.param_groups[0], "0.weight"
    )
    assert matrix["momentum_buffer"].device.type == "meta" and not any(state.values())


def test_gradients_of_another_dtype_than_the_weights():
    model, twin = net(), net()
    one, two = SpectralNewton(model), SpectralNewton(twin)
    for p, q in zip(model.parameters(), twin.parameters()):
        p.grad_dtype = None
        p.grad = torch.randn_like(p).bfloat16()
        q.grad = p.grad.float()
    one.step()
    two.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters()))


def test_parameters_swapped_in_the_groups_as_accelerate_does():
    model, other = net(), net()
    optimizer = SpectralNewton(model)
    set_gradients(model)
    optimizer.step()
    new = dict(zip(model.parameters(), other.parameters()))
    for group in optimizer.param_groups:
        group["params"] = [new[p] for p in group["params"]]
    set_gradients(other)
    optimizer.step()
    assert len(optimizer.state_dict()["state"]) == len(list(other.parameters())) == len(optimizer.state)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_parametrized_weight_keeps_its_place(when):
    class Halved(nn.Module):
        def forward(self, weight):
            return weight / 2

    model = nn.ModuleDict({"emb": nn.Embedding(9, 8), "conv": nn.Conv1d(8, 8, 3, groups=2), "fc": nn.Linear(8, 8)})
    model["head"] = nn.Linear(8, 9)
    twin = copy.deepcopy(model)
    if when == "after":
        optimizer = SpectralNewton(model)
    for layer in model.values():
        parametrize.register_parametrization(layer, "weight", Halved())
    if when == "before":
        optimizer = SpectralNewton(model, alpha={"fc": 1.5, "*": 2.0})
        group = optimizer.param_groups[0]
        assert group["alpha"] == [2.0, 1.5] and group["split"] == [2, 1] and group["batch_dims"] == 0
    plain = SpectralNewton(twin, alpha={"fc": 1.5, "*": 2.0} if when == "before" else 2.0)
    for one, two in zip(optimizer.param_groups, plain.param_groups):
        assert len(one["params"]) == len(two["params"]) and one["use_adamw"] == two["use_adamw"]
    set_gradients(model)
    optimizer.step()


def test_a_state_whose_parameter_has_another_shape_is_named():
    model = net()
    optimizer = SpectralNewton(model)
    set_gradients(model)
    optimizer.step()
    model[0].weight.grad = None
    model[0].weight.data = torch.zeros(8, 5)
    model[0].weight.grad = torch.ones(8, 5)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"momentum_buffer of '0\.weight' has shape \(8, 6\).*\(8, 5\).*del optimizer"):
        optimizer.step()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("named", [True, False])
def test_unfreezing_is_said_and_adding_without_names_works(named):
    model = nn.Sequential(nn.Embedding(5, 6), nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3))
    model[0].requires_grad_(False)
    model[1].requires_grad_(False)
    optimizer = SpectralNewton(model)
    assert optimizer.routing()["0.weight"].optimizer == "left out"
    model.requires_grad_(True)
    set_gradients(model)
    with pytest.warns(UserWarning, match=r"'0\.weight', '1\.weight', '1\.bias'.*in no group.*add_param_group"):
        optimizer.step()
    before = model[1].weight.detach().clone()
    new = [*model[0].named_parameters(prefix="0"), *model[1].named_parameters(prefix="1")]
    optimizer.add_param_group({"params": new if named else [p for _, p in new], "lr": 0.1})
    assert [(group["use_adamw"], group["param_names"]) for group in optimizer.param_groups[2:]] == [
        (False, ["1.weight"]), (True, ["0.weight", "1.bias"])
    ]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    assert not torch.equal(model[1].weight, before)


def test_named_and_unnamed_groups_mix():
    a, b, c = (nn.Parameter(torch.ones(3, 4)) for _ in range(3))
    optimizer = SpectralNewton([a])
    optimizer.add_param_group({"params": [("b", b)]})
    optimizer.add_param_group({"params": [c]})
    names = [group["param_names"] for group in optimizer.param_groups]
    assert names == [["parameter 0 of group 0, shape (3, 4)"], ["b"], ["parameter 0 of group 2, shape (3, 4)"]]
    for p in (a, b, c):
        p.grad = torch.randn(3, 4)
    optimizer.step()
    SpectralNewton([a, b, c]).state_dict()


def test_parameters_replaced_after_construction_are_an_error():
    model = net()
    optimizer = SpectralNewton(model)
    for i in (0, 2, 3):
        model[i] = nn.Linear(model[i].in_features, model[i].out_features)
    model[1] = nn.LayerNorm(8)
    set_gradients(model)
    with pytest.raises(RuntimeError, match=r"'0\.weight'.*replaced after the optimizer was made"):
        optimizer.step()


def test_skipped_steps_are_counted_and_said_once():
    model = net()
    optimizer = SpectralNewton(model, nonfinite="skip")
    for step in range(3):
        set_gradients(model, step)
        model[0].weight.grad[0, 0] = float("nan")
        if step:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                optimizer.step()
        else:
            with pytest.warns(UserWarning, match=r"'0\.weight' is not finite: this step is skipped"):
                optimizer.step()
    assert optimizer.skipped_steps == 3 and not optimizer.state


@pytest.mark.parametrize(
    "key, value",
    [("alpha", [2.0]), ("alpha", {"*": 1.0}), ("alpha", "2"), ("damping", [0.1, 0.0]), ("split", [3, 1]), ("lr", -1.0),
     ("lr", float("nan")), ("lr", torch.tensor(float("nan"))), ("momentum", 1.0), ("momentum_mode", "x"),
     ("weight_decay", float("inf")), ("update_scale", "x"), ("tolerance", 2.0), ("solver", "x"), ("nesterov", "yes"),
     ("low_precision", "x"), ("adamw_eps", -1.0), ("adamw_betas", (0.9,))],
)  # fmt: skip
def test_settings_edited_in_the_groups_are_checked_before_anything_changes(key, value):
    model = net()
    optimizer = SpectralNewton(model)
    set_gradients(model)
    optimizer.step()
    before, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict()["state"])
    group = optimizer.param_groups[key.startswith("adamw")]
    old, group[key] = group[key], value
    with pytest.raises((ValueError, TypeError), match=key if key != "split" else "split=3"):
        optimizer.step()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    for index, entries in optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, state[index][name]) for name, value in entries.items())
    group[key] = old
    optimizer.step()


def test_a_scale_that_fails_leaves_weights_and_momentum():
    model = net()
    optimizer = SpectralNewton(model)
    set_gradients(model)
    optimizer.step()
    momentum = optimizer.state[model[0].weight]["momentum_buffer"].clone()
    optimizer.param_groups[0]["update_scale"] = lambda T: T.norm(dim=-1)
    with pytest.raises(ValueError, match="update_scale"):
        optimizer.step()
    assert torch.equal(optimizer.state[model[0].weight]["momentum_buffer"], momentum)


def test_buckets_are_cut_by_bytes():
    tensors = [torch.empty(n, device="meta") for n in (3, 3, 100, 1, 1)]
    tensors.append(torch.empty(2, dtype=torch.bfloat16, device="meta"))
    assert list(buckets(tensors, 24)) == [[0, 1], [2], [3, 4, 5]]
    assert list(buckets([], 24)) == []


def test_a_step_holds_few_matrices_at_once(monkeypatch):
    """24 matrices of 1 MiB: no call of the op sees more than a bucket of them, and the result is that of one bucket."""
    from spectral_ext.optim import matrix_step

    weights = [nn.Parameter(torch.randn(64, 64)) for _ in range(6)]
    twins = [nn.Parameter(w.detach().clone()) for w in weights]
    for w, q in zip(weights, twins):
        w.grad = torch.randn_like(w)
        q.grad = w.grad
    SpectralNewton(twins).step()
    calls, original = [], matrix_step.spectral_newton
    monkeypatch.setattr(matrix_step, "BUCKET_BYTES", 2 * 64 * 64 * 4)
    monkeypatch.setattr(matrix_step, "spectral_newton", lambda G, *a, **k: calls.append(len(G)) or original(G, *a, **k))
    SpectralNewton(weights).step()
    assert calls == [2, 2, 2] and all(torch.equal(w, q) for w, q in zip(weights, twins))
