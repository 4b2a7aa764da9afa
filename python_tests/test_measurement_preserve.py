"""A measurement leaves model, random generators and flags as they were, also after an exception."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from spectral_ext import directional_curvature, measure
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
        [(p.requires_grad, p.grad, None if p.grad is None else p.grad.sum().item()) for p in model.parameters()],
        torch.get_rng_state(),
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.benchmark,
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.is_grad_enabled(),
    )


def disturb(model: nn.Module) -> None:
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    random.random()
    np.random.rand()
    model.eval()
    model.requires_grad_(True)
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = not torch.backends.cudnn.benchmark
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_autocast_enabled("cpu", True)
    torch.set_grad_enabled(False)


def equal(before, after) -> bool:
    return (
        all(torch.equal(before[0][name], after[0][name]) for name in before[0])
        and before[1] == after[1]
        and all(a[0] == b[0] and a[1] is b[1] and a[2] == b[2] for a, b in zip(before[2], after[2], strict=True))
        and torch.equal(before[3], after[3])
        and before[4:] == after[4:]
    )


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_restored(error):
    model = make_model()
    before = snapshot(model)
    try:
        with preserved(model):
            disturb(model)
            assert not equal(before, snapshot(model))
            if error is not None:
                raise error("on purpose")
    except (RuntimeError, KeyboardInterrupt) as raised:
        assert type(raised) is error and "on purpose" in str(raised)  # noqa: PT017
    assert equal(before, snapshot(model))


def test_buffers_keep_their_identity():
    model = nn.BatchNorm1d(3)
    running = model.running_mean
    with preserved(model):
        model(torch.randn(8, 3))
    assert model.running_mean is running
    assert torch.equal(running, torch.zeros(3))


class Reassigns(nn.Module):
    """Its forward assigns buffers, a plain tensor and a counter, and makes a buffer that was None."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("average", torch.zeros(4))
        self.register_buffer("late", None)
        self.register_buffer("unused", torch.tensor([float("nan"), 1.0]))
        self.plain, self.calls = torch.zeros(4), 0

    def forward(self, x):
        self.average = 0.9 * self.average + 0.1 * x.detach().mean(0)
        self.plain = self.plain + 1
        self.late = x.detach()
        self.calls += 1
        return self.linear(x)


def test_what_forward_assigns_is_set_back():
    model = Reassigns()
    buffers, plain = dict(model._buffers), model.plain
    versions = {name: buffer._version for name, buffer in model.named_buffers()}
    found = measure(model, nn.CrossEntropyLoss(), [(torch.randn(6, 4), torch.randint(3, (6,)))], progress=False)
    assert found["linear"].arrays.h.size == 2
    assert model._buffers == buffers and all(model._buffers[name] is buffers[name] for name in buffers)
    assert torch.equal(model.average, torch.zeros(4)) and model.late is None
    assert model.plain is plain and torch.equal(plain, torch.zeros(4)) and model.calls == 0
    assert {name: buffer._version for name, buffer in model.named_buffers()} == versions


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm])
@pytest.mark.parametrize("train", [True, False])
def test_spectral_norm_does_not_move(norm, train):
    torch.manual_seed(0)
    model = nn.Sequential(norm(nn.Linear(4, 4), n_power_iterations=60), nn.Linear(4, 3)).train(train)
    batch = torch.randn(6, 4), torch.randint(3, (6,))
    model(batch[0])
    before = {name: (buffer, buffer.clone()) for name, buffer in model.named_buffers()}
    weight = vars(model[0]).get("weight")
    for call in (measure, directional_curvature):
        call(model, nn.CrossEntropyLoss(), [batch], progress=False)
    for name, buffer in model.named_buffers():
        assert buffer is before[name][0] and torch.equal(buffer, before[name][1]), name
    assert vars(model[0]).get("weight") is weight


def test_a_buffer_that_moves_the_output_is_named():
    class Drifts(Reassigns):
        def forward(self, x):
            return super().forward(x) * self.average.square().sum()

    for call in (measure, directional_curvature):
        with pytest.raises(ValueError, match="changes the buffer 'average'"):
            call(Drifts(), nn.CrossEntropyLoss(), [(torch.randn(6, 4), torch.randint(3, (6,)))], progress=False)


def test_hooks_that_forward_adds_or_removes_stay_as_the_user_made_them():
    class Hooks(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.added, self.seen = nn.Linear(4, 3), False, []
            self.once = self.linear.register_forward_hook(self.remove)

        def remove(self, *_):
            self.once.remove()

        def forward(self, x):
            if not self.added:
                self.added = True
                self.linear.register_forward_pre_hook(lambda *_: self.seen.append(1))
            return self.linear(x)

    model = Hooks()
    keep = model.linear.register_forward_hook(lambda *_: None)
    measure(model, nn.CrossEntropyLoss(), [(torch.randn(6, 4), torch.randint(3, (6,)))], progress=False)
    assert list(model.linear._forward_hooks) == [keep.id]
    assert len(model.linear._forward_pre_hooks) == 1 and model.seen
    assert not model._forward_hooks and not model.linear._backward_hooks


def test_tracing_modes_that_an_interrupt_leaves_on_are_left():
    from torch._subclasses.fake_tensor import FakeTensorMode

    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    values = {name: value.clone() for name, value in model.state_dict().items()}

    def interrupted():
        with preserved(model):
            model(torch.randn(4, 3))
            FakeTensorMode().__enter__()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert type(torch.ones(2) + 1) is torch.Tensor
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
