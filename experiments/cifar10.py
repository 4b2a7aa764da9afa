"""CIFAR-10 as arrays from the JPEG-coded archive in ``../shared/data``: lossy (median 30.7 dB); say so."""

from __future__ import annotations

import io
import lzma
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

ARCHIVE = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10_jpeg.npz.xz"
MEAN = torch.tensor([0.4914, 0.4822, 0.4465]).view(1, 3, 1, 1)
STD = torch.tensor([0.2470, 0.2435, 0.2616]).view(1, 3, 1, 1)


class Images(NamedTuple):
    """Normalised float32 images (N, 3, 32, 32) in channels_last memory, and int64 labels (N,)."""

    x: Tensor
    y: Tensor


def _decode(data: np.ndarray, ends: np.ndarray, sizes: np.ndarray, labels: np.ndarray, index: np.ndarray) -> Images:
    raw = np.stack(
        [np.asarray(Image.open(io.BytesIO(data[ends[i] - sizes[i] : ends[i]].tobytes())).convert("RGB")) for i in index]
    )
    x = torch.from_numpy(raw).permute(0, 3, 1, 2).float() / 255
    x = ((x - MEAN) / STD).contiguous(memory_format=torch.channels_last)
    return Images(x, torch.from_numpy(labels[index].astype(np.int64)))


def load(train: int = 12_000, validation: int = 5_000, test: int = 10_000) -> tuple[Images, Images, Images]:
    """The first ``train`` training images, the next ``validation`` training images, and the first ``test`` test images.

    Raises:
        FileNotFoundError: the archive is not there.
    """
    if not ARCHIVE.exists():
        raise FileNotFoundError(f"{ARCHIVE} is missing: the experiment needs the JPEG-coded CIFAR-10 archive")
    with np.load(io.BytesIO(lzma.open(ARCHIVE).read())) as archive:
        data, sizes, labels, split = (archive[key] for key in ("data", "size", "label", "split"))
    sizes = sizes.astype(np.int64)
    ends = np.cumsum(sizes)
    first, last = np.flatnonzero(split == 0), np.flatnonzero(split == 1)
    parts = first[:train], first[train : train + validation], last[:test]
    return tuple(_decode(data, ends, sizes, labels, index) for index in parts)  # type: ignore[return-value]


def load_cached(cache: Path | None) -> tuple[Images, Images, Images]:
    """``load()``, kept in a file between calls if one is given."""
    if cache is None:
        return load()
    if not cache.exists():
        torch.save([tuple(part) for part in load()], cache)
    return tuple(Images(*part) for part in torch.load(cache, weights_only=True))  # type: ignore[return-value]
