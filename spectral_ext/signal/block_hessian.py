"""Is h_k an eigenvalue? A layer's Hessian block, its top eigenvalues, and the gradient's directions in it.

h_k = vec(D_k)ᵀ H vec(D_k) is a Rayleigh quotient. It is an eigenvalue where H vec(D_k) = h_k vec(D_k); the residual of
that equation bounds the distance to the next eigenvalue. H here is the Hessian of the mean loss in one layer's weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn

from spectral_ext.layers import Layer, find_layers
from spectral_ext.measurement.batches import Batch, LossFunction, as_batches, batch_loss, batch_size, to_device
from spectral_ext.measurement.environment import measurement

EXACT_TRACE = 1024
"""Blocks up to this size get their exact trace, one product a column; larger ones an estimate (Hutchinson 1990)."""


@dataclass(frozen=True)
class BlockSpectrum:
    """One layer's Hessian block against K directions D_k = u_kv_kᵀ."""

    h: np.ndarray
    """(K,): vec(D_k)ᵀ H vec(D_k)."""
    residual: np.ndarray
    """(K,): ‖H vec(D_k) − h_k vec(D_k)‖/|h_k|. Some eigenvalue lies within |h_k| times it of h_k; 0 means that h_k is
    one."""
    eigenvalues: np.ndarray
    """(r,): the largest eigenvalues of the block, decreasing."""
    overlap: np.ndarray
    """(r, K): ⟨e_i, vec(D_k)⟩². Row i sums to the share of eigenvector e_i that lies in the span of the directions."""
    trace: float
    trace_se: float
    """Standard error of ``trace``; 0 where it is exact."""

    @property
    def trace_share(self) -> float:
        """Σ_k h_k/tr H: the share of the block's trace that the K directions catch."""
        return float(self.h.sum() / self.trace) if self.trace else math.nan

    @property
    def captured(self) -> np.ndarray:
        """(r,): how much of each top eigenvector lies in the span of the directions."""
        return self.overlap.sum(1)


def block_spectrum(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Iterable[Batch],
    directions: Mapping[str, tuple[Tensor, Tensor]],
    *,
    eigenvalues: int = 3,
    probes: int = 32,
    seed: int = 0,
) -> dict[str, BlockSpectrum]:
    """The Hessian block of each layer in ``directions``: eigen-residuals, top eigenvalues (Lanczos), trace, overlap.

    Every Hessian-vector product is exact, by double backward in the weight. The graphs of all batches are held for the
    layer at work, so that memory grows with the samples.

    Args:
        model, loss_fn, batches: as in ``directional_curvature``; the model is left as it was.
        directions: ``{name: (U, V)}`` with orthonormal columns, (m, K) and (n, K), as ``directional_curvature``
            returns them.
        eigenvalues: r, fewer than the block's size.
        probes: random vectors for the trace of blocks above ``EXACT_TRACE``.
        seed: of Lanczos' start and of the probes.

    Raises:
        KeyError: a name that is no measurable layer.
        ValueError: no batch, an empty batch, a loss that is not a finite scalar, or a wrong shape of directions.
    """
    layers, skipped = find_layers(model, named=directions)
    missing = [name for name in directions if name not in layers]
    if missing:
        raise KeyError(f"directions: {missing[0]!r} is no measurable layer: {skipped.get(missing[0], 'no such layer')}")
    data = as_batches(batches)
    found = {}
    with measurement(model):
        for name, (U, V) in directions.items():
            layer = layers[name]
            product = _hessian_product(model, loss_fn, data, layer)
            found[name] = _spectrum(layer, product, _matrix(layer, U, V), eigenvalues, probes, seed)
    return found


def _matrix(layer: Layer, U: Tensor, V: Tensor) -> np.ndarray:
    m, n = layer.matrix_shape
    if U.dim() != 2 or V.dim() != 2 or U.shape != (m, U.shape[1]) or V.shape != (n, U.shape[1]):
        raise ValueError(
            f"directions of {layer.name!r} have shapes {tuple(U.shape)} and {tuple(V.shape)}, not ({m}, K), ({n}, K)"
        )
    return layer.tangents(U.double(), V.double()).flatten(1).cpu().numpy()


def _hessian_product(
    model: nn.Module, loss_fn: LossFunction, batches: list[Batch], layer: Layer
) -> Callable[[np.ndarray], np.ndarray]:
    """v ↦ Hv of the mean loss over all batches, float64 in and out."""
    weight = layer.weight
    data = [to_device(batch, weight.device) for batch in batches]
    sizes = [batch_size(batch) for batch in data]
    graphs = []
    for batch in data:
        loss = batch_loss(model, loss_fn, batch)
        if not bool(loss.isfinite()):
            raise ValueError(f"the loss is {loss.item()}: check the data and the weights")
        (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
        graphs.append(gradient)

    def product(vector: np.ndarray) -> np.ndarray:
        tangent = torch.as_tensor(vector, device=weight.device).to(weight.dtype).reshape(weight.shape)
        total = torch.zeros_like(weight, dtype=torch.float64)
        for size, gradient in zip(sizes, graphs, strict=True):
            if gradient.requires_grad:
                (hv,) = torch.autograd.grad(gradient, weight, tangent, retain_graph=True, allow_unused=True)
                if hv is not None:
                    total += size * hv.double()
        return (total / sum(sizes)).flatten().cpu().numpy()

    return product


def _spectrum(
    layer: Layer,
    product: Callable[[np.ndarray], np.ndarray],
    directions: np.ndarray,
    eigenvalues: int,
    probes: int,
    seed: int,
) -> BlockSpectrum:
    size = layer.weight.numel()
    images = np.stack([product(direction) for direction in directions])
    h = np.einsum("ki,ki->k", directions, images)
    with np.errstate(divide="ignore", invalid="ignore"):
        residual = np.linalg.norm(images - h[:, None] * directions, axis=1) / np.abs(h)
    rng = np.random.default_rng(seed)
    operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
    tolerance = 0.0 if layer.weight.dtype == torch.float64 else 1e-6
    r = min(eigenvalues, size - 1)
    values, vectors = eigsh(operator, k=r, which="LA", v0=rng.standard_normal(size), tol=tolerance)
    order = np.argsort(-values)
    overlap = np.square(vectors[:, order].T @ directions.T)
    if size <= EXACT_TRACE:
        trace, se = float(sum(product(unit)[i] for i, unit in enumerate(np.eye(size)))), 0.0
    else:
        draws = rng.choice([-1.0, 1.0], size=(probes, size))
        forms = np.array([draw @ product(draw) for draw in draws])
        trace, se = float(forms.mean()), float(forms.std(ddof=1) / math.sqrt(probes))
    return BlockSpectrum(h, residual, values[order], overlap, trace, se)
