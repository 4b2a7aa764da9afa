"""A small ResNet and real images: what the demo trains, and a model for `spectral-ext landscape`.

spectral-ext landscape examples.small_resnet:task --top-k 10
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

DATA = Path(__file__).resolve().parent / "data" / "fashion_mnist_subset.npz"


class Images(NamedTuple):
    """Normalised images (N, 1, 28, 28), float32, and their classes (N,)."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def load_images(train: int = 6000, test: int = 1000) -> Images:
    """The first images of the subset of Fashion-MNIST beside this file; the classes are mixed in its order.

    Raises:
        FileNotFoundError: the data file is missing.
    """
    if not DATA.exists():
        raise FileNotFoundError(f"{DATA} is missing: examples/data/make_subset.py makes it")
    with np.load(DATA) as arrays:
        images = torch.from_numpy(arrays["train_images"][:train]), torch.from_numpy(arrays["test_images"][:test])
        labels = torch.from_numpy(arrays["train_labels"][:train]), torch.from_numpy(arrays["test_labels"][:test])
    mean, std = 0.286, 0.353  # of the training images
    first, second = ((one[:, None].float() / 255 - mean) / std for one in images)
    return Images(first, labels[0].long(), second, labels[1].long())


class Block(nn.Module):
    """Two 3×3 convolutions with batch norm, and a skip connection (1×1 where the shape changes)."""

    def __init__(self, inside: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or inside != out:
            self.skip = nn.Sequential(nn.Conv2d(inside, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.skip(x))


class SmallResNet(nn.Module):
    """Nine convolutions with batch norm and a linear head: 28×28 grey images to ten classes, 76,000 parameters."""

    def __init__(self, width: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.stage1 = Block(width, width, 1)
        self.stage2 = Block(width, 2 * width, 2)
        self.stage3 = Block(2 * width, 4 * width, 2)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        return self.head(x.mean((2, 3)))


def task() -> tuple[nn.Module, nn.Module, list[tuple[Tensor, Tensor]]]:
    """``(model, loss_fn, batches)``: an untrained network in eval mode and 256 images, for `spectral-ext landscape`."""
    torch.manual_seed(0)
    images = load_images(train=256, test=1)
    return SmallResNet().eval(), nn.CrossEntropyLoss(), [(images.train, images.train_labels)]
