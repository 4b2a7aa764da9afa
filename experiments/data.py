"""The data of the experiments, as tensors: images and text, from a user's folder or from what the project carries.

A folder is looked for in this order: the argument ``folder`` (``--data``), the environment variable SPECTRAL_EXT_DATA,
``../shared/data``. In it may lie JPEG-coded archives (``cifar10_jpeg.npz.xz``, ``tiny32_jpeg.npz.xz``), what
torchvision keeps of CIFAR-10 and CIFAR-100, a folder ``tiny-imagenet-200``, and ``tinyshakespeare.txt``. Without any of
these, images are the subset of Fashion-MNIST in ``examples/data`` and text is the project's own documentation. What
stands in for what is named in ``Data.substitutions``, which goes into the journal and into RESULTS.md.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import lzma
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
VARIABLE = "SPECTRAL_EXT_DATA"
FASHION = ROOT / "examples" / "data" / "fashion_mnist_subset.npz"
CACHE = ROOT / "build" / "data"
LOSSY = "JPEG-coded images (lossy, median 30.7 dB for CIFAR-10)"


class DataError(RuntimeError):
    """A file of the data is damaged or too small; the message names it and the remedy."""


class Part(NamedTuple):
    """Inputs and targets of one split."""

    x: Tensor
    y: Tensor


class Raw(NamedTuple):
    """All images of a data set: uint8 (N, H, W, 3), int64 labels (N,), and which are official test images."""

    images: np.ndarray
    labels: np.ndarray
    test: np.ndarray


@dataclass(frozen=True)
class Data:
    """Three splits that share no sample, where they come from, and what stands in for what.

    Images: x float32 (N, 3, side, side), normalised per channel by the training images, y int64 (N,). Text: x and y
    int64 (N, length), y the next characters.
    """

    name: str
    train: Part
    validation: Part
    test: Part
    classes: int
    source: str
    substitutions: tuple[str, ...] = ()
    details: dict = field(default_factory=dict)

    def to(self, device: str) -> Data:
        """The same with all samples on a device."""
        moved = {name: Part(*(t.to(device) for t in getattr(self, name))) for name in ("train", "validation", "test")}
        return replace(self, **moved)

    def describe(self) -> dict:
        """What the journal holds: name, source, sizes, and a digest of all samples."""
        digest = hashlib.sha256()
        for part in (self.train, self.validation, self.test):
            for values in part:
                digest.update(np.ascontiguousarray(values.cpu().numpy()).tobytes())
        sizes = {"train": len(self.train.y), "validation": len(self.validation.y), "test": len(self.test.y)}
        return {"name": self.name, "source": self.source, **sizes, **self.details, "digest": digest.hexdigest()[:12]}


def data_folder(folder: str | Path | None = None) -> Path | None:
    """Where the user's data lies; None if nowhere.

    Raises:
        FileNotFoundError: a folder that was named does not exist.
    """
    named = folder or os.environ.get(VARIABLE)
    if named:
        if not Path(named).is_dir():
            raise FileNotFoundError(f"the data folder {named} does not exist: correct --data or {VARIABLE}")
        return Path(named)
    beside = ROOT.parent / "shared" / "data"
    return beside if beside.is_dir() else None


def _decoded(path: Path) -> Raw:
    """The images of a JPEG-coded archive."""
    from PIL import Image

    try:
        with np.load(io.BytesIO(lzma.open(path).read())) as archive:
            data, sizes, labels, split = (archive[key] for key in ("data", "size", "label", "split"))
        ends = np.cumsum(sizes.astype(np.int64))
        coded = (data[end - int(size) : end].tobytes() for end, size in zip(ends, sizes, strict=True))
        images = np.stack([np.asarray(Image.open(io.BytesIO(one)).convert("RGB")) for one in coded])
    except (OSError, lzma.LZMAError, EOFError, KeyError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}): fetch it again, or take it out of the folder") from error
    return Raw(images, labels.astype(np.int64), split == 1)


def _archive(path: Path) -> Raw:
    """``_decoded``, kept uncompressed in ``build/data`` under the archive's size and time."""
    stat = path.stat()
    kept = CACHE / f"{path.name.split('.')[0]}-{stat.st_size}-{stat.st_mtime_ns}.npz"
    if kept.exists():
        try:
            with np.load(kept) as file:
                return Raw(*(file[key] for key in Raw._fields))
        except (OSError, ValueError, KeyError):  # a copy that was cut off is made again
            kept.unlink()
    raw = _decoded(path)
    CACHE.mkdir(parents=True, exist_ok=True)
    part = kept.with_suffix(f".{os.getpid()}.part")
    with part.open("wb") as file:
        np.savez(file, **raw._asdict())
    part.replace(kept)
    return raw


