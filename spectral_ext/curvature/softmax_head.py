"""A linear layer that meets a log-softmax: its curvature by tiles over the classes.

For logits z = x W + b and ℓ = log-softmax(z) that the loss is linear in, the tangents ż = ẋ W add

    Σ_t w_t Var_{p_t}(ż_t),   w_t = −Σ_c ∂L/∂ℓ_tc,

to h, and ⟨x̄, ẋ⟩ to L̇, with x̄ = ∂L/∂x. So ż is needed a tile of classes at a time, and nothing of the size directions ×
positions × classes is written. The mean of ż_t under p_t is ẋ_t·(W p_t), whose second factor is the same for all
directions. For u vᵀ in W itself, ż_t = (v·x_t) u, and one product of p with u and u² serves all directions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from spectral_ext.curvature.directions import Directions
from spectral_ext.curvature.evaluate import Environment, arguments_of
from spectral_ext.curvature.rules import operands
from spectral_ext.curvature.sites import has_second_derivative
from spectral_ext.curvature.sums import inner_products, weighted_squares
from spectral_ext.curvature.trace import Program

aten = torch.ops.aten

TILE_BYTES = 4 << 20
"""Bytes of logit tangents at a time."""
ROWS_BYTES = 16 << 20
"""Bytes of probabilities that are prepared at a time."""
VIEWS = {aten.view.default, aten._unsafe_view.default, aten.reshape.default}
COPIES = {aten.clone.default, aten.alias.default}
PICKS = {aten.slice.Tensor, aten.index_select.default}
"""Operations that pick positions along one dimension."""
FACTORS: dict[Any, Callable[[float], float]] = {
    aten.mul.Scalar: lambda c: c,
    aten.mul.Tensor: lambda c: c,
    aten.div.Scalar: lambda c: 1 / c,
    aten.div.Tensor: lambda c: 1 / c,
}
"""Operations that multiply logits by a constant."""


@dataclass(frozen=True)
class HeadNodes:
    """Where a head stands in the graph: product → moves and scalings → log-softmax."""

    product: fx.Node
    input: fx.Node
    weight: fx.Node
    """The right operand of the product, (n, V)."""
    moves: tuple[fx.Node, ...]
    softmax: fx.Node

    @property
    def absorbed(self) -> tuple[fx.Node, ...]:
        """The nodes that no tangent passes."""
        return (self.product, *self.moves, self.softmax)


def find_heads(program: Program, reached: set[fx.Node], seeds: set[fx.Node]) -> list[HeadNodes]:
    """The heads of a program.

    Args:
        reached: the nodes that tangents of some layer reach.
        seeds: the nodes where tangents start.
    """
    needed = set(program.nodes)
    found = []
    for softmax in program.nodes:
        if softmax.target is aten._log_softmax.default and softmax in reached and not softmax.args[2]:
            head = _head(softmax, needed, reached, seeds)
            if head is not None and _linear_behind(softmax, needed, reached):
                found.append(head)
    return found


def _head(softmax: fx.Node, needed: set[fx.Node], reached: set[fx.Node], seeds: set[fx.Node]) -> HeadNodes | None:
    """The head that ends in ``softmax``, or None where anything but moves and constant factors lies between."""
    moves: list[fx.Node] = []
    node: Any = softmax.args[0]
    user = softmax
    while isinstance(node, fx.Node) and [u for u in node.users if u in needed] == [user]:
        if node.target in (aten.mm.default, aten.addmm.default):
            x, weight = node.args[-2:]
            if node.kwargs or not isinstance(x, fx.Node) or not isinstance(weight, fx.Node) or x is weight:
                return None
            if any(i in reached for i in operands(node) if i is not x):
                return None
            head = HeadNodes(node, x, weight, tuple(reversed(moves)), softmax)
            return head if _class_dimension(head) == softmax.args[1] % softmax.meta["val"].dim() else None
        if node in seeds or any(i in reached for i in operands(node)[1:]):
            return None
        moves.append(node)
        node, user = node.args[0], node
    return None


def _class_dimension(head: HeadNodes) -> int | None:
    """The dimension of the log-softmax's argument that runs over the columns of the product; None: no single one."""
    axis, shape = 1, head.product.meta["val"].shape
    for move in head.moves:
        value, rest = move.meta.get("val"), move.args[1:]
        if not isinstance(value, Tensor) or (move.kwargs and move.target not in COPIES):
            return None
        dims, target = len(shape), move.target
        dim: Any
        if target in VIEWS:
            if axis != dims - 1 or not value.dim() or value.shape[-1] != shape[-1]:
                return None
            axis = value.dim() - 1
        elif target in PICKS:
            dim = rest[0] if rest else 0
            if dim % dims == axis:
                return None
        elif target is aten.select.int:
            dim = rest[0]
            if dim % dims == axis:
                return None
            axis -= dim % dims < axis
        elif target is aten.index.Tensor:
            indices: Any = rest[0]
            if axis != dims - 1 or value.shape[-1] != shape[-1] or value.dim() < 2 or not _leading(indices, dims):
                return None
            axis = value.dim() - 1
        elif target is aten.transpose.int:
            swapped: Any = rest
            a, b = (dim % dims for dim in swapped)
            axis = b if axis == a else a if axis == b else axis
        elif target is aten.permute.default:
            order: Any = rest[0]
            axis = [dim % dims for dim in order].index(axis)
        elif target in FACTORS:
            if not isinstance(rest[0], (int, float)):
                return None
        elif target not in COPIES:
            return None
        shape = value.shape
    return axis


def _leading(indices: Any, dims: int) -> bool:
    """Whether indexing leaves the last dimension alone, and last."""
    taken = sum(i.meta["val"].dim() if i.meta["val"].dtype == torch.bool else 1 for i in indices if i is not None)
    return all(i is not None for i in indices) and taken < dims


