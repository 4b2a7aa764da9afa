"""Projections of errors on the tangents of a weight's directions, at every product that the weight enters."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from spectral_ext.curvature.directions import Directions
from spectral_ext.curvature.evaluate import Environment
from spectral_ext.curvature.sites import Site
from spectral_ext.curvature.sums import sum_in_float64

aten = torch.ops.aten

Change = Callable[[Directions], Directions]


@dataclass
class Use:
    """One product with a weight, or with its transpose or some of its rows or columns."""

    site: Site
    """The product, with the factor that it sees as the weight."""
    factor: Change
    """What the directions of the weight are in that factor."""


def uses_of(site: Site, nodes: set[fx.Node]) -> list[Use] | None:
    """Every use of a site's weight, or None where one is no product with an input and no lookup.

    ``nodes``: those that the loss depends on.
    """
    if site.input is not None:
        return [Use(site, lambda d: d.stored)]
    found: list[Use] = []
    return found if _collect(site.weight, nodes, lambda d: d.stored, found) else None


def _collect(factor: fx.Node, nodes: set[fx.Node], change: Change, found: list[Use]) -> bool:
    for user in (user for user in factor.users if user in nodes):
        target, args = user.target, user.args
        if target in (aten.mm.default, aten.addmm.default) and args[-1] is factor and args[-2] is not factor:
            if user.kwargs:
                return False
            found.append(Use(Site(factor, user, args[-2], True, [], {}), change))  # type: ignore[arg-type]
        elif target is aten.convolution.default and args[1] is factor and args[0] is not factor and not args[6]:
            found.append(Use(Site(factor, user, args[0], False, [], {}), change))  # type: ignore[arg-type]
        elif target is aten.embedding.default and args[0] is factor:
            found.append(Use(Site(factor, user, args[1], False, [], {}), change))  # type: ignore[arg-type]
        elif target is aten.expand.default:
            if not _collect_batched(user, nodes, change, found):
                return False
        elif target in _CHANGES and args[0] is factor:
            if not _collect(user, nodes, _after(change, _CHANGES[target](*args[1:])), found):
                return False
        elif target in _SPLITS and args[0] is factor:
            if not _collect_parts(user, nodes, change, found):
                return False
        else:
            return False
    return True


def _collect_batched(expanded: fx.Node, nodes: set[fx.Node], change: Change, found: list[Use]) -> bool:
    """Uses of a factor that is repeated for each matrix of a batch: nn.Linear on an input that is not contiguous."""
    shape = expanded.meta["val"].shape
    if tuple(shape[1:]) != tuple(expanded.args[0].meta["val"].shape):  # type: ignore[union-attr]
        return False
    for user in (user for user in expanded.users if user in nodes):
        if user.target is aten.view.default and user.meta["val"].shape == shape:
            if any(not _batched_product(one, user, change, found) for one in user.users if one in nodes):
                return False
        elif not _batched_product(user, expanded, change, found):
            return False
    return True


def _batched_product(user: fx.Node, factor: fx.Node, change: Change, found: list[Use]) -> bool:
    if user.target is not aten.bmm.default or user.args[1] is not factor or user.args[0] is factor:
        return False
    found.append(Use(Site(factor, user, user.args[0], True, [], {}), change))  # type: ignore[arg-type]
    return True


def _collect_parts(split: fx.Node, nodes: set[fx.Node], change: Change, found: list[Use]) -> bool:
    sizes, dim = split.args[1], (*split.args[2:], 0)[0]
    length: int = split.args[0].meta["val"].shape[dim]  # type: ignore[union-attr,index]
    bounds = [0]
    if isinstance(sizes, int):
        bounds += [min(start + sizes, length) for start in range(0, length, sizes)]
    else:
        for size in sizes:  # type: ignore[union-attr]
            bounds.append(bounds[-1] + int(size))  # type: ignore[arg-type]
    for item in (user for user in split.users if user in nodes):
        index: Any = item.args[1]
        if item.target is not operator.getitem:
            return False
        part = _slice(dim, bounds[index], bounds[index + 1])  # type: ignore[arg-type]
        if not _collect(item, nodes, _after(change, part), found):
            return False
    return True


def _after(first: Change, then: Change) -> Change:
    return lambda d: then(first(d))


def _slice(dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Change:
    def change(d: Directions) -> Directions:
        part = slice(start, end, step)
        if d.dense is None and len(d.shape) != 2:
            d = Directions(d.shape, dense=d.weight_tangents())
        if d.dense is not None:
            index = [slice(None)] * d.dense.dim()
            index[1 + dim % (d.dense.dim() - 1)] = part
            dense = d.dense[tuple(index)]
            return Directions(dense.shape[1:], dense=dense)
        assert d.U is not None and d.V is not None
        U, V = (d.U[part], d.V) if dim % 2 == 0 else (d.U, d.V[part])
        return Directions(torch.Size((U.shape[0], V.shape[0])), U, V)

    return change


def _transpose(*_: Any) -> Change:
    return lambda d: d.transposed


_CHANGES: dict[Any, Callable[..., Change]] = {aten.t.default: _transpose, aten.slice.Tensor: _slice}
_SPLITS = {aten.split.Tensor, aten.split_with_sizes.default}


class Lookup:
    """⟨δ_b, D_k[index_b]⟩ for all samples and directions: the rows of an embedding."""

    def __init__(self, index: Tensor, directions: Directions, samples: int) -> None:
        self.index, self.directions, self.samples = index, directions, samples

    def __call__(self, delta: Tensor) -> Tensor:
        """(B, K), float64."""
        if self.directions.dense is not None:
            rows = (self.directions.dense[:, self.index] * delta).reshape(len(self.directions), self.samples, -1)
            return rows.double().sum(2).T
        U, V = self.directions.U, self.directions.V
        assert U is not None and V is not None
        return ((delta @ V) * U[self.index]).reshape(self.samples, -1, U.shape[1]).double().sum(1)


class Projection:
    """⟨δ_b, ż_bk⟩ for all samples b and directions k, without ż: u_kᵀ δ first, then v_kᵀ a.

    The directions are those of the factor as the site's product sees it: z = x Wᵀ, or z = x W if ``transposed``.
    """

    def __init__(self, site: Site, env: Environment, directions: Directions, samples: int) -> None:
        directions = directions.transposed if site.transposed else directions
        self.directions, self.samples = directions, samples
        x, start = env[site.input].detach(), site.seed_node  # type: ignore[index]
        self.groups = 1
        if start.target is aten.convolution.default:
            geometry = start.args[3:]
            self.groups = int(start.args[8])  # type: ignore[arg-type]

            def convolve(weight: Tensor) -> Tensor:
                return aten.convolution(x, weight, None, *geometry)

            if directions.dense is not None:
                self.z = directions.convolution_output(convolve, self.groups)
            else:
                rest = directions.shape[1:]
                filters = directions.V.T.reshape(len(directions), *rest)  # type: ignore[union-attr]
                z = convolve(filters.repeat(self.groups, *(1,) * len(rest)))
                self.z = z.reshape(samples, self.groups, len(directions), -1)
        elif directions.dense is not None:
            self.z = directions.linear_output(x)
        else:
            self.z = (x @ directions.V).reshape(samples, 1, -1, len(directions)).mT
        self.convolution = start.target is aten.convolution.default

    def __call__(self, delta: Tensor) -> Tensor:
        """(B, K), float64."""
        if self.directions.dense is not None:
            rows = self.z.reshape(len(self.directions), self.samples, -1).transpose(0, 1)
            products = rows * delta.reshape(self.samples, 1, -1)
            return sum_in_float64(products.flatten(0, 1)).unflatten(0, (self.samples, -1))
        U = self.directions.U
        assert U is not None
        if self.convolution:
            d = delta.reshape(self.samples, self.groups, -1, delta[0, 0].numel())
            t = U.T.reshape(len(self.directions), self.groups, -1).transpose(0, 1) @ d
        else:
            t = (delta.reshape(self.samples, 1, -1, delta.shape[-1]) @ U).mT
        return (t * self.z).sum(3).double().sum(1)
