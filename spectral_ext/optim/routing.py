"""Which parameter goes where, and why: the table of ``SpectralNewton.routing()``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from torch import Tensor

from spectral_ext.optim.layout import Layout
from spectral_ext.optim.settings import layouts_of, names_of, values_of

HEADER = ("parameter", "shape", "goes to", "why", "matrices", "alpha", "damping", "lr", "weight decay")


@dataclass(frozen=True)
class RoutedParameter:
    """One line: where a parameter goes, why, as which matrices, with which settings (None where they have no meaning).

    ``optimizer`` is "Spectral Newton", "AdamW", or "left out" for parameters of the model that are in no group.
    """

    name: str
    shape: tuple[int, ...]
    optimizer: str
    reason: str
    matrices: str = ""
    alpha: float | None = None
    damping: str = ""
    lr: float | None = None
    weight_decay: float | None = None


class Routing(list[RoutedParameter]):
    """The lines of ``SpectralNewton.routing()``; ``print`` shows them as a table."""

    def __str__(self) -> str:
        table = [HEADER, *(tuple(_cell(value) for value in astuple(line)) for line in self)]
        widths = [max(len(line[i]) for line in table) for i in range(len(HEADER))]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in table)

    def __getitem__(self, key: Any) -> Any:
        """A line by position or by the parameter's name."""
        if not isinstance(key, str):
            return super().__getitem__(key)
        for line in self:
            if line.name == key:
                return line
        raise KeyError(key)


def _cell(value: Any) -> str:
    if isinstance(value, tuple):
        return "×".join(map(str, value)) or "()"
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _matrices(layout: Layout, shape: Sequence[int]) -> str:
    batch, parts = tuple(shape[: layout.batch_dims]), layout.split
    pieces = [] if not batch else ["×".join(map(str, batch)) + " of the leading dimension"]
    if parts != 1:
        pieces.append(f"{parts} by {'columns' if layout.split_dim else 'rows'}")
    return ", ".join(pieces) or "1"


def routing_of(
    groups: Sequence[Mapping[str, Any]], reasons: Mapping[str, str], left_out: Mapping[str, Tensor]
) -> Routing:
    """The lines of all groups, in order, and of the model's parameters that are in none."""
    lines = Routing()
    for number, group in enumerate(groups):
        names, count = names_of(group, number), len(group["params"])
        rates = {key: float(group[key]) for key in ("lr", "weight_decay")}
        columns: list[Sequence[Any]] = [[None] * count] * 4
        if not group["use_adamw"]:
            columns = [layouts_of(group), *(values_of(group, key) for key in ("alpha", "damping", "damping_mode"))]
        for name, p, layout, alpha, damping, mode in zip(names, group["params"], *columns):
            reason = reasons.get(name, f"use_adamw={group['use_adamw']}")
            reason += f", map {group['transfer']['name']!r}" if group["transfer"] and not group["use_adamw"] else ""
            reason += "" if p.requires_grad else "; frozen now"
            line: dict[str, Any] = {"name": name, "shape": tuple(p.shape), "optimizer": "AdamW", "reason": reason}
            if not group["use_adamw"]:
                line |= {"optimizer": "Spectral Newton", "matrices": _matrices(layout, p.shape)}
                line |= {"alpha": float(alpha), "damping": f"{damping:g} {mode}"}
            lines.append(RoutedParameter(**(line | rates)))
    for name, parameter in left_out.items():
        why = "in no group" if parameter.requires_grad else "frozen"
        lines.append(RoutedParameter(name, tuple(parameter.shape), "left out", why))
    return lines
