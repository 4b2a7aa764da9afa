"""
Is it signal or noise?
======================

The gradient of a batch holds what all data share and what these samples happen to hold. Its singular directions are
chosen by the same samples that σ and h are then computed on, and so even a gradient of pure noise has a spectrum, and a
power law. This page tells the two apart.
"""

# %%
# Two data sets for one network: labels that follow from the inputs, and labels drawn at random.

import torch
from torch import nn

from spectral_ext import measure, plots

torch.manual_seed(0)
inputs = torch.randn(512, 24)
labels = {"learnable": inputs[:, :6].argmax(1), "random": torch.randint(6, (512,))}


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(24, 48), nn.Tanh(), nn.Linear(48, 32), nn.Tanh(), nn.Linear(32, 6))


# %%
# ``folds=8`` splits the samples into eight groups. Directions come from seven of them; σ and h along them are read on
# the
# eighth. A direction is *resolved* if the held-out singular value is positive beyond its error.

found = {}
for name, target in labels.items():
    batches = list(zip(inputs.split(128), target.split(128)))
    found[name] = measure(network(), nn.CrossEntropyLoss(), batches, top_k=12, folds=8, progress=False)
    for row in found[name].values():
        print(
            f"{name:10} layer {row.name}: {row.signal.verdict:8} {row.signal.resolved} of {row.num_directions} resolved"
        )

# %%
# The same panel for both. The dashed line is the batch's own σ: it looks alike with signal and without. The dots are
# what
# other samples confirm, with two standard errors.

plots.figure(found["learnable"], "signal_and_noise")

# %%

plots.figure(found["random"], "signal_and_noise")

# %%
# What to conclude
# ----------------
# Use ``row.signal.alpha``, the exponent over the resolved directions, where there are enough of them. Where the
# verdict is
# *noise*, no exponent of this batch says anything about the loss on other data: take more samples.

for row in found["learnable"].values():
    fit = row.signal.alpha
    print(row.name, f"own batch {row.alpha.value:.2f}", f"held out {fit.value:.2f}" if fit.ok else fit.reason)
