"""One training loop for all experiments: seeded, warm-up and linear decay, validation along the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from experiments.data import Data, Part
from experiments.networks import cross_entropy

WARM_UP = 0.05
"""Share of the steps over which the learning rate rises from zero; then it falls linearly to zero."""


def evaluate(model: nn.Module, part: Part, size: int = 500) -> tuple[float, float]:
    """Mean loss and per cent right, in eval mode; the model is left in train mode."""
    model.eval()
    loss, right = 0.0, 0
    with torch.no_grad():
        for x, y in zip(part.x.split(size), part.y.split(size), strict=True):
            output = model(x)
            loss += cross_entropy(output, y).item() * len(x)
            right += int((output.argmax(-1) == y).sum())
    model.train()
    return loss / len(part.y), 100 * right / part.y.numel()


def batches(
    part: Part, size: int, steps: int, generator: torch.Generator, flip: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """``steps`` batches: epochs in random order, without the incomplete last batch; images flipped at random."""
    order, place = torch.randperm(len(part.y), generator=generator), 0
    for _ in range(steps):
        if place + size > len(order):
            order, place = torch.randperm(len(part.y), generator=generator), 0
        index = order[place : place + size].to(part.y.device)
        place += size
        x = part.x[index]
        if flip:
            x = torch.where(
                (torch.rand(size, generator=generator) < 0.5).to(x.device)[:, None, None, None], x.flip(3), x
            )
        yield x, part.y[index]


def schedule(step: int, steps: int) -> float:
    """The learning rate's factor."""
    warm = max(1, round(WARM_UP * steps))
    return min((step + 1) / warm, (steps - step) / max(1, steps - warm))


def train(
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    data: Data,
    *,
    steps: int,
    batch: int,
    seed: int,
    looks: int = 1,
    flip: bool = False,
    until: int | None = None,
    on_step: Callable[[int], Any] | None = None,
) -> dict[str, Any]:
    """Train in place.

    Args:
        steps, batch: updates, and samples of each.
        seed: of the order of the samples and of the flips.
        looks: how often the validation data are looked at, evenly, the end included.
        flip: flip images horizontally at random.
        until: end after this step, in the middle of the schedule; None trains all steps.
        on_step: called with the number of finished steps, after each.

    Returns:
        ``loss`` (training, mean since the last look), ``validation`` and ``accuracy`` (both at each look), ``at`` (the
        steps of the looks), and ``stopped`` if the loss was not finite, in which case the run ends there.
    """
    if len(data.train.y) < batch:
        raise ValueError(
            f"a batch of {batch} is larger than the {len(data.train.y)} training samples: take a smaller one"
        )
    generator = torch.Generator().manual_seed(seed)
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: schedule(step, steps)) for o in optimizers]
    ends = {round(steps * (i + 1) / looks) for i in range(looks)}
    record: dict[str, Any] = {"at": [], "loss": [], "validation": [], "accuracy": []}
    total, since = 0.0, 0
    model.train()
    for step, (x, y) in enumerate(batches(data.train, batch, steps, generator, flip), 1):
        loss = cross_entropy(model(x), y)
        if not math.isfinite(loss.item()):
            return record | {"stopped": f"the loss is not finite at step {step}"}
        model.zero_grad()
        loss.backward()
        for optimizer, rate in zip(optimizers, schedules, strict=True):
            optimizer.step()
            rate.step()
        total, since = total + loss.item(), since + 1
        if on_step is not None:
            on_step(step)
        if step == until:
            break
        if step in ends:
            validation, accuracy = evaluate(model, data.validation)
            for name, value in (
                ("at", step),
                ("loss", total / since),
                ("validation", validation),
                ("accuracy", accuracy),
            ):
                record[name].append(value)
            total, since = 0.0, 0
    return record
