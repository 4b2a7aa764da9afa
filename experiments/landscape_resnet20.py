"""The landscape of a trained ResNet-20 on CIFAR-10: wall time and peak memory of the whole measurement.

Needs the trained weights (akamaster/pytorch_resnet_cifar10) and the images in ../shared/data.
Writes results/landscape_resnet20.json.

    python experiments/landscape_resnet20.py [--samples 256] [--batch 64] [--top-k 20] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_ext.landscape import Landscape, measure

DATA = Path(__file__).parents[2] / "shared" / "data"
RESULT = Path(__file__).parent / "results" / "landscape_resnet20.json"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Block(nn.Module):
    """Two 3×3 convolutions; the shortcut subsamples and pads channels with zeros (option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.extra = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.extra:
            half = self.extra // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, half))
        return F.relu(out + x)


class ResNet20(nn.Module):
    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(Block(16, 32, 2), *(Block(32, 32, 1) for _ in range(2)))
        self.layer3 = nn.Sequential(Block(32, 64, 2), *(Block(64, 64, 1) for _ in range(2)))
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def trained_model() -> ResNet20:
    state = torch.load(DATA / "resnet20-12fca82f.th", weights_only=True, map_location="cpu")["state_dict"]
    model = ResNet20()
    model.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    return model.eval()


def images(samples: int, batch: str) -> tuple[Tensor, Tensor]:
    """The first samples of one file (``data_batch_1`` … ``test_batch``) of the exact CIFAR-10 images, normalised."""
    with np.load(DATA / "cifar10_lossless_4566.npz") as file:
        x, y = (torch.from_numpy(file[f"{batch}_{part}"][:samples]) for part in ("x", "y"))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (x.float() / 255 - mean) / std, y.long()


def report(landscape: Landscape, seconds: float) -> dict:
    """What the JSON holds: cost, and one line a layer."""
    convolutions = [row for row in landscape.values() if row.kind == "Conv2d"]
    rows = {
        name: {
            "alpha": row.alpha.value,
            "alpha_interval": row.alpha.interval,
            "r2": row.alpha.r2,
            "beta": row.beta.value,
            "phi": row.phi.value,
            "gamma": row.gamma.value,
            "s": row.s.value,
            "alpha_gamma": row.alpha_gamma,
            "transfer": row.transfer.verdict,
            "rank_model": row.rank_models.best,
            "factor_match": row.factor_match,
            "concentration": float(np.median(row.arrays.concentration)),
            "pr_curvature": row.pr_curvature,
            "pr_gradient": row.pr_gradient,
            "spectrum_ks": row.prediction.ks if row.prediction else None,
            "recommended_alpha": row.recommendation.alpha if row.recommendation else None,
            "kronecker": row.recommendation.kronecker_justified if row.recommendation else None,
            "method": row.method,
        }
        for name, row in landscape.items()
    }
    return {
        "seconds": round(seconds, 2),
        "peak_MiB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "threads": torch.get_num_threads(),
        "median_alpha_conv": statistics.median(row.alpha.value for row in convolutions) if convolutions else None,
        "meta": landscape.meta,
        "layers": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in (("samples", 256), ("batch", 64), ("top-k", 20), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--data", default="test_batch")
    parser.add_argument("--save", type=Path, help="folder for the whole landscape")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, (x, y) = trained_model(), images(options.samples, options.data)
    batches = list(zip(x.split(options.batch), y.split(options.batch), strict=True))
    start = time.perf_counter()
    landscape = measure(model, nn.CrossEntropyLoss(), batches, top_k=options.top_k, progress=False)
    seconds = time.perf_counter() - start
    print(landscape)
    found = report(landscape, seconds)
    print({key: found[key] for key in ("seconds", "peak_MiB", "median_alpha_conv")}, landscape.meta["seconds"])
    RESULT.write_text(json.dumps(found, indent=1) + "\n")
    if options.save:
        landscape.save(options.save)


if __name__ == "__main__":
    main()
