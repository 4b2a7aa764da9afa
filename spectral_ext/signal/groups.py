"""The groups of samples that a measurement is cross-fitted over."""

from __future__ import annotations

import itertools
import numbers
from dataclasses import dataclass, field
from typing import Any

from spectral_ext.measurement.batches import Batch


@dataclass
class Groups:
    """Disjoint groups of batches."""

    batches: list[list[Batch]]
    rest: list[Batch] = field(default_factory=list)
    """Batches of no group: they belong to the measurement and to no fold."""
    notes: list[str] = field(default_factory=list)
    """What a reader must know about the groups."""

    @property
    def weights(self) -> list[int]:
        """Samples of each group."""
        return [sum(batch.samples for batch in group) for group in self.batches]

    @property
    def data(self) -> list[Batch]:
        """All batches, those of the groups first and in their order."""
        return [batch for group in self.batches for batch in group] + self.rest


def check_folds(folds: Any, batches: int) -> None:
    """Judge the option before work is spent.

    Raises:
        TypeError, ValueError: ``folds`` is neither an integer of at least 2 nor a label for each batch.
    """
    if isinstance(folds, numbers.Integral) and not isinstance(folds, bool):
        if folds < 2:
            raise ValueError(f"folds must be at least 2 groups (3 for a standard error), not {folds}")
        return
    if not isinstance(folds, (list, tuple)):
        raise TypeError(f"folds must be a number of groups, or a list with a group label for each batch, not {folds!r}")
    if len(folds) != batches:
        raise ValueError(f"folds holds {len(folds)} labels for {batches} batches: give one label for each batch")


def make_groups(data: list[Batch], folds: Any, *, whole_batches: str = "") -> Groups:
    """J groups of consecutive samples with (almost) equal sizes, or the caller's groups of batches.

    Args:
        folds: J; or one label per batch, None for a batch of no group.
        whole_batches: why a batch must not be cut, or "". Then groups are made of whole batches, which may make them
            fewer, and of unequal size.
    """
    if isinstance(folds, (list, tuple)):
        made = _labelled(data, list(folds))
    elif whole_batches:
        count = min(int(folds), len(data))
        bounds = [len(data) * j // count for j in range(count + 1)]
        made = Groups([data[a:b] for a, b in itertools.pairwise(bounds)])
        made.notes.append(f"folds: groups are whole batches, since {whole_batches}")
        if count < folds:
            made.notes.append(f"folds: {len(data)} batches make {count} groups, {folds} were asked for")
    else:
        made = _cut(data, int(folds))
    sizes = made.weights
    if sizes and max(sizes) > 1.1 * min(sizes):
        made.notes.append(
            f"folds: the groups have {min(sizes)} to {max(sizes)} samples; means are weighted by them, and intervals "
            "over groups of unequal size are approximate"
        )
    return made


def _labelled(data: list[Batch], labels: list[Any]) -> Groups:
    groups: dict[Any, list[Batch]] = {}
    for batch, label in zip(data, labels, strict=True):
        if label is not None:
            groups.setdefault(label, []).append(batch)
    rest = [batch for batch, label in zip(data, labels, strict=True) if label is None]
    notes = [f"folds: {len(rest)} of {len(data)} batches have no label and take no part in the folds"] if rest else []
    return Groups(list(groups.values()), rest, notes)


def _cut(data: list[Batch], folds: int) -> Groups:
    total = sum(batch.samples for batch in data)
    count = min(folds, total)
    groups: list[list[Batch]] = [[] for _ in range(count)]
    start = 0
    for batch in data:
        stop = start + batch.samples
        for j in range(count):
            low, high = max(start, total * j // count), min(stop, total * (j + 1) // count)
            if low < high:
                whole = high - low == batch.samples
                groups[j].append(batch if whole else batch.take(range(low - start, high - start)))
        start = stop
    notes = [f"folds: {total} samples make {count} groups, {folds} were asked for"] if count < folds else []
    return Groups(groups, notes=notes)
