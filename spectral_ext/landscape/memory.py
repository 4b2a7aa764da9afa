"""The memory of a whole measurement: what the rows of some layers hold, and layers in groups that fit a budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from spectral_ext.curvature.chunks import Plan
from spectral_ext.curvature.sites import Site, site_of
from spectral_ext.curvature.trace import UntraceableError
from spectral_ext.factors.second_moment import LARGEST_SIDE
from spectral_ext.layers import Layer


@dataclass(frozen=True)
class LandscapeMemory:
    """Bytes beyond the model, its weights and the data, counted before anything is run."""

    held: dict[str, int]
    """Layer → its gradient (summed, of a batch, and the check against Σ d aᵀ), its factors and its directions."""
    groups: list[list[str]]
    """The layers that are finished together: one pass for gradients and factors and one for quotients per group."""
    curvature: int | None
    """The most that the curvature takes, with one direction at a time; None where the model cannot be traced."""

    @property
    def total(self) -> int:
        """The largest group and the curvature."""
        return max(sum(self.held[name] for name in group) for group in self.groups) + (self.curvature or 0)

    def __str__(self) -> str:
        held, mib = self.total - (self.curvature or 0), 2**20
        passes = f"{len(self.groups)} groups of layers" if len(self.groups) > 1 else "all layers at once"
        curvature = "unknown (no trace)" if self.curvature is None else f"{self.curvature / mib:.0f} MiB"
        return f"memory: gradients and factors {held / mib:.0f} MiB ({passes}), curvature {curvature}"


def plan_memory(plan: Plan, layers: Mapping[str, Layer], top_k: int) -> LandscapeMemory:
    """What the layers hold, and the groups in which they fit ``plan.memory_budget``. From then on the plan has what is
    left of it, and its samples are cut to that.

    Half of the budget is for the layers and the other half for the curvature; where that is too little for one sample,
    the layers get what the largest one needs.

    Raises:
        ValueError: the budget is below the largest layer; the message names it.
    """
    held = {name: _held(plan, layer, top_k) for name, layer in layers.items()}
    budget = plan.memory_budget
    groups = [list(layers)]
    if budget is not None:
        largest = max(held, key=lambda name: held[name])
        if held[largest] >= budget:
            raise ValueError(
                f"memory_budget={budget} is too small for the gradient and the factors of {largest!r}, about "
                f"{held[largest]} bytes: raise it, leave the layer out by layers=, or measure on fewer rows"
            )
        for room in (max(held[largest], budget // 2), held[largest]):
            groups = _packed(held, room)
            plan.memory_budget = budget - max(sum(held[name] for name in group) for group in groups)
            try:
                plan.cut_samples()
                break
            except ValueError:  # one sample alone is too large for what is left
                if room == held[largest]:
                    raise
    return LandscapeMemory(held, groups, _curvature(plan))


def _packed(held: Mapping[str, int], room: int) -> list[list[str]]:
    groups: list[list[str]] = [[]]
    free = room
    for name, size in held.items():
        if size > free and groups[-1]:
            groups.append([])
            free = room
        groups[-1].append(name)
        free -= size
    return groups


def _held(plan: Plan, layer: Layer, top_k: int) -> int:
    """Of one layer. Without a trace a factor counts as a matrix."""
    m, n = layer.matrix_shape
    size = layer.weight.element_size()
    numbers = 3 * layer.weight.numel() + 4 * min(top_k, m, n) * (m + n)
    if not layer.no_factors:
        rows = None if layer.is_convolution else _rows(plan, layer)
        for side, count in ((n, 1), (m, 2)):  # C_δ of the layer and of the block around it
            matrix = side**2 if side <= LARGEST_SIDE else 0
            numbers += count * (matrix if rows is None or rows >= side else rows * side)
    return numbers * size


def _rows(plan: Plan, layer: Layer) -> int | None:
    total = 0
    for piece in plan.pieces:
        try:
            site: Site = site_of(plan.program(piece.batch), plan.model, layer)
        except UntraceableError:
            return None
        value = site.seed_node.meta.get("val")
        if site.dense or value is None:
            return None
        total += value.numel() // layer.matrix_shape[0]
    return total


def _curvature(plan: Plan) -> int | None:
    needs = []
    for piece in plan.pieces:
        try:
            plan.program(piece.batch)
        except UntraceableError:
            return None
        estimate = plan.estimate(piece.batch)
        needs.append(max(estimate.total(), estimate.self_check if plan.self_check else 0))
    return max(needs)
