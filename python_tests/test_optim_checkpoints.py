"""State: there from construction on, the same fresh and trained, round trips, copies; AMP, compile, schedulers."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from spectral_ext.optim import SpectralNewton


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
def test_the_layout_is_the_same_fresh_and_trained(settings):
    if settings.get("capturable"):
        settings = settings | {"nonfinite": "skip"}
    model = net()
    optimizer = SpectralNewton(model, **settings)
    fresh = layout(optimizer)
    assert len(fresh) == 7
    train(model, optimizer, range(2))
    assert layout(optimizer) == fresh


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


def test_schedulers_move_both_rates():
    model = net()
    optimizer = SpectralNewton(model, 0.1, adamw_lr=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5**epoch)
    train(model, optimizer, range(1))
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.005]


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
