"""One row from the tensors of one layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from spectral_ext.capture import LayerFactors, Quotients
from spectral_ext.factors.eigen import top_eigenpairs
from spectral_ext.landscape.derive import derive
from spectral_ext.landscape.mechanisms import layer_norm_diagnostic, residual_diagnostic, softmax_diagnostic
from spectral_ext.landscape.row import DirectionArrays, LayerLandscape
from spectral_ext.layers import Layer
from spectral_ext.measurement.singular_directions import SingularDirections
from spectral_ext.spectra.participation import EffectiveRank
from spectral_ext.spectra.regression import FitError
from spectral_ext.spectra.weights import weight_spectrum

FULL_SPECTRUM = 2048
"""Factors up to this size are decomposed fully; of larger ones the top eigenvalues are computed."""


def empty_row(layer: Layer, depth: int, reason: str, samples: int) -> LayerLandscape:
    return LayerLandscape(layer.name, layer.kind, layer.matrix_shape, depth, samples=samples, empty_reason=reason)


def build_row(
    layer: Layer,
    depth: int,
    factors: LayerFactors,
    directions: SingularDirections,
    quotients: Quotients,
    curvature: Any,
    *,
    level: float = 0.95,
    seed: int = 0,
) -> LayerLandscape:
    """Everything about one layer; ``curvature`` is an item of ``directional_curvature``'s result."""
    h = _numpy(curvature.h)
    arrays = DirectionArrays(
        sigma=_numpy(directions.sigma),
        h=h,
        h_sop=_numpy(quotients.sum_of_products),
        output_quotient=_numpy(quotients.output),
        input_quotient=_numpy(quotients.input),
        sigma_all=_numpy(directions.sigma_all),
    )
    if quotients.gauss_newton is not None:
        arrays.gn_sample = _numpy(quotients.gauss_newton)
    row = LayerLandscape(
        layer.name,
        layer.kind,
        layer.matrix_shape,
        depth,
        samples=factors.samples,
        positions=factors.positions,
        arrays=arrays,
        method=curvature.method,
        notes=[*directions.notes, *factors.notes],
    )
    _split(row, curvature)
    k = len(arrays.sigma)
    m, n = row.shape
    delta, A = eigenvalues(factors.C_delta, k), eigenvalues(factors.C_A, k)
    derive(row, eigenvalues_delta=delta, eigenvalues_A=A, level=level, seed=seed)
    for factor, values, size, name in ((factors.C_delta, delta, m, "C_δ"), (factors.C_A, A, n, "C_A")):
        if len(values) < size:
            row.notes.append(
                f"{name} is {size} × {size}: top {len(values)} eigenvalues, no entropy rank, no predicted spectrum"
            )
            rank = EffectiveRank(participation=float(factor.trace()) ** 2 / float(factor.square().sum()), count=size)
            setattr(row, "effective_rank_delta" if name == "C_δ" else "effective_rank_A", rank)
    try:
        row.weight = weight_spectrum(layer.weight, top_k=max(k, 20))
    except FitError as error:
        row.notes.append(f"weight spectrum: {error}")
    _mechanisms(row, factors, A)
    return row


def eigenvalues(C: Tensor, k: int) -> np.ndarray:
    """Decreasing eigenvalues of a factor: all up to ``FULL_SPECTRUM``, else the max(k, 100) largest."""
    size = C.shape[0]
    if size <= FULL_SPECTRUM:
        return torch.linalg.eigvalsh(C.double() if size <= 1024 else C).flip(0).cpu().double().numpy()
    return top_eigenpairs(C, max(k, 100)).values.cpu().double().numpy()


def _split(row: LayerLandscape, curvature: Any) -> None:
    parts = curvature.parts
    if not parts:
        row.notes.append(f"h is not split into Gauss–Newton and residual: {curvature.reason or 'not asked for'}")
        return
    row.arrays.h_gauss_newton = _numpy(parts["gauss_newton"])
    row.arrays.h_residual = {name: _numpy(part) for name, part in parts.items() if name != "gauss_newton"}


def _mechanisms(row: LayerLandscape, factors: LayerFactors, A: np.ndarray) -> None:
    arrays = row.arrays
    defined = np.isfinite(arrays.rho_A) & np.isfinite(arrays.rho_delta)
    sigma, rho_A, rho_delta = (values[defined] for values in (arrays.sigma, arrays.rho_A, arrays.rho_delta))
    row.layer_norm = layer_norm_diagnostic(sigma, rho_A, A, behind_norm=factors.behind_norm)
    if factors.C_delta_out is not None:
        row.residual = residual_diagnostic(
            factors.C_delta, factors.C_delta_out, sigma, rho_delta, k=min(10, len(arrays.sigma)), block=factors.block
        )
    if factors.is_head:
        row.softmax = softmax_diagnostic(factors.C_delta, arrays.output_quotient)


def _numpy(values: Tensor) -> np.ndarray:
    return values.detach().cpu().double().numpy()
