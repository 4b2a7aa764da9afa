"""State: made at the first step, round trips, copies, states that do not fit; AMP, compile, schedulers."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from spectral_ext.optim import SpectralNewton, parameter_groups


def net():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6 * 4, 8), nn.Linear(8, 4)
    )


def backward(model, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(8, 3, 4, 4, generator=generator), torch.randint(4, (8,), generator=generator)
    model.zero_grad()
    (scale * F.cross_entropy(model(x), y)).backward()


def train(model, optimizer, seeds):
    for seed in seeds:
        backward(model, seed)
        optimizer.step()


def layout(optimizer):
    state = optimizer.state_dict()["state"]
    return {index: {key: (tuple(v.shape), v.dtype) for key, v in entries.items()} for index, entries in state.items()}


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.0}, {"alpha": {"*": 1.5}, "capturable": True}])
def test_the_state_is_made_at_the_first_step_and_keeps_its_layout(settings):
    if settings.get("capturable"):
        settings = settings | {"nonfinite": "skip"}
    model = net()
    optimizer = SpectralNewton(model, **settings)
    assert not optimizer.state
    train(model, optimizer, range(1))
    first = layout(optimizer)
    assert len(first) == 7 and all(
        shape in ((), tuple(p.shape))
        for entries, p in zip(first.values(), (p for group in optimizer.param_groups for p in group["params"]))
        for shape, _ in entries.values()
    )
    train(model, optimizer, range(1, 3))
    assert layout(optimizer) == first


def test_a_fresh_optimizer_goes_on_from_a_file():
    model = net()
    optimizer = SpectralNewton(model, 0.02, {"0": 1.5, "*": 2.0}, split={"3": 2})
    train(model, optimizer, range(3))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(model, optimizer, range(3, 6))
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = net()
    other.load_state_dict(saved["model"])
    again = SpectralNewton(other)
    again.load_state_dict(saved["optimizer"])
    assert again.param_groups[0]["alpha"] == [1.5, 2.0] and again.param_groups[0]["lr"] == 0.02
    train(other, again, range(3, 6))
    for p, q in zip(model.parameters(), other.parameters()):
        assert torch.equal(p, q)


def test_states_of_other_optimizers_say_so_and_change_nothing():
    model = net()
    matrices = [model[0].weight.flatten(1).detach().requires_grad_(), model[3].weight]
    for other, whose in ((torch.optim.Muon(matrices), "torch.optim.Muon"), (torch.optim.SGD(matrices), "another")):
        for optimizer in (SpectralNewton(matrices), SpectralNewton(model)):
            with pytest.raises(ValueError, match=f"the state is of {whose}.*lack use_adamw, alpha"):
                optimizer.load_state_dict(other.state_dict())
            train(model, optimizer, range(1))


def test_a_state_of_other_shapes_names_the_parameter():
    model = net()
    optimizer = SpectralNewton(model)
    train(model, optimizer, range(1))
    state = optimizer.state_dict()
    model[0] = nn.Conv2d(3, 5, 3, bias=False)
    with pytest.raises(
        ValueError, match=r"momentum_buffer for '0\.weight' has shape \(6, 3, 3, 3\), not \(5, 3, 3, 3\)"
    ):
        SpectralNewton(model).load_state_dict(state)


@pytest.mark.parametrize("capturable", [True, False])
def test_how_a_process_runs_is_not_loaded(capturable):
    """A captured run goes on without capture and the other way round, and raises or skips as it was told to."""
    model = net()
    settings = [{"capturable": True, "nonfinite": "skip"}, {}]
    first, second = settings if capturable else settings[::-1]
    optimizer = SpectralNewton(model, **first)
    train(model, optimizer, range(2))
    other = net()
    other.load_state_dict(model.state_dict())
    again = SpectralNewton(other, **second)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert [group["capturable"] for group in again.param_groups] == [not capturable] * 2
    for one, two in ((model, optimizer), (other, again)):
        train(one, two, range(2, 4))
    for p, q in zip(model.parameters(), other.parameters()):
        torch.testing.assert_close(p, q)


def test_numbers_of_numpy_are_saved_as_floats():
    numpy = pytest.importorskip("numpy")
    model = net()
    optimizer = SpectralNewton(model, numpy.float64(0.01), alpha={"0": numpy.float64(1.5), "*": torch.tensor(2.0)})
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    assert torch.load(file, weights_only=True)["param_groups"][0]["alpha"] == [1.5, 2.0]


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("settings", [{"alpha": {"0": 1.5, "*": 2.0}}, {"momentum": 0.0}], ids=str)
def test_states_by_name(flatten, settings):
    """torch.distributed.checkpoint.state_dict, as torchtitan uses it, in one process."""
    by_name = pytest.importorskip("torch.distributed.checkpoint.state_dict")
    options = by_name.StateDictOptions(flatten_optimizer_state_dict=flatten)
    model, other = net(), net()
    optimizer, again = SpectralNewton(model, 0.1, **settings), SpectralNewton(other, **settings)
    train(model, optimizer, range(2))
    by_name.set_optimizer_state_dict(
        other, again, by_name.get_optimizer_state_dict(model, optimizer, options=options), options=options
    )
    for one, two in zip(optimizer.param_groups, again.param_groups):
        assert {**one, "params": 0} == {**two, "params": 0}
        for p, q in zip(one["params"], two["params"]):
            assert optimizer.state[p].keys() == again.state[q].keys()
            assert all(torch.equal(value, again.state[q][key]) for key, value in optimizer.state[p].items())


def test_copies_and_pickles_step():
    model = net()
    twin, optimizer = copy.deepcopy((model, SpectralNewton(model)))
    original = SpectralNewton(model)
    train(model, original, range(2))
    train(twin, optimizer, range(2))
    for p, q in zip(model.parameters(), twin.parameters()):
        assert torch.equal(p, q)


def test_add_param_group():
    model = net()
    optimizer = SpectralNewton([("first", model[0].weight)])
    optimizer.add_param_group({"params": [("last", model[3].weight), ("bias", model[3].bias)], "alpha": 1.0})
    assert [group["use_adamw"] for group in optimizer.param_groups] == [False, False, True]
    train(model, optimizer, range(1))
    assert optimizer.state[model[3].weight]["momentum_buffer"].norm() > 0


def test_adamws_own_rate():
    """``adamw_lr`` is for AdamW's share of what both take; a group that is AdamW's alone may set ``lr`` itself."""
    model = net()
    matrices, rest = parameter_groups(model)
    other = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3))
    settings = {"lr": 0.1, "adamw_lr": 0.01, "weight_decay": 0.2, "adamw_weight_decay": 0.0}
    rates = []
    for own in ({"lr": 0.003, "weight_decay": 0.5}, {"adamw_lr": 0.004, "lr": 9.0, "adamw_weight_decay": 0.6}, {}):
        optimizer = SpectralNewton([matrices, rest | own], **settings)
        rates.append([(group["lr"], group["weight_decay"]) for group in optimizer.param_groups])
    assert rates == [[(0.1, 0.2), (0.003, 0.5)], [(0.1, 0.2), (0.004, 0.6)], [(0.1, 0.2), (0.01, 0.0)]]
    optimizer = SpectralNewton([{"params": other, "lr": 0.5}], **settings)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.01]


def test_one_cycle_with_and_without_momentum():
    """The scheduler cycles ``momentum`` by default, and so begins it where there was none."""
    for momentum in (0.95, 0.0):
        model = net()
        optimizer = SpectralNewton(model, momentum=momentum)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [0.02, 0.01], total_steps=4)
        for seed in range(4):
            train(model, optimizer, [seed])
            schedule.step()
        assert optimizer.state[model[0].weight]["momentum_buffer"].norm() > 0
        assert all(p.isfinite().all() for p in model.parameters())


def test_schedulers_move_both_rates():
    model = net()
    optimizer = SpectralNewton(model, 0.1, adamw_lr=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5**epoch)
    train(model, optimizer, range(1))
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.005]


def test_tensor_rates_move_apart_where_each_side_has_its_own():
    optimizer = SpectralNewton(net(), torch.tensor(0.1), adamw_lr=torch.tensor(0.01))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda epoch: 0.5**epoch, lambda epoch: 0.2**epoch])
    optimizer.step()
    schedule.step()
    assert [group["lr"].item() for group in optimizer.param_groups] == pytest.approx([0.05, 0.002])


def test_a_tensor_learning_rate_steps_as_a_float():
    results = []
    for lr in (0.02, torch.tensor(0.02, dtype=torch.float64)):
        torch.manual_seed(0)
        model = net()
        train(model, SpectralNewton(model, lr), range(3))
        results.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*results)


def test_grad_scaler_unscales_and_skips():
    model, twin = net(), net()
    twin.load_state_dict(model.state_dict())
    settings = {"damping_mode": "absolute", "update_scale": None, "lr": 1e-3}
    optimizer, other = SpectralNewton(model, **settings), SpectralNewton(twin, **settings)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    for seed in range(3):
        backward(model, seed, scaler.scale(torch.ones(())))
        scaler.step(optimizer)
        scaler.update()
        backward(twin, seed)
        other.step()
    for p, q in zip(model.parameters(), twin.parameters()):
        torch.testing.assert_close(p, q)
    before = copy.deepcopy(model.state_dict())
    backward(model, 9, torch.tensor(float("inf")))
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**7
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_compiled_steps_do_not_recompile_when_the_rate_changes():
    model, twin = net(), net()
    twin.load_state_dict(model.state_dict())
    optimizer = SpectralNewton(model, torch.tensor(0.02))
    other = SpectralNewton(twin, torch.tensor(0.02))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(optimizer.step, backend="aot_eager")
    frames = []
    for seed in range(5):
        for group in (*optimizer.param_groups, *other.param_groups):
            group["lr"].mul_(0.9)
        backward(model, seed)
        compiled()
        backward(twin, seed)
        other.step()
        frames.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert frames[-1] == frames[1], frames
    for p, q in zip(model.parameters(), twin.parameters()):
        torch.testing.assert_close(p, q)
