"""Which layers the self-check compares with another method: all, or some of each kind where a model repeats itself."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from spectral_ext.curvature.sites import site_of
from spectral_ext.curvature.sqrt_gauss_newton import why_not
from spectral_ext.curvature.trace import Program
from spectral_ext.layers import Layer

PER_KIND = 3
"""Layers of one kind that are compared: the first, the middle and the last."""


@dataclass(frozen=True)
class Compared:
    """The layers that are compared, and the kinds that they stand for."""

    names: frozenset[str] = frozenset()
    kinds: Mapping[str, Hashable] = field(default_factory=dict)
    """Layer → its kind; empty where no layer stands for another."""

    def standing_for(self, name: str) -> list[str]:
        """The compared layers of the kind of a layer that is not compared itself."""
        return [other for other in self.kinds if other in self.names and self.kinds[other] == self.kinds[name]]


def compared_layers(program: Program, model: nn.Module, layers: Mapping[str, Layer], samples: int) -> Compared:
    """``PER_KIND`` layers of each kind, and more where an operation follows none of these.

    Layers of one kind play the same part: their names differ in numbers alone, their matrices have one shape, and
    ``sqrt_gn`` is exact for both or for neither.
    """
    sites = {name: site_of(program, model, layer) for name, layer in layers.items()}
    kinds = {
        name: (
            re.sub(r"\d+", "#", name), type(layer), layer.block_shape, why_not(program, sites[name], samples) is None,
        )
        for name, layer in layers.items()
    }  # fmt: skip
    operations = {name: [node.target for node in site.schedule] for name, site in sites.items()}
    return Compared(frozenset(representatives(kinds, operations)), kinds)


def representatives(kinds: Mapping[str, Hashable], operations: Mapping[str, Iterable[Any]]) -> set[str]:
    """Layers that stand for all.

    Args:
        kinds: layer → its kind, in the model's order.
        operations: layer → the operations that its tangents pass.
    """
    members: dict[Hashable, list[str]] = {}
    for name, kind in kinds.items():
        members.setdefault(kind, []).append(name)
    chosen = set()
    for names in members.values():
        count = min(PER_KIND, len(names))
        chosen |= {names[round(i * (len(names) - 1) / max(count - 1, 1))] for i in range(count)}
    covered = {target for name in chosen for target in operations[name]}
    for name in kinds:
        if name not in chosen and not covered.issuperset(operations[name]):
            chosen.add(name)
            covered.update(operations[name])
    return chosen
