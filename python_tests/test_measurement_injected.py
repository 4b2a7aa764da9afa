"""Exceptions at any call inside a measurement: model, random generators and flags are as before afterwards.

``SPECTRAL_EXT_INJECTIONS=400`` raises the number of exceptions per target; the default keeps the suite short.
"""

import inspect
import os
import random
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spectral_ext
from spectral_ext import LandscapeTracker, directional_curvature, measure

POINTS = int(os.environ.get("SPECTRAL_EXT_INJECTIONS", "10"))
PACKAGE = str(Path(spectral_ext.__file__).parent)
ERRORS = (RuntimeError, KeyboardInterrupt, torch.OutOfMemoryError, ValueError, SystemExit)


class Net(nn.Module):
    """Buffers in place, reassigned and with NaN, hooks of the user's, a parametrization, a frozen weight, two modes."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.blocks = nn.ModuleList([nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4))] * 1)
        self.spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
        self.frozen, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
        self.register_buffer("average", torch.zeros(4))
        self.register_buffer("not_a_number", torch.tensor([float("nan"), 1.0]))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        x = F.relu(self.norm(self.conv(x))).mean((2, 3))
        self.average = 0.9 * self.average + 0.1 * x.detach().mean(0)
        for block in self.blocks:
            x = x + block(x)
        return self.head(self.frozen(self.spectral(x)))


def hook(*_):
    pass


def loss_fn(output, target):
    return F.cross_entropy(output, target)


def build():
    torch.manual_seed(0)
    net = Net().train()
    net.spectral.eval().parametrizations.weight.eval()
    net.frozen.weight.requires_grad_(False)
    net.conv.register_forward_hook(hook)
    net.head.register_forward_pre_hook(hook)
    net.norm.register_full_backward_hook(hook)
    x, y = torch.randn(8, 2, 4, 4), torch.randint(3, (8,))
    loss_fn(net(x), y).backward()
    return net, [(x[:4], y[:4]), (x[4:], y[4:])]


def snapshot(net):
    state = {}
    for name, module in net.named_modules():
        hooks = {key: list(value) for key, value in vars(module).items() if "hook" in key and isinstance(value, dict)}
        plain = {key: value for key, value in vars(module).items() if isinstance(value, (int, float, str))}
        state["module", name] = hooks, plain, sorted(vars(module)), type(module), vars(module).get("forward")
        state["buffers", name] = [(key, id(buffer), _bytes(buffer)) for key, buffer in module._buffers.items()]
    for name, p in net.named_parameters():
        state["parameter", name] = id(p), p.requires_grad, _bytes(p), id(p.grad), _bytes(p.grad), p._backward_hooks
    generators = torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()
    backends = torch.backends
    state["global"] = (
        generators, torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype(),
        torch.get_float32_matmul_precision(), backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32,
        backends.cudnn.benchmark, backends.cudnn.deterministic, torch.are_deterministic_algorithms_enabled(),
        backends.mha.get_fastpath_enabled(), backends.cuda.flash_sdp_enabled(), backends.cuda.math_sdp_enabled(),
        backends.cuda.mem_efficient_sdp_enabled(), torch.is_autocast_enabled("cpu"), torch.is_anomaly_enabled(),
        torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack(), str(np.geterr()),
        len(nn.modules.module._global_forward_hooks), len(nn.modules.module._global_forward_pre_hooks),
        torch.autograd.forward_ad._current_level, [id(value) for value in vars(F).values()],
    )  # fmt: skip
    return state


def _bytes(tensor):
    return None if tensor is None else tensor.detach().numpy().tobytes()


class Trip:
    """A profile function that raises at the n-th call of a function of the package, of the model or of the loss.

    What restores is left out (an exception there is one too many), and so are generators, whose resumption Python
    reports as a call although no exception can enter them there.
    """

    def __init__(self, at=None, error=None):
        self.count, self.at, self.error = 0, at, error

    def __call__(self, frame, event, argument):
        code = frame.f_code
        if event != "call" or code.co_flags & inspect.CO_GENERATOR:
            return
        if not code.co_filename.startswith(PACKAGE) and code not in CODES:
            return
        if code.co_filename.endswith("preserve.py"):
            return
        self.count += 1
        if self.count == self.at:
            sys.setprofile(None)
            raise self.error(f"injected into {code.co_name}")


CODES = {Net.forward.__code__, hook.__code__, loss_fn.__code__}


def run(target, net, data, trip):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sys.setprofile(trip)
        try:
            TARGETS[target](net, data)
        finally:
            sys.setprofile(None)


TARGETS = {
    "measure": lambda net, data: measure(net, loss_fn, data, progress=False, top_k=3),
    "double backward": lambda net, data: measure(
        net, loss_fn, data, progress=False, top_k=2, method="double_backward_output", layers=["conv", "head"]
    ),
    "directional_curvature": lambda net, data: directional_curvature(net, loss_fn, data, top_k=2, split=True),
    "tracker": lambda net, data: LandscapeTracker(
        net, loss_fn, data, on_error="raise", top_k=2, layers="head"
    ).measure(),
}


@pytest.mark.parametrize("target", list(TARGETS))
def test_everything_is_restored(target):
    net, data = build()
    TARGETS[target](net, data)  # what is loaded and compiled once is not counted
    counting = Trip()
    before = snapshot(net)
    run(target, net, data, counting)
    assert snapshot(net) == before
    assert counting.count > 100
    raised = 0
    for index in range(POINTS):
        error = ERRORS[index % len(ERRORS)]
        try:
            run(target, net, data, Trip(1 + index * (counting.count - 1) // (POINTS - 1), error))
        except BaseException as found:
            assert "injected" in f"{found} {found.__cause__} {found.__context__}"  # noqa: PT017
            raised += 1
        after = snapshot(net)
        assert after == before, (target, index, [key for key in before if after.get(key) != before[key]])
    assert raised > POINTS // 2  # under auto a failure of a fast method chooses another
