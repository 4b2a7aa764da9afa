"""Which layers the self-check compares with another method: all, or some of each kind where a model repeats itself."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

from spectral_ext.layers import Layer

PER_KIND = 3
"""Layers of one kind that are compared: the first, the middle and the last."""


def kind_of(name: str, layer: Layer) -> Hashable:
    """Layers of one kind play the same part: their names differ in numbers alone, their matrices have one shape."""
    return re.sub(r"\d+", "#", name), type(layer), layer.block_shape


def representatives(layers: Mapping[str, Layer], operations: Mapping[str, Iterable[Any]]) -> set[str]:
    """Layers that stand for all: ``PER_KIND`` of each kind, and more where an operation follows none of these.

    Args:
        layers: in the model's order.
        operations: layer → the operations that its tangents pass. Layers without an entry stand for themselves.
    """
    kinds: dict[Hashable, list[str]] = {}
    for name, layer in layers.items():
        kinds.setdefault(kind_of(name, layer), []).append(name)
    chosen = layers.keys() - operations.keys()
    for names in kinds.values():
        count = min(PER_KIND, len(names))
        chosen |= {names[round(i * (len(names) - 1) / max(count - 1, 1))] for i in range(count)}
    passed = {name: set(operations[name]) for name in layers if name in operations}
    covered = set().union(*(passed[name] for name in chosen if name in passed))
    for name, targets in passed.items():
        if name not in chosen and not targets <= covered:
            chosen.add(name)
            covered |= targets
    return chosen
