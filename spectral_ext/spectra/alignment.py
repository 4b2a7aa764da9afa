"""How the gradient's singular directions lie in the Kronecker factors: ρ, Φ, Λ, χ (Definition 1, Theorem 1)."""

from __future__ import annotations

from typing import Any

import numpy as np

from spectral_ext.spectra.regression import as_vector

RANK_CUTOFF = 1e-10
"""Eigenvalues below this share of the largest are rounding error: the ratio to them is undefined."""


def rayleigh_ratio(quotients: Any, eigenvalues: Any) -> np.ndarray:
    """ρ_k = u_k'Cu_k / λ_k, k-th direction with k-th largest eigenvalue (Definition 1).

    Args:
        quotients: u_k'Cu_k, (K,).
        eigenvalues: λ_1 ≥ λ_2 ≥ …, at least K of them.

    Returns:
        (K,); NaN where λ_k is below ``RANK_CUTOFF`` · λ_1.

    Raises:
        ValueError: fewer eigenvalues than quotients, or NaN.
    """
    quotients, eigenvalues = (
        as_vector(quotients, "quotients"),
        as_vector(eigenvalues, "eigenvalues"),
    )
    if len(eigenvalues) < len(quotients):
        raise ValueError(f"{len(quotients)} quotients need as many eigenvalues, there are {len(eigenvalues)}")
    values = eigenvalues[: len(quotients)]
    defined = values > RANK_CUTOFF * eigenvalues.max(initial=0.0)
    return np.where(defined, quotients / np.where(defined, values, 1.0), np.nan)


def kronecker_products(output: Any, input: Any) -> np.ndarray:
    """h_k^Kron = (u_k'C_δu_k)(v_k'C_Av_k) = Φ_kΛ_k, the product of means ("PoS")."""
    return as_vector(output, "output") * as_vector(input, "input")


def curvature_ratio(h: Any, h_kron: Any) -> np.ndarray:
    """χ_k = h_k/h_k^Kron (the paper's cos²θ_k); of S·h_k^SoP, the concentration ratio (§6.4). NaN where h_kron is 0."""
    h, h_kron = as_vector(h, "h"), as_vector(h_kron, "h_kron")
    return np.where(h_kron > 0, h / np.where(h_kron > 0, h_kron, 1.0), np.nan)