def _linear_behind(softmax: fx.Node, needed: set[fx.Node], reached: set[fx.Node]) -> bool:
    seen, stack = set(), [user for user in softmax.users if user in needed]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if has_second_derivative(node, reached):
            return False
        stack += [user for user in node.users if user in needed]
    return True


class SoftmaxHead:
    """A head at one batch."""

    def __init__(self, nodes: HeadNodes, env: Environment, adjoint: Tensor, *, seeded: bool) -> None:
        """``adjoint``: ∂L/∂ℓ. ``seeded``: whether directions in the head's own weight are asked for."""
        self.nodes = nodes
        self.weight: Tensor = env[nodes.weight].detach()
        x = env[nodes.input].detach()
        rows, self.scale = _positions(nodes, env)
        dim: Any = nodes.softmax.args[1]
        log_p, adjoint = (_by_position(t, dim) for t in (env[nodes.softmax].detach(), adjoint))
        at_once = max(1, ROWS_BYTES // (log_p.element_size() * log_p.shape[1]))
        mass = -adjoint.sum(1)
        used = mass.nonzero()[:, 0]
        self.p = log_p.new_empty(len(used), log_p.shape[1])
        """w_t p_t, (N, V), of the positions t with w_t ≠ 0."""
        self.input_adjoint = torch.zeros_like(x)
        self.weight_gradient = torch.zeros_like(self.weight) if seeded else None
        for part in torch.arange(len(mass), device=mass.device).split(at_once):
            gradient = (log_p[part].exp_().mul_(mass[part, None]).add_(adjoint[part])).mul_(self.scale)
            self.input_adjoint.index_add_(0, rows[part], gradient @ self.weight.mT)
            if self.weight_gradient is not None:
                self.weight_gradient.addmm_(x[rows[part]].mT, gradient)
        for start in range(0, len(used), at_once):
            part = used[start : start + at_once]
            torch.mul(log_p[part].exp_(), mass[part, None], out=self.p[start : start + at_once])
        rows = rows[used]
        whole = len(rows) == len(x) and bool((rows == torch.arange(len(x), device=rows.device)).all())
        self.rows = slice(None) if whole else rows
        self.mass = self.p.sum(1, dtype=torch.float64)
        self.mean_weight = (self.p @ self.weight.mT) / self.mass[:, None].to(self.p)
        self.x = x[self.rows] if seeded else None

    def push(self, d: Tensor) -> tuple[Tensor, Tensor]:
        """``(L̇, term)`` of tangents (K, rows, n) of the input: (K,) each, float64."""
        slope = inner_products(d, self.input_adjoint)
        d = d[:, self.rows]
        return slope, self._variance(d, self.weight, (d * self.mean_weight).sum(-1))

    def seed(self, directions: Directions, *, transposed: bool) -> tuple[Tensor, Tensor]:
        """``(L̇, term)`` of directions in the head's weight; ``transposed``: it is stored (n, V)."""
        assert self.weight_gradient is not None and self.x is not None
        slope = directions.along(self.weight_gradient if transposed else self.weight_gradient.mT)
        directions = directions.stored.transposed if transposed else directions.stored
        if directions.dense is not None:
            means = [(self.x * (self.p @ D)).sum(-1) / self.mass.to(self.p) for D in directions.dense]
            pairs = zip(directions.dense, means, strict=True)
            return slope, torch.cat([self._variance(self.x.unsqueeze(0), D.mT, m.unsqueeze(0)) for D, m in pairs])
        assert directions.U is not None and directions.V is not None
        U = directions.U.double()
        first, second = (self.mass.new_zeros(len(self.p), len(directions)) for _ in range(2))
        tile = max(64, TILE_BYTES // (8 * max(1, len(self.p))))
        for part, u in zip(self.p.split(tile, 1), U.split(tile), strict=True):
            p = part.double()
            first += p @ u
            second += p @ u.square()
        spread = (second - first.square() / self.mass[:, None]) * (self.x @ directions.V).double().square()
        return slope, spread.sum(0) * self.scale**2

    def _variance(self, d: Tensor, weight: Tensor, mean: Tensor) -> Tensor:
        """Σ_t w_t Var_{p_t}(d_t W) for d (K, N, n) and W (n, V), with the means (K, N)."""
        K, N, n = d.shape
        flat, mean = d.reshape(K * N, n), mean.unsqueeze(-1)
        tile = max(64, TILE_BYTES // max(1, K * N * d.element_size()))
        total = torch.zeros(K, dtype=torch.float64, device=d.device)
        for w, p in zip(weight.split(tile, 1), self.p.split(tile, 1), strict=True):
            total += weighted_squares((flat @ w).view(K, N, -1).sub_(mean), p)
        return total * self.scale**2


def _by_position(values: Tensor, dim: int) -> Tensor:
    turned = values.movedim(dim, -1)
    return turned.reshape(-1, turned.shape[-1])


def _positions(head: HeadNodes, env: Environment) -> tuple[Tensor, float]:
    """Which row of the product each position of the log-softmax reads, and the factor between them.

    The numbers of the rows make the moves of the logits, with one class.
    """
    product = env[head.product]
    rows, scale = torch.arange(product.shape[0], device=product.device).unsqueeze(1), 1.0
    for move in head.moves:
        args, _ = arguments_of(move, env)
        if move.target in FACTORS:
            scale *= FACTORS[move.target](args[1])
        elif move.target in VIEWS:
            rows = rows.reshape(*env[move].shape[:-1], 1)
        elif move.target not in COPIES:
            rows = move.target(rows, *args[1:])  # type: ignore[operator]
    return rows.flatten(), scale
