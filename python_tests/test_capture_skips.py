"""Which blocks add their input to their output."""

import pytest
import torch
from torch import nn

from spectral_ext.capture.skips import has_skip


class Block(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.up, self.down, self.norm = nn.Linear(8, 16), nn.Linear(16, 8), nn.LayerNorm(8)
        self.gate, self.project, self.drop = nn.Linear(8, 8), nn.Linear(8, 8), nn.Dropout(0.5)

    def forward(self, x):
        f = self.down(torch.relu(self.up(x)))
        return {
            "plain": lambda: f,
            "skip": lambda: x + f,
            "post norm": lambda: self.norm(x + self.drop(f)),
            "activation": lambda: torch.relu(f + x),
            "layer scale": lambda: x + 0.1 * f,
            "gate": lambda: x * torch.sigmoid(f),
            "projected": lambda: self.project(x) + f,
            "sum of two branches": lambda: self.gate(x) + f,
        }[self.kind]()


@pytest.mark.parametrize("shape", [(5, 8), (5, 3, 8)])
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("plain", False), ("skip", True), ("post norm", True), ("activation", True), ("layer scale", True),
        ("gate", False), ("projected", False), ("sum of two branches", False),
    ],
)  # fmt: skip
def test_kinds_of_blocks(kind, expected, shape):
    stem, block = nn.Linear(8, 8), Block(kind)
    x = stem(torch.randn(shape))
    assert has_skip(x, block(x)) is expected
    leaf = torch.randn(shape, requires_grad=True)
    assert has_skip(leaf, block(leaf)) is expected
    assert not has_skip(torch.randn(shape), block(x))


def test_convolutional_block():
    conv = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))
    x = nn.Conv2d(3, 4, 1)(torch.randn(2, 3, 6, 6))
    assert has_skip(x, torch.relu(conv(x) + x))
    assert not has_skip(x, torch.relu(conv(x)))
