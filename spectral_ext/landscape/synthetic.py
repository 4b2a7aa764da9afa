"""A landscape with known exponents, made without a model: for tests and for trying a report."""

from __future__ import annotations

import numpy as np

from spectral_ext.landscape.derive import derive
from spectral_ext.landscape.mechanisms import layer_norm_diagnostic
from spectral_ext.landscape.row import DirectionArrays, LayerLandscape
from spectral_ext.landscape.table import Landscape
from spectral_ext.spectra.weights import weight_spectrum


def synthetic_row(
    name: str,
    *,
    kind: str = "Linear",
    depth: int = 0,
    shape: tuple[int, int] = (48, 96),
    alpha: float = 2.0,
    gamma: float = 1.0,
    noise: float = 0.05,
    negative: int = 0,
    top_k: int = 20,
    samples: int = 256,
    seed: int = 0,
) -> LayerLandscape:
    """A row whose σ_k ~ k^(−γ) and h_k ~ σ_k^α carry log-normal noise; ``negative`` of the weakest h_k change sign."""
    rng = np.random.default_rng(seed)
    rank = np.arange(1, min(shape) + 1, dtype=np.float64)
    sigma_all = np.sort(0.3 * rank**-gamma * np.exp(noise * rng.standard_normal(len(rank))))[::-1]
    sigma = sigma_all[:top_k]
    k = len(sigma)
    h = 4.0 * sigma**alpha * np.exp(noise * rng.standard_normal(k))
    if negative:
        h[-negative:] *= -1
    eigenvalues_delta = np.sort(np.arange(1, shape[0] + 1) ** -1.2 * np.exp(noise * rng.standard_normal(shape[0])))[
        ::-1
    ]
    eigenvalues_A = np.sort(np.arange(1, shape[1] + 1) ** -0.8 * np.exp(noise * rng.standard_normal(shape[1])))[::-1]
    output = 0.7 * eigenvalues_delta[:k] * np.exp(noise * rng.standard_normal(k))
    input = 0.8 * eigenvalues_A[:k] * np.exp(noise * rng.standard_normal(k))
    share = rng.uniform(0.1, 0.4, k)
    arrays = DirectionArrays(
        sigma=sigma.copy(),
        h=h,
        h_gauss_newton=h * (1 - share),
        h_residual={"norm": 0.6 * share * h, "activation": 0.4 * share * h},
        h_sop=output * input * np.exp(2 * noise * rng.standard_normal(k)),
        gn_sample=h * np.exp(4 * noise * rng.standard_normal(k)),
        output_quotient=output,
        input_quotient=input,
        sigma_all=sigma_all,
    )
    row = LayerLandscape(name, kind, shape, depth, samples=samples, arrays=arrays, method="synthetic")
    derive(row, eigenvalues_delta=eigenvalues_delta, eigenvalues_A=eigenvalues_A)
    row.weight = weight_spectrum(rng.standard_t(3.0, size=shape))
    row.layer_norm = layer_norm_diagnostic(sigma, arrays.rho_A, eigenvalues_A, behind_norm=kind == "Linear")
    return row


def synthetic_landscape(layers: int = 5, *, seed: int = 0) -> Landscape:
    """``layers`` rows of different kinds and exponents, one of them with negative curvature, and an empty row last."""
    rows = {}
    for depth in range(layers):
        convolution = depth % 2 == 0
        row = synthetic_row(
            f"blocks.{depth}.{'conv' if convolution else 'fc'}",
            kind="Conv2d" if convolution else "Linear",
            depth=depth,
            alpha=2.0 if convolution else 1.1,
            gamma=0.7 + 0.2 * depth,
            negative=2 if depth == 1 else 0,
            seed=seed + depth,
        )
        rows[row.name] = row
    empty = LayerLandscape(
        "head",
        "Linear",
        (10, 48),
        layers,
        empty_reason="its gradient is zero",
        samples=256,
    )
    rows[empty.name] = empty
    meta = {
        "synthetic": True,
        "top_k": 20,
        "seed": seed,
        "samples": 256,
        "scale": "expand",
        "notes": [],
    }
    return Landscape(rows, {"bn": "BatchNorm2d has no weight matrix that is measured"}, meta)