def _torchvision(name: str, folder: Path) -> Raw | None:
    """CIFAR as torchvision keeps it, or Tiny-ImageNet's folders; None where torchvision or the files are missing."""
    layout = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python", "tiny-imagenet": "tiny-imagenet-200"}
    if not (folder / layout[name]).is_dir() or importlib.util.find_spec("torchvision") is None:
        return None
    from torchvision import datasets

    try:
        if name == "tiny-imagenet":
            parts = [datasets.ImageFolder(str(folder / layout[name] / "train"))]
            images = [np.stack([np.asarray(image) for image, _ in parts[0]])]
        else:
            kind = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
            parts = [kind(str(folder), train=train) for train in (True, False)]
            images = [part.data for part in parts]
    except RuntimeError as error:
        raise DataError(f"{folder / layout[name]} is damaged ({error}): fetch it again") from error
    labels = [np.asarray(part.targets, dtype=np.int64) for part in parts]
    test = np.concatenate([np.full(len(one), bool(i)) for i, one in enumerate(labels)])
    return Raw(np.concatenate(images), np.concatenate(labels), test)


def _fashion() -> Raw:
    with np.load(FASHION) as file:
        images = np.concatenate([file["train_images"], file["test_images"]])
        labels = np.concatenate([file["train_labels"], file["test_labels"]]).astype(np.int64)
        test = np.arange(len(labels)) >= len(file["train_labels"])
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    return Raw(np.repeat(padded[..., None], 3, -1), labels, test)


def _find(name: str, folder: Path | None) -> tuple[Raw, str, tuple[str, ...]]:
    """Images, their source, and what they stand in for."""
    if folder is not None:
        raw = _torchvision(name, folder)
        if raw is not None:
            return raw, f"{name} through torchvision", ()
        if name == "cifar10" and (folder / "cifar10_jpeg.npz.xz").exists():
            return _archive(folder / "cifar10_jpeg.npz.xz"), "cifar10_jpeg.npz.xz", (LOSSY,)
        if name in ("cifar100", "tiny-imagenet") and (folder / "tiny32_jpeg.npz.xz").exists():
            stands = "Tiny-ImageNet at 32×32, JPEG-coded (lossy)"
            stands += f", stands in for {'CIFAR-100' if name == 'cifar100' else 'Tiny-ImageNet at 64×64'}"
            return _archive(folder / "tiny32_jpeg.npz.xz"), "tiny32_jpeg.npz.xz", (stands,)
    raw = _fashion()
    return raw, "examples/data/fashion_mnist_subset.npz", (f"Fashion-MNIST, 7,000 images, stands in for {name}",)


