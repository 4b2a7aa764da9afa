"""16-bit weights: stochastic rounding, compensation, float32 moments, and their checkpoints."""

import copy

import pytest
import torch
from torch import nn

from spectral_ext.optim import SpectralNewton
from spectral_ext.optim.low_precision import round_stochastically


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_gives_neighbours_with_the_right_mean(dtype):
    values = torch.tensor([1.001, -1.001, 3.14159, 1e-3, -7e-6, 1e-7, 0.0, 2.0, 65000.0])
    draws = torch.stack([round_stochastically(values, dtype, torch.Generator().manual_seed(i)) for i in range(4000)])
    spread = draws.double().std(0) / 4000**0.5
    assert ((draws.double().mean(0) - values.double()).abs() <= 5 * spread + 1e-12).all()
    nearest = values.to(dtype)
    for i, column in enumerate(draws.unbind(1)):
        found = column.unique()
        assert len(found) <= 2 and (values[i] != nearest[i].float() or len(found) == 1)
        assert (found.float() - values[i]).abs().max() <= 2 * torch.finfo(dtype).eps * values[i].abs() + 6e-8
    special = torch.tensor([float("inf"), float("-inf"), float("nan")])
    torch.testing.assert_close(round_stochastically(special, dtype).float(), special, equal_nan=True)


def drift(dtype, low_precision, steps=200, adamw=False):
    """100 elements of weight 1 under constant gradient: how far they move on average."""
    weight = nn.Parameter(torch.ones(10, 10, dtype=dtype))
    settings = {"momentum": 0.0, "weight_decay": 0.0, "update_scale": None, "low_precision": low_precision}
    optimizer = SpectralNewton([weight], 1e-3, use_adamw=adamw, **settings)
    for _ in range(steps):
        weight.grad = torch.eye(10, dtype=dtype)
        optimizer.step()
    moved = (1 - weight.detach().double()).diagonal().mean().item()
    if low_precision == "compensated":
        moved -= optimizer.state[weight]["compensation"].double().diagonal().mean().item()
    return moved


@pytest.mark.parametrize("adamw", [False, True])
def test_small_updates_are_kept(adamw):
    exact = drift(torch.float64, None, adamw=adamw)
    assert drift(torch.bfloat16, None, adamw=adamw) == 0.0
    assert drift(torch.bfloat16, "compensated", adamw=adamw) == pytest.approx(exact, rel=1e-2)
    assert drift(torch.bfloat16, "stochastic_rounding", adamw=adamw) == pytest.approx(exact, rel=0.15)


def train(model, optimizer, seeds):
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()


@pytest.mark.parametrize("low_precision", [None, "stochastic_rounding", "compensated"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_run_goes_on_from_a_checkpoint_bit_by_bit(low_precision, dtype):
    def made():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)).to(dtype)
        return model, SpectralNewton(model, low_precision=low_precision, rounding_seed=7)

    model, optimizer = made()
    train(model, optimizer, range(2))
    weights, state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    kept = state["state"][0]
    assert kept["momentum_buffer"].dtype == torch.float32
    assert kept.get("compensation", model[0].weight).dtype == dtype
    train(model, optimizer, range(2, 5))
    other, again = made()
    other.load_state_dict(weights)
    again.load_state_dict(state)
    assert again.state[other[0].weight]["momentum_buffer"].dtype == torch.float32
    train(other, again, range(2, 5))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters()))
    assert torch.equal(state["state"][0]["momentum_buffer"], kept["momentum_buffer"])


def test_another_seed_rounds_in_another_way_and_parameters_apart():
    weights = [nn.Parameter(torch.ones(32, 32, dtype=torch.bfloat16)) for _ in range(3)]
    seeds = (0, 0, 1)
    for weight, seed in zip(weights, seeds):
        weight.grad = torch.eye(32, dtype=torch.bfloat16)
        SpectralNewton([weight], 1e-3, low_precision="stochastic_rounding", rounding_seed=seed).step()
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    pair = [nn.Parameter(torch.ones(32, 32, dtype=torch.bfloat16)) for _ in range(2)]
    for weight in pair:
        weight.grad = torch.eye(32, dtype=torch.bfloat16)
    SpectralNewton(pair, 1e-3, low_precision="stochastic_rounding").step()
    assert not torch.equal(*pair)


def test_a_captured_step_cannot_round_stochastically():
    weight = nn.Parameter(torch.ones(3, 4))
    with pytest.raises(ValueError, match=r"low_precision.*capturable=True"):
        SpectralNewton([weight], low_precision="stochastic_rounding", capturable=True, nonfinite="skip")


@pytest.mark.parametrize("low_precision", [None, "compensated"])
def test_a_captured_step_that_is_not_finite_leaves_16_bit_weights(low_precision):
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3)).bfloat16()
    optimizer = SpectralNewton(model, capturable=True, nonfinite="skip", low_precision=low_precision)
    train(model, optimizer, range(2))
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
    for p in model.parameters():
        p.grad.fill_(float("inf"))
    optimizer.step()
    assert optimizer.skipped_steps == 1
    assert all(torch.equal(p, before[0][name]) for name, p in model.named_parameters())
    for index, entries in optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, before[1][index][key]) for key, value in entries.items())


def test_a_state_of_a_wider_dtype_is_refused_by_name():
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3))
    double = copy.deepcopy(model).double()
    optimizer, wide = SpectralNewton(model), SpectralNewton(double)
    train(double, wide, range(1))
    with pytest.raises(ValueError, match=r"momentum_buffer for '0\.weight' is torch\.float64.*cast"):
        optimizer.load_state_dict(wide.state_dict())
    assert not optimizer.state
    train(model, optimizer, range(1))
    wide.load_state_dict(optimizer.state_dict())
