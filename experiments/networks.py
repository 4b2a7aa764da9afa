"""Every network of the experiments, once: residual networks, VGG, vision transformer, GPT and MLP, at any width."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """conv-BN-ReLU-conv-BN, or with ``bottleneck`` 1×1-3×3-1×1 with four times as many output channels.

    ``shortcut`` where the shape changes: ``projection`` is a 1×1 convolution with batch norm; ``pad`` takes every
    second pixel and pads the channels with zeros on both sides (option A of He et al.).
    """

    def __init__(self, inputs: int, width: int, stride: int, shortcut: str, bottleneck: bool) -> None:
        super().__init__()
        outputs = 4 * width if bottleneck else width
        shapes = [(inputs, width, 3, stride), (width, width, 3, 1)]
        if bottleneck:
            shapes = [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
        self.depth = len(shapes)
        for i, (a, b, kernel, step) in enumerate(shapes, 1):
            setattr(self, f"conv{i}", nn.Conv2d(a, b, kernel, step, kernel // 2, bias=False))
            setattr(self, f"bn{i}", nn.BatchNorm2d(b))
        self.stride, self.extra = stride, outputs - inputs
        self.downsample = None
        if shortcut == "projection" and (stride != 1 or self.extra):
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for i in range(1, self.depth + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            if i < self.depth:
                y = F.relu(y)
        if self.downsample is not None:
            x = self.downsample(x)
        elif self.stride > 1 or self.extra:
            half = self.extra // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.extra - half))
        return F.relu(x + y)


class ResNet(nn.Module):
    """A residual network for small images: a 3×3 stem, stages of blocks, global average pooling, a linear head."""

    def __init__(
        self,
        widths: Sequence[int] = (64, 128, 256, 512),
        blocks: Sequence[int] = (2, 2, 2, 2),
        classes: int = 10,
        *,
        shortcut: str = "projection",
        bottleneck: bool = False,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.stages, channels = len(widths), widths[0]
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            own = []
            for block in range(count):
                stride = 2 if stage and not block else 1
                own.append(ResidualBlock(channels, width, stride, shortcut, bottleneck))
                channels = 4 * width if bottleneck else width
            setattr(self, f"layer{stage + 1}", nn.Sequential(*own))
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return self.fc(x.mean((2, 3)))


def resnet18(width: int = 64, classes: int = 10) -> ResNet:
    """ResNet-18 for 32×32 images; ``width`` 64 is the usual one."""
    return ResNet([width * 2**i for i in range(4)], (2, 2, 2, 2), classes)


def resnet50(width: int = 64, classes: int = 10) -> ResNet:
    """ResNet-50 for small images."""
    return ResNet([width * 2**i for i in range(4)], (3, 4, 6, 3), classes, bottleneck=True)


def resnet20(classes: int = 10) -> ResNet:
    """ResNet-20 of He et al. for CIFAR-10, shortcuts of option A."""
    return ResNet((16, 32, 64), (3, 3, 3), classes, shortcut="pad")


def resnet8(width: int = 16, classes: int = 10) -> ResNet:
    """Seven convolutions and a head: one block per stage, shortcuts of option A."""
    return ResNet((width, 2 * width, 4 * width), (1, 1, 1), classes, shortcut="pad")


VGG_STAGES = {11: (1, 1, 2, 2, 2), 16: (2, 2, 3, 3, 3)}


class VGG(nn.Module):
    """VGG-11 or VGG-16 with batch norm; the classifier is two linear layers. ``width`` 64 is the usual one."""

    def __init__(self, depth: int = 11, width: int = 64, classes: int = 10, side: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for stage, count in enumerate(VGG_STAGES[depth]):
            outputs = width * min(2**stage, 8)
            for _ in range(count):
                layers += [nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
                inputs = outputs
            if side >> stage > 1:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Linear(inputs, inputs), nn.ReLU(), nn.Linear(inputs, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class TransformerBlock(nn.Module):
    """Pre-norm attention and MLP with residual connections; ``norm=False`` leaves LayerNorm out."""

    def __init__(self, width: int, heads: int, causal: bool, norm: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1 = nn.LayerNorm(width) if norm else nn.Identity()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width) if norm else nn.Identity()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.proj(y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class ViT(nn.Module):
    """A vision transformer without class token: patches, blocks, mean over patches, a linear head."""

    def __init__(
        self,
        side: int = 32,
        patch: int = 4,
        width: int = 192,
        layers: int = 12,
        heads: int = 3,
        classes: int = 10,
        norm: bool = True,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.positions = nn.Parameter(0.02 * torch.randn((side // patch) ** 2, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, False, norm) for _ in range(layers)))
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.blocks(x)).mean(1))


class GPT(nn.Module):
    """A decoder over characters. ``classes``: classify the sequence from the mean over positions instead."""

    def __init__(
        self,
        vocabulary: int,
        width: int = 384,
        length: int = 128,
        layers: int = 6,
        heads: int = 6,
        classes: int | None = None,
        norm: bool = True,
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, True, norm) for _ in range(layers)))
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.classify = classes is not None
        self.head = nn.Linear(width, classes or vocabulary, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.blocks(self.tokens(x) + self.positions[: x.shape[1]]))
        return self.head(x.mean(1) if self.classify else x)


class MLP(nn.Sequential):
    """``hidden`` layers of ``width`` with ReLU over flattened images."""

    def __init__(self, inputs: int, width: int = 256, hidden: int = 3, classes: int = 10) -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        for i in range(hidden):
            layers += [nn.Linear(inputs if i == 0 else width, width), nn.ReLU()]
        super().__init__(*layers, nn.Linear(width, classes))


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy over samples, or over samples and positions of a sequence."""
    return F.cross_entropy(output.flatten(0, -2), target.flatten())
