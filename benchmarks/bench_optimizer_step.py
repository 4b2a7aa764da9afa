"""One whole ``optimizer.step()`` over the parameters of ResNet-18 (ImageNet, 11.7 M): SpectralNewton beside AdamW,
torch's Muon with convolutions flattened and AdamW for the rest, and SOAP (package pytorch-optimizer) where it is
installed. And what a tracker costs that the optimizer follows, as a share of the steps between two measurements.

    python -m benchmarks optimizer_step
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.harness import Row, interleaved
from benchmarks.peer_optimizers import FlattenedMuon, sort_parameters
from examples.small_resnet import SmallResNet, load_images
from spectral_ext.optim import SpectralNewton
from spectral_ext.tracker import LandscapeTracker

PEER = "torch Muon + AdamW"


class ResNet18Weights(nn.Module):
    """The layers of ResNet-18 in order, without a forward pass: a step needs weights and gradients only."""

    def __init__(self, widths: tuple[int, ...] = (64, 128, 256, 512), classes: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 7, bias=False), nn.BatchNorm2d(widths[0])]
        inputs = widths[0]
        for width in widths:
            for block in range(2):
                kernels = [(inputs, 3), (width, 3), *([(inputs, 1)] if block == 0 and inputs != width else [])]
                for channels, size in kernels:
                    layers += [nn.Conv2d(channels, width, size, bias=False), nn.BatchNorm2d(width)]
                inputs = width
        self.layers = nn.ModuleList([*layers, nn.Linear(inputs, classes)])


def set_gradients(model: nn.Module) -> None:
    """Matrices with singular values near k^−1.5, as gradients have them in the middle of training; noise elsewhere."""
    for parameter in model.parameters():
        gradient = torch.randn_like(parameter)
        if parameter.dim() > 1:
            rows = gradient.flatten(1)
            rank = torch.arange(1, len(rows) + 1, dtype=rows.dtype)
            mixing = torch.randn(len(rows), len(rows)) / len(rows) ** 0.5
            gradient = (mixing * rank**-1.5 @ rows).reshape(gradient.shape)
        parameter.grad = 1e-2 * gradient


def steps(model: nn.Module, quick: bool) -> dict[str, Callable[[], object]]:
    """One step of each optimizer; they share the weights, and the gradients stay."""
    matrices, rest = sort_parameters(model)
    muon = FlattenedMuon(matrices, lr=1e-4)
    muon_rest = torch.optim.AdamW(rest, 1e-4)
    methods: dict[str, Callable[[], object]] = {
        PEER: lambda: (muon.step(), muon_rest.step()),
        "AdamW": torch.optim.AdamW(model.parameters(), 1e-4).step,
        "SpectralNewton": SpectralNewton(model, 1e-4).step,
    }
    settings: dict[str, dict[str, Any]] = {
        "absolute damping, update scale spectral": {"damping_mode": "absolute", "update_scale": "spectral"},
        "spectral damping, alpha=1.5": {"damping_mode": "spectral", "alpha": 1.5},
        **{f"alpha={alpha:g}": {"alpha": alpha} for alpha in (0.5, 1.0, 1.5, 3.0, 4.5)},
    }
    for name, options in settings.items():
        methods[f"SpectralNewton, {name}"] = SpectralNewton(model, 1e-4, **options).step
    try:
        from pytorch_optimizer import SOAP
    except ImportError:
        print("pytorch-optimizer is not installed: no SOAP (pip install --no-deps pytorch-optimizer)")
    else:
        if not quick:
            methods["SOAP, preconditioner every 10 steps"] = SOAP(model.parameters(), 1e-4).step
    return methods


def tracker_overhead(quick: bool, every: int = 100, batch: int = 256, samples: int = 8) -> list[Row]:
    """A measurement by sampled Gauss–Newton along the momentum, beside ``every`` training steps of the small ResNet."""
    model, images = SmallResNet(), load_images(batch + samples, 1)
    x, y = images.train[:batch], images.train_labels[:batch]
    optimizer, loss = SpectralNewton(model), nn.CrossEntropyLoss()
    held = [(images.train[batch:], images.train_labels[batch:])]
    tracker = LandscapeTracker(model, loss, held, every=1, unit="step", optimizer=optimizer, top_k=8)

    def step() -> None:
        model.train()
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()

    step()
    timings = interleaved({"step": step, "measurement": tracker.step}, "step", rounds=1 if quick else 5)
    share = 1 / timings["measurement"].ratio / every
    case = f"small ResNet, batch {batch}, tracker on {samples} images every {every} steps"
    return [
        Row(case, name, 1e3 * timing.seconds, timing.ratio, extra={"overhead": share})
        for name, timing in timings.items()
    ]


def bench(quick: bool = False) -> list[Row]:
    torch.manual_seed(0)
    model = ResNet18Weights((16, 32, 64, 128) if quick else (64, 128, 256, 512))
    set_gradients(model)
    timings = interleaved(steps(model, quick), PEER, rounds=3 if quick else 5)
    case = "ResNet-18 at a quarter of the width" if quick else "ResNet-18"
    rows = [Row(case, name, 1e3 * timing.seconds, timing.ratio) for name, timing in timings.items()]
    return rows + tracker_overhead(quick)
