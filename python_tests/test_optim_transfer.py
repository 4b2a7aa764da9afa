"""A spectral map in place of T: its update, its state, and what is refused."""

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn

from spectral_ext.ops.spectral_newton import SpectralMap
from spectral_ext.optim import SpectralNewton


def stepped(transfer, gradient, **settings):
    weight = nn.Parameter(torch.zeros_like(gradient))
    weight.grad = gradient.clone()
    optimizer = SpectralNewton([("w", weight)], 1.0, transfer=transfer, momentum=0.0, weight_decay=0.0, **settings)
    optimizer.step()
    return -weight.detach(), optimizer


def smooth(x):
    return x / (1 + x)


@pytest.mark.parametrize(
    "transfer, function",
    [(SpectralMap.named("power", "rms", exponent=0.5), lambda x: x**0.5), ("log", lambda x: np.log1p(10 * x)),
     (smooth, smooth), (SpectralMap("mine", unit="spectral", function=smooth), smooth)],
)  # fmt: skip
def test_the_update_is_that_of_a_singular_value_decomposition(transfer, function):
    torch.manual_seed(0)
    gradient = torch.randn(6, 9)
    update, _ = stepped(transfer, gradient, update_scale=None, tolerance=1e-4)
    U, S, Vh = torch.linalg.svd(gradient.double(), full_matrices=False)
    unit = {"rms": S.square().mean().sqrt(), "spectral": S.max()}.get(getattr(transfer, "unit", ""), 1.0)
    expected = U @ torch.diag(torch.from_numpy(function((S / unit).numpy()))) @ Vh
    torch.testing.assert_close(update.double(), expected, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_polar_has_the_scale_of_muon(scale):
    torch.manual_seed(0)
    update, optimizer = stepped(SpectralMap.named("polar", "frobenius"), torch.randn(12, 20) * scale)
    singular = torch.linalg.svdvals(update) / (0.2 * 20**0.5)
    assert singular.max() < 1.1 and singular.min() > 0.85
    assert "map 'polar'" in optimizer.routing()["w"].reason


def test_a_named_map_is_saved_and_another_is_refused_by_name():
    gradient = torch.randn(4, 5)
    _, optimizer = stepped(SpectralMap.named("power", exponent=0.5), gradient)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert state["param_groups"][0]["transfer"]["name"] == "power"
    stepped(SpectralMap.named("power", exponent=0.5), gradient)[1].load_state_dict(state)
    for other in (None, "polar", SpectralMap.named("power", exponent=0.25), smooth):
        again = stepped(other, gradient)[1]
        before = copy.deepcopy(again.param_groups[0]["transfer"])
        with pytest.raises(ValueError, match=r"transfer of 'w': the state was saved with .*'power'.*same transfer"):
            again.load_state_dict(state)
        assert again.param_groups[0]["transfer"] == before


def test_callables_are_not_in_copies():
    _, optimizer = stepped(smooth, torch.randn(4, 5))
    twin = copy.deepcopy(optimizer)
    twin.param_groups[0]["params"][0].grad = torch.randn(4, 5)
    with pytest.raises(ValueError, match="'smooth' is a callable, which copies and states do not hold"):
        twin.step()
    with pytest.raises(ValueError, match="two callables are named 'smooth'"):
        optimizer.add_param_group({"params": [("v", nn.Parameter(torch.ones(2, 3)))],
                                   "transfer": SpectralMap("smooth", function=lambda x: x)})  # fmt: skip


def test_what_is_no_map():
    for transfer, message in (("polr", "polr"), (3, "must be a SpectralMap")):
        with pytest.raises((ValueError, TypeError), match=message):
            stepped(transfer, torch.randn(3, 4))
    _, optimizer = stepped("polar", torch.randn(3, 4))
    weight = optimizer.param_groups[0]["params"][0]
    before = weight.detach().clone()
    for bad in ("clip", {"name": "clop", "parameters": {}, "unit": "rms"}):
        optimizer.param_groups[0]["transfer"] = bad
        with pytest.raises((ValueError, TypeError), match="transfer of 'w'"):
            optimizer.step()
    assert torch.equal(weight, before)


def test_a_map_with_a_pole_moves_nothing():
    weight = nn.Parameter(torch.zeros(4, 5))
    weight.grad = torch.randn(4, 5)
    optimizer = SpectralNewton(
        [weight], transfer=SpectralMap("pole", unit="spectral", function=lambda x: 1 / (x - 0.5))
    )
    with pytest.raises(ValueError, match="pole"):
        optimizer.step()
    assert not weight.any() and not optimizer.state[weight]["momentum_buffer"].any()
