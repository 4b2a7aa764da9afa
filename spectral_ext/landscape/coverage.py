"""How much of a model the rows cover, and what they leave out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from spectral_ext.landscape.row import LayerLandscape
from spectral_ext.layers import Layer, layer_name

LARGEST = 3
"""So many of the parameters left out are named."""


def coverage(
    model: nn.Module, layers: Mapping[str, Layer], rows: Mapping[str, LayerLandscape], skipped: Mapping[str, str]
) -> dict[str, Any]:
    """Counts of numbers: ``parameters`` of the model, ``covered`` by rows with directions; and ``left_out``, the
    largest of the others as (name, count, reason). A parameter with several names counts once.
    """
    measured = {id(layers[name].weight) for name, row in rows.items() if not row.empty_reason}
    reasons = {name: row.empty_reason for name, row in rows.items() if row.empty_reason} | dict(skipped)
    left_out: list[tuple[str, int, str]] = [
        (layer_name(path), parameter.numel(), _reason(layer_name(path), parameter.dim(), reasons))
        for path, parameter in model.named_parameters()
        if id(parameter) not in measured
    ]
    total = sum(parameter.numel() for parameter in model.parameters())
    missing = sum(count for _, count, _ in left_out)
    left_out.sort(key=lambda one: -one[1])
    return {"parameters": total, "covered": total - missing, "left_out": left_out[:LARGEST]}


def coverage_line(found: Mapping[str, Any]) -> str:
    """One sentence about what :func:`coverage` found."""
    total = max(found["parameters"], 1)
    line = f"Rows cover {100 * found['covered'] / total:.1f} % of the parameters"
    names = [f"{name} ({100 * count / total:.1f} %), because: {reason}" for name, count, reason in found["left_out"]]
    return line + ("; largest left out: " + "; ".join(names) if names else "") + "."


def _reason(path: str, dimensions: int, reasons: Mapping[str, str]) -> str:
    owner, _, own = path.rpartition(".")
    if path in reasons:
        return reasons[path]
    if dimensions < 2:
        return "a vector, not a matrix"
    return reasons.get(owner, "no matrix") if own == "weight" else reasons.get(owner, "its module is not measured")
