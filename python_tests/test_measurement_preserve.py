"""A measurement leaves model, RNG and flags as they were, also after an exception."""

import pytest
import torch
from torch import nn

from spectral_ext.measurement.preserve import preserved


def make_model() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
    model.train()
    model[3].eval()
    model[0].bias.requires_grad_(False)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    return model


def snapshot(model: nn.Module):
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        [module.training for module in model.modules()],
        [(p.requires_grad, p.grad) for p in model.parameters()],
        [len(module._forward_hooks) for module in model.modules()],
        torch.get_rng_state(),
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
    )


def disturb(model: nn.Module) -> None:
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    model.eval()
    model.requires_grad_(True)
    model.zero_grad()
    model[1].register_forward_hook(lambda *_: None)
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = False


def equal(before, after) -> bool:
    return (
        all(torch.equal(before[0][name], after[0][name]) for name in before[0])
        and before[1] == after[1]
        and all(a[0] == b[0] and a[1] is b[1] for a, b in zip(before[2], after[2]))
        and before[3] == after[3]
        and torch.equal(before[4], after[4])
        and before[5:] == after[5:]
    )


@pytest.mark.parametrize("fails", [False, True])
def test_restored(fails):
    model = make_model()
    keep = model[0].register_forward_hook(lambda *_: None)
    before = snapshot(model)
    try:
        with preserved(model):
            disturb(model)
            assert not equal(before, snapshot(model))
            if fails:
                raise RuntimeError("on purpose")
    except RuntimeError as error:
        assert fails and "on purpose" in str(error)  # noqa: PT017
    assert equal(before, snapshot(model))
    keep.remove()
    assert not model[0]._forward_hooks


def test_buffers_keep_their_identity():
    model = nn.BatchNorm1d(3)
    running = model.running_mean
    with preserved(model):
        model(torch.randn(8, 3))
    assert model.running_mean is running
    assert torch.equal(running, torch.zeros(3))
