"""
A language model, on a laptop and under torchrun
================================================

A small GPT is measured in seconds without a GPU. The same function measures a large one on many ranks, each with its
own
share of the batches.
"""

# %%
# A causal language model of the usual kind: embeddings, attention, norms, and a head tied to the embedding.

import torch
import torch.nn.functional as F
from torch import nn

from spectral_ext import SpectralNewton, measure


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        batch, length, width = x.shape
        q, k, v = (
            one.view(batch, length, self.heads, -1).transpose(1, 2) for one in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        mask = torch.ones(length, length, dtype=torch.bool).tril()
        weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).masked_fill(~mask, float("-inf")).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    def __init__(self, vocabulary=64, width=32, depth=2, length=16):
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, 2) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids):
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


torch.manual_seed(0)
model = GPT()

# %%
# The text is made up: each token follows from the last one, with some noise. The loss is the mean over all tokens; a
# batch is ``(inputs, target)``, and so any model that takes ``input_ids`` will do.

steps = torch.where(torch.rand(64, 17) < 0.9, 3, torch.randint(64, (64, 17)))
text = steps.cumsum(1) % 64
batches = [(part[:, :-1], part[:, 1:]) for part in text.split(16)]


def loss_fn(logits, target):
    return F.cross_entropy(logits.flatten(0, 1), target.flatten())


optimizer = SpectralNewton(model, lr=0.02)
for _ in range(10):
    for ids, target in batches:
        optimizer.zero_grad()
        loss = loss_fn(model(ids), target)
        loss.backward()
        optimizer.step()
print(f"loss {loss.item():.2f}")

# %%
# The layers by name or shell pattern: a first look needs not all of them.

landscape = measure(
    model, loss_fn, batches[:2], layers=["blocks.*.qkv", "blocks.*.up", "blocks.*.down"], top_k=8, progress=False
)
print(landscape)

# %%

landscape.plot(names=["mechanism_split"])["mechanism_split"]

# %%
# How much memory will it take?
# -----------------------------
# The estimate is counted from the shapes before anything is run. Scale it up before you scale the model up.

from spectral_ext.curvature import estimate_memory

estimate = estimate_memory(model, loss_fn, batches[0], layers="blocks.*.up")
print(
    f"{estimate.total(1) / 2**20:.1f} MiB with one direction at a time, {estimate.total(8) / 2**20:.1f} MiB with eight"
)

# %%
# Under torchrun
# --------------
# With ``torch.distributed`` initialised, each rank passes its own batches; gradients, factors and curvature are summed
# over the ranks, and every rank returns the same landscape. Save this as ``train.py`` and start
# ``torchrun --nproc-per-node 2 train.py``:
#
# .. code-block:: python
#
#     import torch.distributed as dist
#     from spectral_ext import measure
#
#     dist.init_process_group("gloo")             # "nccl" on GPUs
#     rank, ranks = dist.get_rank(), dist.get_world_size()
#     landscape = measure(model, loss_fn, batches[rank::ranks], top_k=8)
#     if rank == 0:
#         landscape.save("landscape")
#
# Here the same with one rank, in this process:

import tempfile

import torch.distributed as dist

with tempfile.TemporaryDirectory() as folder:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    try:
        again = measure(model, loss_fn, batches[:2], layers="blocks.*.up", top_k=4, progress=False)
    finally:
        dist.destroy_process_group()
print({name: round(row.alpha.value, 2) for name, row in again.items()})
