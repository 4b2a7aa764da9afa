"""Cross-fitted singular values: directions from the other groups, σ̃ on the group that was held out.

The singular value σ_k = u_kᵀGv_k of one batch is inflated by noise, because u_k and v_k were chosen to make it large on
that batch. On a group that had no part in the choice, u_kᵀG_jv_k has the mean ⟨u_k v_kᵀ, population gradient⟩.

The J held-out values are not independent: G_l is held out in fold l and shapes the directions of every other fold. If
the population gradient is zero, the variance of their mean is 1.5 to 7 times what independent folds would give, so that
a plain t-test over the folds finds "signal" in 10 to 60 % of pure-noise layers. The standard errors here are those of a
jackknife that deletes a whole group and repeats the cross-fit without it. By the Efron–Stein inequality that variance
is not too small in the mean, whatever the dependence.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor

MIN_GROUPS = 3
"""The jackknife leaves out two groups at a time, and one must remain."""
EXACT_BELOW = 1024
"""Up to this many rows or columns (the smaller number), singular vectors come from the Gram matrix."""
CUTOFF = 1e-6
"""Singular values below this share of the largest are rounding error of a float32 gradient."""


@dataclass(frozen=True)
class CrossFit:
    """Held-out singular values of one layer's gradient; k counts directions in decreasing σ of the other groups."""

    folds: np.ndarray
    """(J, K): u_jkᵀ G_j v_jk with u_jk, v_jk from the mean gradient of the other groups."""
    sigma: np.ndarray
    """(K,): σ̃_k, the mean over the folds, weighted by their samples. It may be negative."""
    sigma_se: np.ndarray
    """(K,): delete-one-group jackknife standard error of σ̃_k."""
    z: np.ndarray
    """(K,): σ̃_k over its standard error."""
    p: np.ndarray
    """(K,): one-sided p-value of "no signal along direction k" by Student's t with J − 1 degrees of freedom."""
    resolved: np.ndarray
    """(K,) bool: the directions that Holm's procedure rejects at ``error_rate``."""
    error_rate: float
    """Bound on the probability that any direction without signal counts as resolved (family-wise, over the K)."""

    @property
    def num_resolved(self) -> int:
        return int(self.resolved.sum())


def cross_fit(
    gradients: Sequence[Tensor],
    *,
    top_k: int = 20,
    weights: Sequence[float] | None = None,
    error_rate: float = 0.05,
    directions: Sequence[tuple[Tensor, Tensor]] | None = None,
) -> CrossFit:
    """σ̃_k = Σ_j w_j u_jkᵀ G_j v_jk with a standard error, and which of the K directions are resolved.

    Args:
        gradients: the mean gradient of each of J ≥ 3 groups, (m, n), computed in float64.
        top_k: directions; fewer where the mean of J − 2 groups has a lower rank.
        weights: samples of each group; None for groups of equal size.
        error_rate: family-wise error rate of ``resolved`` over the K directions.
        directions: of the folds, from :func:`fold_directions`, where they have been computed already.

    Raises:
        ValueError: fewer than three groups, gradients of different shapes, NaN or Inf, or weights that are not
            positive.
    """
    if len(gradients) < MIN_GROUPS:
        raise ValueError(f"cross-fitting needs at least {MIN_GROUPS} groups, there are {len(gradients)}")
    if not 0 < error_rate < 1:
        raise ValueError(f"error_rate must lie between 0 and 1, not {error_rate}")
    stack, w = _stacked(gradients, weights)
    pairs = list(directions) if directions is not None else _fold_directions(stack, w, top_k)
    count = min([top_k, *(U.shape[1] for U, _ in pairs)])
    held_out = torch.stack([_forms(U, V, G) for (U, V), G in zip(_cut(pairs, count), stack, strict=True)])
    replicates = _leave_one_out(stack, w, count)
    count = replicates.shape[1]
    folds = held_out[:, :count].cpu().numpy()
    sigma = (w[:, None] * folds).sum(0)
    groups = len(stack)
    variance = (groups - 1) / groups * np.square(replicates - replicates.mean(0)).sum(0)
    se = np.sqrt(variance)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(se > 0, sigma / se, np.where(sigma > 0, np.inf, 0.0))
    p = stats.t.sf(z, groups - 1)
    return CrossFit(folds, sigma, se, z, p, holm(p, error_rate), error_rate)


def fold_directions(
    gradients: Sequence[Tensor], *, top_k: int = 20, weights: Sequence[float] | None = None
) -> list[tuple[Tensor, Tensor]]:
    """For each group j, ``(U, V)`` of shapes (m, K), (n, K): singular vectors of the mean gradient of the others.

    K may differ between folds, where a mean gradient has a rank below ``top_k``.

    Raises:
        ValueError: fewer than two groups, shapes that differ, or NaN or Inf.
    """
    if len(gradients) < 2:
        raise ValueError("directions from the other groups need at least two groups")
    return _fold_directions(*_stacked(gradients, weights), top_k)


