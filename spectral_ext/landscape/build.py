"""One row from the tensors of one layer."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from spectral_ext.capture import LayerFactors, Quotients
from spectral_ext.curvature.result import LayerCurvature
from spectral_ext.landscape.derive import derive
from spectral_ext.landscape.mechanisms import (
    layer_norm_diagnostic,
    normalized_spectrum,
    residual_diagnostic,
    softmax_diagnostic,
)
from spectral_ext.landscape.row import DirectionArrays, LayerLandscape
from spectral_ext.layers import Layer
from spectral_ext.measurement.singular_directions import SingularDirections
from spectral_ext.spectra.participation import EffectiveRank
from spectral_ext.spectra.regression import FitError
from spectral_ext.spectra.weights import weight_spectrum

NORM_SPECTRUM = 4096
"""Behind a norm all eigenvalues of Ĉ are computed up to this size."""


def empty_row(layer: Layer, depth: int, reason: str, samples: int) -> LayerLandscape:
    return LayerLandscape(layer.name, layer.kind, layer.matrix_shape, depth, samples=samples, empty_reason=reason)


def build_row(
    layer: Layer,
    depth: int,
    directions: SingularDirections,
    curvature: LayerCurvature,
    *,
    samples: int,
    factors: LayerFactors | None = None,
    quotients: Quotients | None = None,
    missing: str = "",
    level: float = 0.95,
    seed: int = 0,
) -> LayerLandscape:
    """Everything about one layer.

    Args:
        factors, quotients: None where the layer has no Kronecker factors; ``missing`` says why, and the row has what
            follows from σ and h alone.
    """
    arrays = DirectionArrays(
        sigma=_numpy(directions.sigma), h=_numpy(curvature.h), sigma_all=_numpy(directions.sigma_all)
    )
    row = LayerLandscape(
        layer.name,
        layer.kind,
        layer.matrix_shape,
        depth,
        samples=samples,
        positions=math.nan if factors is None else factors.positions,
        arrays=arrays,
        method=curvature.method,
        notes=[*directions.notes, *curvature.notes],
    )
    if curvature.standard_error is not None:
        arrays.h_standard_error = _numpy(curvature.standard_error)
    _split(row, curvature)
    k = len(arrays.sigma)
    delta = A = None
    if factors is not None and quotients is not None:
        row.notes += factors.notes
        arrays.h_sop = _numpy(quotients.sum_of_products)
        arrays.output_quotient, arrays.input_quotient = _numpy(quotients.output), _numpy(quotients.input)
        if quotients.gauss_newton is not None:
            arrays.gn_sample = _numpy(quotients.gauss_newton)
        delta, A = (_numpy(factor.eigenvalues(k)) for factor in (factors.C_delta, factors.C_A))
    else:
        row.notes.append(f"no Kronecker factors, and nothing that follows from them: {missing}")
    derive(row, eigenvalues_delta=delta, eigenvalues_A=A, level=level, seed=seed)
    try:
        row.weight = weight_spectrum(layer.matrices(layer.weight.detach()), top_k=max(k, 20), family=True)
    except FitError as error:
        row.notes.append(f"weight spectrum: {error}")
    if factors is not None and delta is not None and A is not None:
        _ranks_of_large_factors(row, factors, delta, A)
        _mechanisms(row, factors, A)
    return row


def _ranks_of_large_factors(row: LayerLandscape, factors: LayerFactors, delta: np.ndarray, A: np.ndarray) -> None:
    m, n = row.shape
    for factor, values, size, name in ((factors.C_delta, delta, m, "C_δ"), (factors.C_A, A, n, "C_A")):
        if len(values) < size:
            row.notes.append(
                f"{name} is {size} × {size}: top {len(values)} eigenvalues, no entropy rank, no predicted spectrum"
            )
            rank = EffectiveRank(participation=(factor.trace() / factor.norm()) ** 2, count=size)
            setattr(row, "effective_rank_delta" if name == "C_δ" else "effective_rank_A", rank)


def _split(row: LayerLandscape, curvature: LayerCurvature) -> None:
    parts = curvature.parts
    if not parts:
        row.notes.append(f"h is not split into Gauss–Newton and residual: {curvature.reason or 'not asked for'}")
        return
    row.arrays.h_gauss_newton = _numpy(parts["gauss_newton"])
    row.arrays.h_residual = {name: _numpy(part) for name, part in parts.items() if name != "gauss_newton"}
    if row.arrays.residual_missing:
        row.notes.append("the residual of h is not measured")


def _mechanisms(row: LayerLandscape, factors: LayerFactors, A: np.ndarray) -> None:
    arrays = row.arrays
    defined = np.isfinite(arrays.rho_A) & np.isfinite(arrays.rho_delta)
    sigma, rho_A, rho_delta = (values[defined] for values in (arrays.sigma, arrays.rho_A, arrays.rho_delta))
    spectrum, reason = _norm_spectrum(factors, A)
    row.layer_norm = layer_norm_diagnostic(sigma, rho_A, spectrum, behind_norm=factors.norm is not None, reason=reason)
    if factors.C_delta_out is not None:
        row.residual = residual_diagnostic(
            factors.C_delta, factors.C_delta_out, sigma, rho_delta, k=min(10, len(arrays.sigma)), block=factors.block
        )
    if factors.is_head:
        row.softmax = softmax_diagnostic(factors.C_delta, arrays.output_quotient)


def _norm_spectrum(factors: LayerFactors, A: np.ndarray) -> tuple[np.ndarray, str]:
    """The eigenvalues that the LayerNorm diagnostic is about, or none and the reason."""
    n = factors.C_A.size
    if factors.norm is None:
        return (A, "") if len(A) == n else (np.zeros(0), f"only the largest eigenvalues of C_A are known (n = {n})")
    if factors.C_A.matrix is not None and n > NORM_SPECTRUM:
        return np.zeros(0), f"all {n} eigenvalues would take too long; {NORM_SPECTRUM} is the limit"
    normalized = factors.normalized()
    if normalized is None:
        return np.zeros(0), (
            "the norm is over other dimensions than the layer's input, or its weight and bias leave too few digits of "
            "the normalized input in C_A"
        )
    return normalized_spectrum(normalized, centred=factors.centred), ""


def _numpy(values: Tensor) -> np.ndarray:
    return values.detach().cpu().double().numpy()
