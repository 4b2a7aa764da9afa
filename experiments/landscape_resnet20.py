"""The landscape of a trained ResNet-20 on exact CIFAR-10 images, on both splits: own batch and held out.

The network never saw the test images; it was trained on the training images. Both are measured: 256 images of the
split, eight groups, eval mode. Needs the weights (akamaster/pytorch_resnet_cifar10) and the exact images in the data
folder (see ``experiments/data.py``). A split is a line of the journal; the cost of the measurement stands in it.

    python -m experiments.landscape_resnet20 [--samples 256] [--batch 64] [--top-k 20] [--threads 1]
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.data import ROOT, DataError, data_folder
from experiments.journal import JOURNAL, Journal, StaleResultError, digest, journal_here
from experiments.networks import ResNet, cross_entropy, resnet20
from experiments.pretrained import options_of
from experiments.summary import landscape_record
from spectral_ext import measure

DATA = ROOT.parent / "shared" / "data"
WEIGHTS, IMAGES = "resnet20-12fca82f.th", "cifar10_lossless_4566.npz"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SPLITS = {"train": "training images, which the network was trained on", "test": "test images, which it never saw"}


def _file(name: str, folder: str | Path | None) -> Path:
    where = data_folder(folder)
    if where is None or not (where / name).exists():
        raise FileNotFoundError(f"{name} is missing: put it into the folder that --data or SPECTRAL_EXT_DATA names")
    return where / name


def trained_model(folder: str | Path | None = None) -> ResNet:
    """The network with its trained weights, in eval mode.

    Raises:
        FileNotFoundError: the weights are not there.
        DataError: the file is damaged or holds other weights.
    """
    path = _file(WEIGHTS, folder)
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
        model = resnet20()
        names = {key: key.removeprefix("module.").replace("linear.", "fc.") for key in state}
        model.load_state_dict({names[key]: value for key, value in state.items()})
    except (RuntimeError, KeyError, EOFError, OSError) as error:
        raise DataError(f"{path} is damaged, or no ResNet-20 ({error}): fetch it again") from error
    return model.eval()


def images(samples: int, split: str, folder: str | Path | None = None) -> tuple[Tensor, Tensor]:
    """The first exact images of a split, ``train`` or ``test``, normalised as the network was trained."""
    batches = ("test_batch",) if split == "test" else tuple(f"data_batch_{i}" for i in range(1, 6))
    with np.load(_file(IMAGES, folder)) as file:
        parts = [[torch.from_numpy(file[f"{b}_{part}"]) for b in batches if f"{b}_{part}" in file] for part in "xy"]
    x, y = (torch.cat(part)[:samples] for part in parts)
    if len(y) < samples:
        raise DataError(f"{IMAGES} holds {len(y)} images of the split {split!r}, not {samples}: ask for fewer")
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (x.float() / 255 - mean) / std, y.long()


def measured(split: str, options: argparse.Namespace) -> dict[str, Any]:
    """The record of a split: all layers, the medians over the convolutions, seconds and peak memory."""
    model, (x, y) = trained_model(options.data), images(options.samples, split, options.data)
    with torch.no_grad():
        accuracy = 100 * float((model(x).argmax(1) == y).float().mean())
    batches = list(zip(x.split(options.batch), y.split(options.batch), strict=True))
    start = time.perf_counter()
    landscape = measure(model, cross_entropy, batches, top_k=options.top_k, folds=8, progress=False)
    seconds = time.perf_counter() - start
    found = landscape_record(model, landscape, arrays=False)
    convolutions = [one for one in found["layers"].values() if one["type"] == "conv"]
    resolved = [one["resolved"] for one in found["layers"].values()]
    return found | {
        "split": split,
        "accuracy": accuracy,
        "median_alpha_conv": statistics.median(one["alpha"][0] for one in convolutions),
        "resolved_share": sum(n for n, _ in resolved) / sum(n for _, n in resolved),
        "seconds": round(seconds, 1),
        "peak_MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def main(argv: list[str] | None = None) -> int:
    options = options_of(argv, __doc__, {"samples": 256, "batch": 64, "top-k": 20})
    try:
        journal = Journal(journal_here(JOURNAL, options.journal))
        for split, what in SPLITS.items():
            key = f"pretrained/resnet20/{split}"
            settings = {"samples": options.samples, "batch": options.batch, "top_k": options.top_k, "folds": 8}
            record = journal.get(key, settings)
            if record is None:
                x, _ = images(options.samples, split, options.data)
                source = {"name": "cifar10", "source": IMAGES, "split": split, "samples": len(x), "weights": WEIGHTS}
                source["digest"] = digest(x.double().sum((1, 2, 3)).tolist())
                record = journal.add(key, settings, measured(split, options), seed=None, data=source)
            found = record["result"]
            print(
                f"{what}: {found['accuracy']:.1f} % right, loss {found['loss']:.3f}; median α of the convolutions "
                f"{found['median_alpha_conv']:.2f}, {100 * found['resolved_share']:.0f} % of directions hold on other "
                f"images; {found['seconds']} s, {found['peak_MiB']} MiB"
            )
    except (DataError, StaleResultError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