def holm(p: np.ndarray, error_rate: float) -> np.ndarray:
    """Holm's step-down procedure: which hypotheses are rejected, with a family-wise error of at most ``error_rate``
    under any dependence between the tests (Holm 1979)."""
    order = np.argsort(p, kind="stable")
    bound = error_rate / (len(p) - np.arange(len(p)))
    failed = np.flatnonzero(~(p[order] <= bound))
    rejected = np.zeros(len(p), dtype=bool)
    rejected[order[: failed[0] if len(failed) else len(p)]] = True
    return rejected


def top_singular_vectors(gradient: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """U (m, K), V (n, K) of the largest singular values of a float64 matrix, those above ``CUTOFF`` · σ_1.

    Exact up to ``EXACT_BELOW`` rows or columns, by the Gram matrix; above, by randomised subspace iteration.
    """
    m, n = gradient.shape
    if min(m, n) > max(EXACT_BELOW, 4 * top_k):
        with torch.random.fork_rng(devices=[gradient.device] if gradient.is_cuda else []):
            torch.manual_seed(0)
            U, sigma, V = torch.svd_lowrank(gradient, q=2 * top_k + 8, niter=6)
        rank = int((sigma[:top_k] > CUTOFF * sigma[0]).sum())
        return U[:, :rank], V[:, :rank]
    wide = m <= n
    short = gradient if wide else gradient.mT
    values, vectors = torch.linalg.eigh(short @ short.mT)
    values, vectors = values.flip(0)[:top_k], vectors.flip(1)[:, :top_k]
    rank = int(((values > 0) & (values > max(CUTOFF**2, 1e-14) * values.amax())).sum()) if len(values) else 0
    near = vectors[:, :rank]
    far = short.mT @ near
    far = far / far.norm(dim=0)
    return (near, far) if wide else (far, near)


def _stacked(gradients: Sequence[Tensor], weights: Sequence[float] | None) -> tuple[Tensor, np.ndarray]:
    shapes = {tuple(g.shape) for g in gradients}
    if len(shapes) > 1 or len(next(iter(shapes))) != 2:
        raise ValueError(f"gradients must be matrices of one shape, not {sorted(shapes)}")
    stack = torch.stack([g.detach().double() for g in gradients])
    if not bool(stack.isfinite().all()):
        raise ValueError("a group's gradient holds NaN or Inf")
    w = np.ones(len(stack)) if weights is None else np.asarray(weights, dtype=np.float64)
    if w.shape != (len(stack),) or not (w > 0).all():
        raise ValueError(f"weights must be {len(stack)} positive numbers, the samples of each group")
    return stack, w / w.sum()


def _fold_directions(stack: Tensor, w: np.ndarray, top_k: int) -> list[tuple[Tensor, Tensor]]:
    total = torch.tensordot(torch.as_tensor(w, device=stack.device), stack, 1)
    return [top_singular_vectors((total - w[j] * stack[j]) / (1 - w[j]), top_k) for j in range(len(stack))]


def _leave_one_out(stack: Tensor, w: np.ndarray, top_k: int) -> np.ndarray:
    """(J, K'): the cross-fitted σ̃ of the data without group i, from the directions of all groups but i and j."""
    groups = len(stack)
    total = torch.tensordot(torch.as_tensor(w, device=stack.device), stack, 1)
    parts: dict[tuple[int, int], Tensor] = {}
    for i, j in itertools.combinations(range(groups), 2):
        rest = (total - w[i] * stack[i] - w[j] * stack[j]) / (1 - w[i] - w[j])
        U, V = top_singular_vectors(rest, top_k)
        parts[i, j], parts[j, i] = _forms(U, V, stack[j]), _forms(U, V, stack[i])  # [deleted, held out]
    count = min(len(form) for form in parts.values())
    replicates = np.empty((groups, count))
    for i in range(groups):
        others = [j for j in range(groups) if j != i]
        values = torch.stack([parts[i, j][:count] for j in others]).cpu().numpy()
        replicates[i] = np.average(values, axis=0, weights=w[others])
    return replicates


def _forms(U: Tensor, V: Tensor, G: Tensor) -> Tensor:
    """u_kᵀ G v_k, (K,)."""
    return ((G @ V.to(G)) * U.to(G)).sum(0)


def _cut(pairs: Sequence[tuple[Tensor, Tensor]], count: int) -> list[tuple[Tensor, Tensor]]:
    return [(U[:, :count], V[:, :count]) for U, V in pairs]
