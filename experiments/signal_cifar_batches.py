"""How far the interval of the data of one batch can be trusted: 12 disjoint batches of a trained ResNet-20.

Each batch of 256 images is measured by itself with ``folds=8``. For each layer and exponent: does the interval of one
batch cover the mean of the other eleven, measured at the same size? How α moves with the size is measured apart, on
the first batches joined. Beside it stands what the folds and the noise level say of each layer.

Needs the weights and the JPEG-coded CIFAR-10 test images (lossy, median 30.7 dB) in ../shared/data.
Writes results/signal_cifar_batches.json.

    python -m experiments.signal_cifar_batches [--batches 12] [--samples 256] [--threads 2] [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import io
import json
import lzma
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from experiments.landscape_resnet20 import DATA, MEAN, STD, trained_model
from spectral_ext.landscape import Landscape, measure

RESULT = Path(__file__).parent / "results" / "signal_cifar_batches.json"
EXPONENTS = ("alpha", "beta", "phi", "gamma", "s")


def jpeg_images(count: int, split: int = 1) -> tuple[Tensor, Tensor]:
    """The first ``count`` JPEG-coded CIFAR-10 images (split 0: train, 1: test), normalised, and their labels."""
    with lzma.open(DATA / "cifar10_jpeg.npz.xz") as file, np.load(io.BytesIO(file.read())) as arrays:
        data, size, label, of = (arrays[name] for name in ("data", "size", "label", "split"))
    ends = np.cumsum(size)
    chosen = np.flatnonzero(of == split)[:count]
    pixels = np.stack(
        [np.asarray(Image.open(io.BytesIO(data[ends[i] - size[i] : ends[i]].tobytes())).convert("RGB")) for i in chosen]
    )
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    x = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - mean) / std
    return x, torch.from_numpy(label[chosen].astype(np.int64))


def coverage(landscapes: list[Landscape], intervals: str) -> dict:
    """Per exponent and layer: the share of batches whose interval covers the mean of the others."""
    found: dict = {}
    for exponent in EXPONENTS:
        layers = {}
        for name in landscapes[0]:
            values = np.array([getattr(one[name], exponent).value for one in landscapes])
            ends = []
            for one in landscapes:
                held = one[name].data_intervals if intervals == "data" else None
                ends.append(getattr(held, exponent) if held else getattr(one[name], exponent).interval)
            use = np.isfinite(values) & np.isfinite(np.array(ends)).all(1)
            if use.sum() < 3:
                continue
            values, low, high = values[use], *np.array(ends)[use].T
            others = (values.sum() - values) / (len(values) - 1)
            layers[name] = {
                "mean": float(values.mean()),
                "sd over batches": float(values.std(ddof=1)),
                "median half-width": float(np.median(high - low) / 2),
                "covered": int(((low <= others) & (others <= high)).sum()),
                "batches": int(use.sum()),
            }
        hits, trials = sum(one["covered"] for one in layers.values()), sum(one["batches"] for one in layers.values())
        shares = [one["covered"] / one["batches"] for one in layers.values()]
        found[exponent] = {"coverage": hits / trials, "lowest layer": min(shares), "layers": layers}
    return found


def kept(folder: Path | None, measured: Callable[[], Landscape]) -> Landscape:
    """The landscape in the folder, measured and saved there if it is not there yet."""
    if folder is not None and folder.exists():
        return Landscape.load(folder)
    landscape = measured()
    print(folder, landscape.meta["loss"], landscape.meta["seconds"], flush=True)
    if folder is not None:
        landscape.save(folder)
    return landscape


def other_sizes(model: nn.Module, x: Tensor, y: Tensor, folder: Path | None) -> dict[int, list[Landscape]]:
    """The first 1,024 images cut into batches of 128, 512 and 1,024, without folds."""
    found: dict[int, list[Landscape]] = {}
    for size in (128, 512, 1024):
        for start in range(0, 1024, size):
            parts = (data[start : start + size].split(64) for data in (x, y))
            batches = list(zip(*parts, strict=True))
            place = folder / f"size_{size:04d}_{start:04d}" if folder else None
            plain = partial(measure, model, nn.CrossEntropyLoss(), batches, progress=False, split=False)
            found.setdefault(size, []).append(kept(place, plain))
    return found


def drift(by_size: dict[int, list[Landscape]]) -> dict:
    """α by size, a mean over the batches of that size, which are the same images for all sizes."""
    found = {}
    for size, runs in sorted(by_size.items()):
        layers = {name: statistics.fmean(one[name].alpha.value for one in runs) for name in runs[0]}
        found[size] = {"batches": len(runs), "median alpha": statistics.median(layers.values()), "layers": layers}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in (("batches", 12), ("samples", 256), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--keep", type=Path, help="folder for the landscapes; those already there are not repeated")
    parser.add_argument("--sizes-first", action="store_true", help="begin with the landscapes of other sizes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = trained_model()
    x, y = jpeg_images(options.batches * options.samples)
    if options.sizes_first:
        other_sizes(model, x, y, options.keep)
    landscapes = []
    for index in range(options.batches):
        part = slice(index * options.samples, (index + 1) * options.samples)
        batches = list(zip(x[part].split(64), y[part].split(64), strict=True))
        place = options.keep / f"batch_{index:02d}" if options.keep else None
        landscapes.append(kept(place, partial(measure, model, nn.CrossEntropyLoss(), batches, folds=8, progress=False)))
    found = {
        "data": f"{options.batches} disjoint batches of {options.samples} JPEG-coded CIFAR-10 test images, eval mode",
        "loss": [one.meta["loss"] for one in landscapes],
        "interval of the data": coverage(landscapes, "data"),
        "interval of the fit": coverage(landscapes, "fit"),
        "resolved": {name: [one[name].signal.resolved for one in landscapes] for name in landscapes[0]},
        "beyond noise": {
            name: [one[name].noise.num_beyond if one[name].noise else None for one in landscapes]
            for name in landscapes[0]
        },
        "noise alpha": {name: [one[name].noise_alpha for one in landscapes] for name in landscapes[0]},
        "alpha by size": drift({options.samples: landscapes[:4], **other_sizes(model, x, y, options.keep)}),
    }
    for kind in ("interval of the data", "interval of the fit"):
        print(kind, {key: (round(v["coverage"], 3), round(v["lowest layer"], 3)) for key, v in found[kind].items()})
    RESULT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
