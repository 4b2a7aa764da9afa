"""Runs on a device what users run, beside the same on the host: measure, curvature, tracker, accumulator, optimizer.

    python tools/gpu_measure.py --out measure.json [--device cpu]

Every case is guarded, prints its time, and is written as soon as it ends: ``ok``, ``seconds``, and the largest relative
deviation from the host in float64 (``error``) with its limit. ``--device cpu`` rehearses with small sizes.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from examples.small_resnet import SmallResNet
from spectral_ext import KroneckerAccumulator, SpectralNewton, directional_curvature, measure, spectral_newton
from spectral_ext.tracker import LandscapeTracker

LIMIT = 2e-3
"""Float32 curvature sums many products; tensor cores truncate their sums, which adds up to 1.2e-6 a product."""


def relative(got: Tensor, want: Tensor) -> float:
    want = want.detach().double().cpu()
    return float((got.detach().double().cpu() - want).norm() / want.norm().clamp_min(1e-300))


def network(device: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """The demo's ResNet with random weights in eval mode, and 32 images in two batches."""
    torch.manual_seed(0)
    model = SmallResNet().eval().to(device, dtype)
    images, target = torch.randn(32, 1, 28, 28), torch.randint(10, (32,))
    return model, [(x.to(device, dtype), y.to(device)) for x, y in zip(images.split(16), target.split(16))]


def case_landscape(device: str) -> float:
    """σ and the quadratic forms of both factors of every layer: float32 on the device, float64 on the host.

    h itself is compared by directional_curvature, along the same directions on both.
    """
    found = measure(*_task(device), top_k=5, progress=False)
    want = measure(*_task("cpu", torch.float64), top_k=5, progress=False)
    pairs = [(found[name].arrays, want[name].arrays) for name in want]
    fields = ("sigma", "output_quotient", "input_quotient")
    return max(
        relative(torch.as_tensor(getattr(got, field)), torch.as_tensor(getattr(exact, field)))
        for got, exact in pairs
        for field in fields
    )


def _task(device: str, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    model, batches = network(device, dtype)
    return model, nn.functional.cross_entropy, batches


def case_directional_curvature(device: str) -> float:
    model, loss, batches = _task("cpu", torch.float64)
    want = directional_curvature(model, loss, batches, top_k=5)
    directions = {name: (layer.U, layer.V) for name, layer in want.items()}
    on_device = {name: (u.to(device).float(), v.to(device).float()) for name, (u, v) in directions.items()}
    got = directional_curvature(*_task(device), directions=on_device)
    return max(relative(got[name].h, want[name].h) for name in want)


def case_tracker(device: str) -> float:
    model, loss, batches = _task(device)
    tracker = LandscapeTracker(model, loss, batches, every=1, unit="step", on_error="raise", top_k=3, progress=False)
    tracker.start()
    optimizer = SpectralNewton(model, lr=0.01)
    for x, y in batches:
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
        tracker.step()
    assert len(tracker.track) == 3, f"{len(tracker.track)} landscapes"
    return 0.0


def case_accumulator(device: str) -> float:
    torch.manual_seed(0)
    layer = nn.Conv2d(32, 32, 3, padding=1)
    x, delta = torch.randn(16, 32, 8, 8), torch.randn(16, 32, 8, 8)
    factors = []
    for to in (lambda t: t.double(), lambda t: t.to(device)):
        accumulator = KroneckerAccumulator.for_module(layer)
        for a, d in zip(x.split(8), delta.split(8)):
            accumulator.update(to(a), to(d))
        factors.append(accumulator.factors())
    return max(relative(got, want) for want, got in zip(*factors))


def case_optimizer(device: str) -> float:
    torch.manual_seed(0)
    host = nn.Sequential(nn.Linear(48, 96), nn.ReLU(), nn.Linear(96, 24))
    other = copy.deepcopy(host).to(device)
    optimizers = SpectralNewton(host, 0.02), SpectralNewton(other, 0.02)
    for _ in range(4):
        for p, q in zip(host.parameters(), other.parameters()):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.to(device)
        for optimizer in optimizers:
            optimizer.step()
    return max(relative(q, p) for p, q in zip(host.parameters(), other.parameters()))


def captured(n: int) -> Callable[[str], float]:
    """A captured step of an n × n matrix: two replays equal two eager steps."""

    def case(device: str) -> float:
        n_here = n if device == "cuda" else 48
        torch.manual_seed(0)
        eager = nn.Linear(n_here, n_here, bias=False).to(device)
        graphed = copy.deepcopy(eager)
        gradient = torch.randn_like(eager.weight)
        lr = torch.tensor(0.02, device=device)
        settings: dict[str, Any] = {"lr": lr, "capturable": True, "nonfinite": "skip"}
        a, b = SpectralNewton(eager, **settings), SpectralNewton(graphed, **settings)
        eager.weight.grad, graphed.weight.grad = gradient.clone(), gradient.clone()
        if device != "cuda":
            a.step(), b.step()
            return relative(graphed.weight, eager.weight)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            b.step()
        torch.cuda.current_stream().wait_stream(side)
        a.step()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            b.step()
        for _ in range(2):
            gradient.normal_()
            eager.weight.grad.copy_(gradient)
            graphed.weight.grad.copy_(gradient)
            a.step()
            graph.replay()
        torch.cuda.synchronize()
        return relative(graphed.weight, eager.weight)

    return case


def case_two_streams(device: str) -> float:
    """Two problems at once on two streams: each as if it were alone."""
    torch.manual_seed(0)
    G = [torch.randn(96, 160, device=device) for _ in range(2)]
    alone = [spectral_newton(g, 1.0, 0.1) for g in G]
    if device == "cuda":
        streams = [torch.cuda.Stream() for _ in G]
        torch.cuda.synchronize()
        together: list[Tensor] = [torch.empty(0)] * 2
        for _ in range(20):
            for i, stream in enumerate(streams):
                with torch.cuda.stream(stream):
                    together[i] = spectral_newton(G[i], 1.0, 0.1)
        torch.cuda.synchronize()
    else:
        together = [spectral_newton(g, 1.0, 0.1) for g in G]
    return max(relative(got, want) for got, want in zip(together, alone))


CASES: dict[str, Callable[[str], float]] = {
    "accumulator": case_accumulator,
    "optimizer": case_optimizer,
    "graph n=768": captured(768),
    "graph n=1024": captured(1024),
    "two streams": case_two_streams,
    "directional_curvature": case_directional_curvature,
    "measure": case_landscape,
    "tracker": case_tracker,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    arguments = parser.parse_args()
    table: dict[str, dict[str, Any]] = {}
    for name in arguments.only:
        started = time.monotonic()
        try:
            error = CASES[name](arguments.device)
            table[name] = {"ok": error <= LIMIT, "error": error, "limit": LIMIT}
        except Exception as problem:
            table[name] = {"ok": False, "failed": f"{type(problem).__name__}: {problem}"}
        table[name]["seconds"] = round(time.monotonic() - started, 2)
        print(name, table[name], flush=True)
        arguments.out.write_text(json.dumps(table, indent=1) + "\n")
    return 0 if all(row["ok"] for row in table.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
