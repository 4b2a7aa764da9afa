"""Coefficients for T(σ; α, d) by matrix products alone: Chebyshev polynomials in R, or sums of Newton–Schulz iterates.

With σ_max ≤ 1, T(G) = h(R) G / d with h(x) = d/(x^{α/2} + d), 0 ≤ x ≤ 1, R = G Gᵀ. Two bases:

    polynomial   h(x) ≈ Σ_k c_k T_k(2x − 1): few terms for α ≥ 2, hopeless for α ≤ 1 (h is not smooth at 0);
    iterates     h(x) ≈ c_0 + Σ_t c_t q_t(x), q_t(σ²) σ = X_t(σ), X_0 = σ, X_{t+1} = X_t (3 − X_t²)/2: each step
                 resolves singular values 1.5 × smaller, so α ≤ 1 converges too. The paper's map for any α.

Errors are relative to max(T(σ), T(1)/8); products in 16 bit add their own 2e-4 (float16) to 1e-2 (bfloat16).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from spectral_ext.ops.spectral_newton.transfer_function import check_damping, check_exponent

Array = NDArray[np.float64]
Basis = Literal["polynomial", "iterates"]
TERMS: dict[str, tuple[int, ...]] = {
    "polynomial": (1, 2, 3, 4, 6, 8, 11, 14, 17, 20, 24, 29, 34, 40),
    "iterates": tuple(range(2, 13)),
}
FLOOR = 1.0 / 8.0


@dataclass(frozen=True)
class ProductSum:
    """h(x) ≈ Σ_k coefficients[k] · basis_k(x) on [0, 1]."""

    basis: Basis
    alpha: float
    damping: float
    coefficients: tuple[float, ...]
    error: float
    """Bound on |T̂(σ) − T(σ)| / max(T(σ), T(1)/8) on a dense grid of [0, 1], in exact arithmetic."""
    products: int
    """n × n matrix products beside the Gram matrix and the last product."""

    def __call__(self, x: Array) -> Array:
        """The approximation of h at x."""
        return np.asarray(
            basis_matrix(self.basis, np.asarray(x, np.float64), len(self.coefficients)) @ self.coefficients
        )


def basis_matrix(basis: Basis, x: Array, terms: int) -> Array:
    """Columns basis_0(x) … basis_{terms−1}(x)."""
    if basis == "polynomial":
        return np.asarray(np.polynomial.chebyshev.chebvander(2.0 * x - 1.0, terms - 1), np.float64)
    columns, q, square = [np.ones_like(x)], np.ones_like(x), np.array(x)
    for _ in range(terms - 1):
        step = 1.5 - 0.5 * square
        q, square = q * step, square * step * step
        columns.append(q)
    return np.stack(columns, 1)


def block_length(degree: int) -> int:
    """q of the Paterson–Stockmeyer scheme with the fewest products."""
    return min(range(1, degree + 1), key=lambda q: _blocked_products(degree, q))


def _blocked_products(degree: int, q: int) -> int:
    """T_2 … T_q, then one product a further block; the first is by a multiple of I where the last block is one term."""
    return q - 1 + degree // q - (degree % q == 0)


def product_count(basis: Basis, terms: int) -> int:
    """n × n products to evaluate that many terms."""
    degree = terms - 1
    if basis == "iterates":
        return max(0, 3 * degree - 3)
    return _blocked_products(degree, block_length(degree)) if degree else 0


@lru_cache(maxsize=1024)
def fit_products(basis: Basis, alpha: float, damping: float, tolerance: float) -> ProductSum:
    """The fewest terms whose error bound is at most `tolerance` on 0 ≤ σ ≤ 1. Cached.

    Raises:
        ValueError: α outside (0, 6], d not positive, or no fit within 40 (polynomial) or 12 (iterates) terms.
    """
    check_exponent(alpha)
    check_damping(damping)
    best = None
    for terms in TERMS[basis]:
        fit = fit_terms(basis, alpha, damping, terms + 1)
        if fit.error <= tolerance:
            return fit
        best = fit if best is None or fit.error < best.error else best
    assert best is not None
    raise ValueError(
        f"{basis} for alpha={alpha:g}, damping={damping:g} reach a relative error of {best.error:.1e}, "
        f"not {tolerance:g}: use solver='rational' or 'eigh'"
    )


@lru_cache(maxsize=2048)
def fit_terms(basis: Basis, alpha: float, damping: float, terms: int) -> ProductSum:
    """The minimax coefficients of that many terms (Lawson's reweighting of least squares), with their error bound."""
    sigma = np.concatenate([np.linspace(0.0, 1.0, 160), np.geomspace(1e-4, 1.0, 160)])
    values, weight = _target(alpha, damping, sigma)
    B = basis_matrix(basis, sigma**2, terms) * weight[:, None]
    norms = np.linalg.norm(B, axis=0)
    y, w = values * weight, np.ones_like(sigma)
    best, coefficients = math.inf, np.zeros(terms)
    for _ in range(40):
        c = np.linalg.lstsq(B / norms * w[:, None], y * w, rcond=1e-9)[0] / norms
        error = np.abs(B @ c - y)
        if error.max() < best:
            best, coefficients = float(error.max()), c
        w *= np.sqrt(error / error.max() + 1e-3)
        w /= w.max()
    fine = np.concatenate([np.linspace(0.0, 1.0, 3000), np.geomspace(1e-7, 1.0, 3000)])
    values, weight = _target(alpha, damping, fine)
    bound = np.abs(basis_matrix(basis, fine**2, terms) @ coefficients - values) * weight
    return ProductSum(
        basis, alpha, damping, tuple(map(float, coefficients)), float(bound.max()), product_count(basis, terms)
    )


def _target(alpha: float, damping: float, sigma: Array) -> tuple[Array, Array]:
    """h(σ²), and what an error of h is multiplied by to be relative to max(T(σ), T(1)/8)."""
    h = damping / (sigma**alpha + damping)
    transfer = sigma * h
    return h, sigma / np.maximum(transfer, FLOOR * damping / (1.0 + damping))
