"""
The landscape of a ResNet
=========================

How curved is the loss along each layer's gradient singular directions? This page trains a small residual network on
images for a few seconds, measures every layer, and reads the result.
"""

# %%
# A model, a loss, some batches
# -----------------------------
# Anything that computes a loss by PyTorch will do. The network is that of the demo, in the shape of a CIFAR ResNet;
# the images are a subset of Fashion-MNIST that the repository carries.

import torch
import torch.nn.functional as F

from examples.small_resnet import SmallResNet, load_images
from spectral_ext import SpectralNewton, measure

torch.manual_seed(0)
images = load_images(train=800, test=200)
model = SmallResNet()

# %%
# A landscape describes a moment of training, so the network is trained a little first.

optimizer = SpectralNewton(model, lr=0.04)
model.train()
for batch in torch.randperm(800).split(100):
    loss = F.cross_entropy(model(images.train[batch]), images.train_labels[batch])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"loss {loss.item():.2f}")

# %%
# Measure
# -------
# ``measure`` takes the model as it is. In eval mode the batch norms use their running averages, so that samples do not
# influence each other. The loss must be a mean over the samples of a batch.

model.eval()
batches = list(zip(images.train[:128].split(64), images.train_labels[:128].split(64)))
landscape = measure(model, torch.nn.CrossEntropyLoss(), batches, top_k=10, progress=False)
print(landscape)

# %%
# Read a row
# ----------
# ``alpha`` is the slope of :math:`\log h_k` on :math:`\log \sigma_k`. A fit knows its interval, its :math:`R^2` and how
# many directions it rests on. The last column of the table, *use α*, is the advice; ``reasons`` says where it comes
# from.

row = landscape["stage2.conv1"]
print(f"α = {row.alpha.value:.2f}, 95 % {row.alpha.interval}, R² {row.alpha.r2:.2f}, n = {row.alpha.n}")
print(row.recommendation.alpha, row.recommendation.reasons)

# %%
# See it
# ------
# Every figure of the paper can be drawn for your own network. For a paper, ask for its format and column width:
# ``landscape.plot("figures", format="pdf", width=3.25, serif=True)``.

landscape.plot(names=["power_law"])["power_law"]

# %%

landscape.plot(names=["alpha_by_depth"])["alpha_by_depth"]

# %%
# The whole report is one HTML page that needs nothing else; the numbers lie beside it as JSON and CSV.

import tempfile

from spectral_ext.report import write_report

page = write_report(landscape, tempfile.mkdtemp(), title="My ResNet", figures=False)
print(page.name, sorted(path.name for path in page.parent.iterdir()))
