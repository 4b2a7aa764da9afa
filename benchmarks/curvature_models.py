"""The networks on which curvature methods are compared, and data with some structure, seeded."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o)
        self.conv2, self.norm2 = nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o)
        down = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))
        self.down = down if stride != 1 or i != o else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))) + self.down(x))


def resnet18(width: int = 16, classes: int = 10) -> nn.Module:
    """ResNet-18 for 32 × 32 images; width 64 is the usual one."""
    stages, i = [], width
    for stage, o in enumerate((width, 2 * width, 4 * width, 8 * width)):
        for block in range(2):
            stages.append(ResidualBlock(i, o, 2 if stage and not block else 1))
            i = o
    stem = nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
    return nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(i, classes))


class GPTBlock(nn.Module):
    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.qkv, self.proj = nn.LayerNorm(d), nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.norm2, self.up, self.down = nn.LayerNorm(d), nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class GPT(nn.Module):
    def __init__(self, vocabulary: int = 256, d: int = 128, length: int = 64, layers: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, d), nn.Parameter(0.02 * torch.randn(length, d))
        self.blocks = nn.Sequential(*[GPTBlock(d, heads) for _ in range(layers)])
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, vocabulary, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.tokens(x) + self.positions)))


def mlp(activation: nn.Module, width: int = 256) -> nn.Module:
    inner = nn.Linear(784, width), activation, nn.Linear(width, width), activation, nn.Linear(width, width), activation
    return nn.Sequential(*inner, nn.Linear(width, 10))


def images(samples: int, seed: int = 0, classes: int = 10) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(99)
    prototypes = F.interpolate(torch.randn(classes, 3, 6, 6, generator=g), size=32, mode="bilinear")
    g.manual_seed(seed)
    y = torch.randint(0, classes, (samples,), generator=g)
    return 0.3 * prototypes[y] + torch.randn(samples, 3, 32, 32, generator=g), y


def vectors(samples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(99)
    prototypes = torch.randn(10, 784, generator=g)
    g.manual_seed(seed)
    y = torch.randint(0, 10, (samples,), generator=g)
    return 0.1 * prototypes[y] + torch.randn(samples, 784, generator=g), y


def tokens(samples: int, seed: int = 0, length: int = 64, vocabulary: int = 256) -> tuple[Tensor, Tensor]:
    """A Markov chain."""
    g = torch.Generator().manual_seed(99)
    transition = torch.softmax(2.5 * torch.randn(vocabulary, vocabulary, generator=g), -1)
    g.manual_seed(seed)
    sequence = [torch.randint(0, vocabulary, (samples,), generator=g)]
    for _ in range(length):
        sequence.append(torch.multinomial(transition[sequence[-1]], 1, generator=g)[:, 0])
    data = torch.stack(sequence, 1)
    return data[:, :-1].contiguous(), data[:, 1:].contiguous()


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output.flatten(0, -2), target.flatten())


def trained(model: nn.Module, make_batch, steps: int, samples: int) -> nn.Module:
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    model.train()
    for step in range(steps):
        x, y = make_batch(samples, 1000 + step)
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval()
