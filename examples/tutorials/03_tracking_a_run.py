"""
Tracking a training run
=======================

A landscape is a snapshot. ``LandscapeTracker`` takes one every few steps or after every epoch, without disturbing the
training: model, gradients, random numbers and mode are as before.
"""

# %%
# The tracker needs the model, the loss and a few batches of its own, always the same ones.

import tempfile

import torch
from torch import nn

from spectral_ext import LandscapeTracker, SpectralNewton

torch.manual_seed(0)
inputs = torch.randn(512, 20)
target = (inputs @ torch.randn(20, 4)).argmax(1)
model = nn.Sequential(nn.Linear(20, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 4))
loss_fn = nn.CrossEntropyLoss()

folder = tempfile.mkdtemp()
tracker = LandscapeTracker(model, loss_fn, [(inputs[:128], target[:128])], folder=folder, tensorboard=False, top_k=10)

# %%
# Two lines in the training loop: ``start`` before it, ``end_epoch`` after each epoch. ``every=100`` with ``step()``
# would
# measure by steps.

tracker.start()
optimizer = SpectralNewton(model, lr=0.02)
for _ in range(5):
    for batch in torch.randperm(512).split(64):
        optimizer.zero_grad()
        loss = loss_fn(model(inputs[batch]), target[batch])
        loss.backward()
        optimizer.step()
        tracker.step()
    tracker.end_epoch()
print(f"loss {loss.item():.3f}, {len(tracker.track)} landscapes")

# %%
# Every quantity of the table is a series over time. With TensorBoard installed, the tracker writes the scalars there
# too;
# ``wandb=True`` sends them to the running Weights & Biases run.

for layer, (steps, values) in tracker.track.series("alpha").items():
    print(layer, [f"{step}: {value:.2f}" for step, value in zip(steps, values)])

# %%

tracker.track.plot()["exponents_over_time"]

# %%

tracker.track.plot()["phase_transition"]

# %%
# ``Track.load(folder)`` reads the run again, also one that was killed; a report takes it as ``track=`` and shows a
# slider
# over training.

from spectral_ext.report import write_report
from spectral_ext.tracker import Track

track = Track.load(folder)
page = write_report(track.landscapes[-1], folder, title="My run", track=track, unit="epoch", figures=False)
print(page.name)