def images(
    name: str,
    train: int,
    validation: int,
    test: int,
    *,
    side: int = 32,
    classes: int | None = None,
    folder: str | Path | None = None,
) -> Data:
    """A data set of images, cut into three splits.

    Args:
        name: ``cifar10``, ``cifar100`` or ``tiny-imagenet``.
        train, validation, test: samples of each. Test samples are official test images as far as these suffice; the
            rest, and all others, are training images, in an order fixed by a seed of its own.
        side: 32, or 16 for averages of 2×2 pixels.
        classes: keep the first classes only.
        folder: see the module.

    Raises:
        DataError: a damaged file.
        FileNotFoundError: a folder that was named does not exist.
    """
    raw, source, stands = _find(name, data_folder(folder))
    keep = np.ones(len(raw.labels), dtype=bool) if classes is None else raw.labels < classes
    order = np.random.default_rng(20260524).permutation(np.flatnonzero(keep))
    official, rest = order[raw.test[order]], order[~raw.test[order]]
    share = min(1.0, len(order) / (train + validation + test))
    if share < 1:
        stands += (f"{len(order)} samples instead of {train + validation + test}",)
        train, validation, test = (int(share * n) for n in (train, validation, test))
    tested = np.concatenate([official[:test], rest[len(rest) - max(0, test - len(official)) :]])
    chosen = rest[:train], rest[train : train + validation], tested
    if max(0, test - len(official)):
        stands += (f"{test - len(official)} of {test} test samples are training images that no run trains on",)
    parts = [torch.from_numpy(raw.images[index]).permute(0, 3, 1, 2).float() / 255 for index in chosen]
    if side != parts[0].shape[-1]:
        stands += (f"images averaged to {side}×{side}",)
        parts = [F.adaptive_avg_pool2d(part, side) for part in parts]
    mean, std = (
        f(parts[0]) for f in (lambda x: x.mean((0, 2, 3), keepdim=True), lambda x: x.std((0, 2, 3), keepdim=True))
    )
    labels = [torch.from_numpy(raw.labels[index]) for index in chosen]
    splits = [Part((x - mean) / std, y) for x, y in zip(parts, labels, strict=True)]
    count = int(raw.labels[keep].max()) + 1
    return Data(name, *splits, classes=count, source=source, substitutions=stands, details={"side": side})


def _carried_text() -> str:
    """The project's documentation, in the order of the file names."""
    files = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


def text(
    length: int, train: int, validation: int, test: int, *, folder: str | Path | None = None, classify: bool = False
) -> Data:
    """Windows of ``length`` characters and the characters that follow them; splits lie in disjoint stretches of text.

    With ``classify`` the target is whether a window holds more than its median share of capital letters, one class per
    window: a label that the text itself gives.
    """
    where = data_folder(folder)
    path = None if where is None else where / "tinyshakespeare.txt"
    stands: tuple[str, ...] = ()
    if path is not None and path.exists():
        content, source = path.read_text(encoding="utf-8"), path.name
    else:
        content, source = _carried_text(), "the project's documentation"
        stands = ("the project's own documentation stands in for tinyshakespeare",)
    alphabet = sorted(set(content))
    codes = {c: i for i, c in enumerate(alphabet)}
    tokens = torch.tensor([codes[c] for c in content])
    cuts = [0, int(0.8 * len(tokens)), int(0.9 * len(tokens)), len(tokens)]
    parts = []
    generator = torch.Generator().manual_seed(20260524)
    for i, count in enumerate((train, validation, test)):
        stretch = tokens[cuts[i] : cuts[i + 1]]
        if len(stretch) <= length + 1:
            raise DataError(
                f"{source} has {len(tokens)} characters, too few for windows of {length}: take a longer text"
            )
        starts = torch.randint(len(stretch) - length - 1, (count,), generator=generator)
        windows = torch.stack([stretch[s : s + length + 1] for s in starts])
        parts.append(Part(windows[:, :-1].contiguous(), windows[:, 1:].contiguous()))
    classes = len(alphabet)
    if classify:
        capital = torch.tensor([c.isupper() for c in alphabet])
        shares = [capital[part.x].float().mean(1) for part in parts]
        middle = shares[0].median()
        parts = [Part(part.x, (share > middle).long()) for part, share in zip(parts, shares, strict=True)]
        classes = 2
    details = {"length": length, "vocabulary": len(alphabet), "classify": classify}
    return Data("text", *parts, classes=classes, source=source, substitutions=stands, details=details)


SOURCES: dict[str, Callable[..., Data]] = {"images": images, "text": text}
