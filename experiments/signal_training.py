"""Signal or noise over a training run: own-batch α against held-out α, on fresh and on memorised data.

A small GPT without batch norm learns the characters of the Shakespeare text in ../shared/data. At each listed step the
landscape is measured with ``folds=8`` on sequences that it has never seen, and along the singular directions of the
optimizer's momentum. A second run trains on the measured sequences alone until it knows them by heart.
Writes results/signal_training.json.

    python experiments/signal_training.py [--threads 2]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from spectral_ext.landscape import Landscape, measure

TEXT = Path(__file__).parents[2] / "shared" / "data" / "tinyshakespeare.txt"
RESULT = Path(__file__).parent / "results" / "signal_training.json"
STEPS = (0, 10, 30, 100, 300, 1000)
LENGTH, MEASURED = 32, 128


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
        mask = torch.ones(t, t, dtype=torch.bool, device=x.device).triu(1)
        mixed = scores.masked_fill(mask, -1e9).softmax(-1) @ v
        x = x + self.proj(mixed.transpose(1, 2).reshape(b, t, width))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """Characters in, logits of the next one out."""

    def __init__(self, vocabulary: int, width: int = 64, blocks: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary, width), nn.Embedding(LENGTH, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token(ids) + self.position(torch.arange(ids.shape[1], device=ids.device))
        return self.head(self.norm(self.blocks(x)))


def loss_fn(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output.flatten(0, 1), target.flatten())


def sequences(codes: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    starts = torch.randint(0, len(codes) - LENGTH - 1, (count,), generator=generator)
    index = starts[:, None] + torch.arange(LENGTH)
    return codes[index], codes[index + 1]


def summary(landscape: Landscape, along_momentum: Landscape | None) -> dict:
    """What the page and the figure show of one landscape."""
    layers = {}
    for name, row in landscape.items():
        signal = row.signal
        layers[name] = {
            "own": row.alpha.value,
            "own, interval of the data": row.data_intervals.alpha if row.data_intervals else None,
            "held out": signal.alpha.value if signal.alpha.ok else None,
            "held out, interval": signal.alpha.interval if signal.alpha.ok else None,
            "noise alpha": row.noise_alpha,
            "gamma": row.noise_exponent.value,
            "resolved": signal.resolved,
            "directions": len(signal.sigma),
            "verdict": signal.verdict,
            "first share": float(signal.share[0]),
            "median share": signal.median_share,
            "beyond noise": row.noise.num_beyond if row.noise else None,
        }
        if along_momentum is not None and name in along_momentum:
            layers[name]["along the momentum"] = along_momentum[name].alpha.value
    return {"loss": landscape.meta["loss"], "layers": layers}


def run(codes: Tensor, vocabulary: int, memorise: bool) -> dict:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    split = int(0.9 * len(codes))
    model = GPT(vocabulary)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3 if memorise else 1e-3)
    x, y = sequences(codes[split:], MEASURED, torch.Generator().manual_seed(2))
    batches = list(zip(x.split(16), y.split(16), strict=True))
    found = {}
    for step in range(max(STEPS) + 1):
        if step in STEPS:
            # The embeddings are no matrix of the landscape; the momentum is there from the first step on.
            landscape = measure(model, loss_fn, batches, top_k=16, folds=8, split=False, progress=False)
            momentum = None
            if step and not memorise:
                momentum = measure(model, loss_fn, batches, top_k=16, directions=optimizer, split=False, progress=False)
            found[step] = summary(landscape, momentum)
            print(step, found[step]["loss"], {k: (v["own"], v["held out"], v["resolved"]) for k, v in
                                              found[step]["layers"].items()}, flush=True)  # fmt: skip
        batch = batches[step % len(batches)] if memorise else sequences(codes[:split], 32, generator)
        optimizer.zero_grad()
        loss_fn(model(batch[0]), batch[1]).backward()
        optimizer.step()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)
    text = TEXT.read_text()
    letters = sorted(set(text))
    codes = torch.from_numpy(np.searchsorted(letters, list(text)))
    found = {
        "model": f"GPT, 2 blocks of width 64, {LENGTH} characters, {MEASURED} measured sequences, 8 groups, top_k 16",
        "fresh data": run(codes, len(letters), memorise=False),
        "memorised data": run(codes, len(letters), memorise=True),
    }
    RESULT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
