"""From the measured arrays of a layer to all that follows from them: ratios, fits, bounds, advice."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from spectral_ext.landscape.recommendation import recommend
from spectral_ext.landscape.row import Closure, LayerLandscape
from spectral_ext.signal.exponent import fit_noise_exponent
from spectral_ext.signal.mechanism_slopes import slopes_by_mechanism
from spectral_ext.signal.noise_spectrum import NoiseLevel, noise_level, sample_correlation
from spectral_ext.signal.own_batch import DataIntervals
from spectral_ext.signal.unrelated import s_of_scatter, transfer_null
from spectral_ext.signal.verdict import Signal
from spectral_ext.spectra.alignment import curvature_ratio, kronecker_products, rayleigh_ratio
from spectral_ext.spectra.couillet_hachem import predict_singular_values
from spectral_ext.spectra.curvature_exponent import alpha_by_quartile, fit_alpha, fit_gamma, fit_s
from spectral_ext.spectra.participation import (
    EffectiveRank,
    effective_rank,
    exponential_bound,
    lognormal_bound,
    participation_ratio,
    zeta_bound,
)
from spectral_ext.spectra.rank_models import RankModels, fit_rank_models
from spectral_ext.spectra.rank_rule import predicted_rank_law
from spectral_ext.spectra.regression import Fit, FitError, fit_power_law, log_correlation, squared_correlation
from spectral_ext.spectra.transfer_identity import TransferCheck, check_transfer

STORED_EIGENVALUES = 100
T = TypeVar("T")


def derive(
    row: LayerLandscape,
    *,
    eigenvalues_delta: np.ndarray | None = None,
    eigenvalues_A: np.ndarray | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> LayerLandscape:
    """Fill the row in place from its measured arrays and return it.

    Needs ``row.arrays`` with sigma, h, sigma_all and, where measured, the quotients, h_sop and the parts of h.

    Args:
        eigenvalues_delta, eigenvalues_A: of C_δ and C_A in decreasing order, all or the largest ones (at least K);
            effective ranks and the Couillet–Hachem prediction need all.
        level: coverage of the intervals.
        seed: of the bootstrap.
    """
    _range_notes(row)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):  # _range_notes says where that happens
        _ratios(row, eigenvalues_delta, eigenvalues_A)
        _exponents(row, level, seed)
        _decomposition(row, level)
        _concentration_of_curvature(row)
        _factors(row, eigenvalues_delta, eigenvalues_A)
        arrays = row.arrays
        sigma2 = (arrays.sigma / arrays.sigma.max(initial=1e-300)) ** 2  # R² and correlations know no scale
        row.r2_h_sigma2 = _r2(row, arrays.h, sigma2)
        row.r2_gn_sigma2 = _r2(row, arrays.h_gauss_newton, sigma2)
        if not arrays.residual_missing:
            row.r2_h_gn = _r2(row, arrays.h, arrays.h_gauss_newton)
        row.log_correlation = _attempt(row, lambda: log_correlation(arrays.h_kron, sigma2), lambda _: math.nan)
        advise(row)
    return row


def advise(row: LayerLandscape) -> None:
    """Set the recommendation, from the row's ``signal`` where it has one."""
    arrays = row.arrays
    row.recommendation = recommend(
        row.alpha,
        arrays.concentration[np.isfinite(arrays.concentration)],
        arrays.h[np.isfinite(arrays.h)],
        signal=row.signal,
        data_interval=row.data_intervals.alpha if row.data_intervals else (math.nan, math.nan),
    )


def take_signal(row: LayerLandscape, signal: Signal, intervals: DataIntervals | None) -> None:
    """Enter what the folds have found, and what follows from it."""
    row.signal, row.data_intervals = signal, intervals
    if row.num_nonpositive and intervals is not None:
        other = intervals.alpha_all
        found = f"is {other}" if other.ok else f"finds no law ({other.reason})"
        row.notes.append(
            f"own-batch α of a fit over the groups that keeps the h_k ≤ 0 {found}; without them: {row.alpha}"
        )
    advise(row)


def _attempt(row: LayerLandscape, what: Callable[[], T], otherwise: Callable[[str], T]) -> T:
    """The result, or ``otherwise`` of the reason, which becomes a note: one fit that fails costs no other number."""
    try:
        return what()
    except (FitError, ArithmeticError, np.linalg.LinAlgError) as error:
        if str(error) not in row.notes:
            row.notes.append(str(error))
        return otherwise(str(error))


def _range_notes(row: LayerLandscape) -> None:
    """Say which arrays left the range of the measurement's precision, and what that costs."""
    arrays = row.arrays
    remedy = "scale the inputs or the loss, or measure in float64"
    for name, values in (
        ("h", arrays.h),
        ("h_sop", arrays.h_sop),
        ("gn_sample", arrays.gn_sample),
        ("u'C_δu", arrays.output_quotient),
        ("v'C_Av", arrays.input_quotient),
    ):
        bad = int((~np.isfinite(values)).sum())
        if bad:
            what = f"{bad} of {len(values)} values of {name} overflow or are NaN"
            row.notes.append(f"{what}, so that what follows from them is missing: {remedy}")
    for name, values in (("u'C_δu", arrays.output_quotient), ("v'C_Av", arrays.input_quotient)):
        zero = int((values[arrays.sigma > 0] == 0).sum()) if len(values) == len(arrays.sigma) else 0
        if zero:
            what = f"{zero} of {len(values)} values of {name} are zero although σ is not, as they underflow"
            row.notes.append(f"{what}: β, φ and χ lack these directions; {remedy}")


def _ratios(
    row: LayerLandscape,
    eigenvalues_delta: np.ndarray | None,
    eigenvalues_A: np.ndarray | None,
) -> None:
    arrays = row.arrays
    if len(arrays.output_quotient):
        arrays.h_kron = kronecker_products(arrays.output_quotient, arrays.input_quotient)
        arrays.chi = curvature_ratio(arrays.h, arrays.h_kron)
        arrays.concentration = curvature_ratio(row.positions * arrays.h_sop, arrays.h_kron)
    if eigenvalues_delta is None or eigenvalues_A is None or not len(arrays.output_quotient):
        return
    k = len(arrays.sigma)
    arrays.rho_delta = rayleigh_ratio(arrays.output_quotient, eigenvalues_delta[:k])
    arrays.rho_A = rayleigh_ratio(arrays.input_quotient, eigenvalues_A[:k])
    arrays.Phi = arrays.rho_delta * arrays.rho_A
    arrays.Lambda = eigenvalues_delta[:k] * eigenvalues_A[:k]
    arrays.spectrum_delta = eigenvalues_delta[:STORED_EIGENVALUES].copy()
    arrays.spectrum_A = eigenvalues_A[:STORED_EIGENVALUES].copy()


def _exponents(row: LayerLandscape, level: float, seed: int) -> None:
    sigma, h = row.arrays.sigma, row.arrays.h
    row.alpha = _attempt(row, lambda: fit_alpha(sigma, h, level=level), Fit.empty)
    row.gamma = _attempt(row, lambda: fit_gamma(sigma, level=level), Fit.empty)
    row.s = _attempt(row, lambda: fit_s(h, level=level), Fit.empty)
    row.transfer = _attempt(
        row,
        lambda: check_transfer(sigma, h, level=level, seed=seed),
        TransferCheck.empty,
    )
    if row.transfer.ok:
        row.transfer_null = _attempt(row, lambda: transfer_null(sigma, h, seed=seed), lambda _: None)
        row.s_unrelated = _attempt(row, lambda: s_of_scatter(sigma, h, seed=seed), lambda _: math.nan)
    row.alpha_quartiles = _attempt(row, lambda: alpha_by_quartile(sigma, h, level=level), lambda _: [])
    row.rank_models = _attempt(row, lambda: fit_rank_models(sigma), RankModels.empty)
    arrays = row.arrays
    if len(arrays.gn_sample):
        variance = arrays.gn_sample - sigma**2
        row.noise_exponent = _attempt(row, lambda: fit_noise_exponent(variance, h, level=level), Fit.empty)
    if len(arrays.h_gauss_newton):
        parts = {"gauss_newton": arrays.h_gauss_newton, **arrays.h_residual}
        row.mechanism_slopes = _attempt(row, lambda: slopes_by_mechanism(sigma, h, parts, level=level), lambda _: {})
    if row.num_nonpositive:
        row.notes.append(
            f"{row.num_nonpositive} of {len(h)} h_k are ≤ 0: kept, left out of the log fits. Where noise made them "
            "negative, α comes out too small, since the fit keeps only the other half of the noise"
        )


def _decomposition(row: LayerLandscape, level: float) -> None:
    """β, φ and d log χ/d log σ over the directions where all three exist, so that they add up to α there."""
    arrays = row.arrays
    if not len(arrays.Phi):
        return
    keep = (arrays.h > 0) & (arrays.Lambda > 0) & (arrays.Phi > 0) & np.isfinite(arrays.Phi)
    sigma = arrays.sigma[keep]

    def fit(y: np.ndarray, what: str) -> Fit:
        return _attempt(
            row,
            lambda: fit_power_law(sigma, y[keep], level=level, what=what),
            Fit.empty,
        )

    row.beta, row.phi, row.chi_slope = (
        fit(arrays.Lambda, "beta"),
        fit(arrays.Phi, "phi"),
        fit(arrays.chi, "chi slope"),
    )
    alpha = fit(arrays.h, "alpha of the decomposition").value
    row.closure = Closure(
        full=alpha - (row.beta.value + row.phi.value + row.chi_slope.value),
        kronecker=alpha - (row.beta.value + row.phi.value),
        canonical=alpha - (2 + row.phi.value - row.chi_slope.value),
    )
    usable = int((arrays.h > 0).sum())
    if len(sigma) < usable:
        row.notes.append(
            f"β, φ and the closure use {len(sigma)} of {usable} directions: a factor has no eigenvalue beyond"
        )


def _concentration_of_curvature(row: LayerLandscape) -> None:
    arrays = row.arrays
    positive = arrays.h[arrays.h > 0]
    row.pr_curvature = _participation(row, positive)
    row.pr_gradient = _participation(row, arrays.sigma_all)
    row.zeta_bound = zeta_bound(row.alpha_gamma) if row.transfer.ok else math.nan
    row.rank_bound = _attempt(
        row,
        lambda: rank_model_bound(fit_rank_models(np.sort(positive)[::-1])),
        lambda _: math.nan,
    )


def _participation(row: LayerLandscape, values: np.ndarray) -> float:
    return _attempt(row, lambda: participation_ratio(values) if len(values) else math.nan, lambda _: math.nan)


def rank_model_bound(models: RankModels) -> float:
    """The bound on PR of a spectrum from its BIC winner: zeta, coth or log-normal with the fitted coefficients."""
    coefficients = models.coefficients[models.best]
    if models.best == "power_law":
        return zeta_bound(-coefficients[1])
    if models.best == "exponential":
        return exponential_bound(-coefficients[1])
    return lognormal_bound(coefficients[1], coefficients[2], terms=models.n)


def _factors(
    row: LayerLandscape,
    eigenvalues_delta: np.ndarray | None,
    eigenvalues_A: np.ndarray | None,
) -> None:
    if eigenvalues_delta is None or eigenvalues_A is None:
        return
    m, n = row.shape
    row.effective_rank_delta = _full_rank(eigenvalues_delta, m)
    row.effective_rank_A = _full_rank(eigenvalues_A, n)
    row.predicted_law = predicted_rank_law(row.effective_rank_delta.entropy, row.effective_rank_A.entropy)
    k = len(row.arrays.sigma)
    row.rank_models_delta = _factor_law(row, eigenvalues_delta[:k], "C_δ")
    row.rank_models_A = _factor_law(row, eigenvalues_A[:k], "C_A")
    row.factor_match = factor_match(row.rank_models, row.rank_models_delta, row.rank_models_A)
    if len(eigenvalues_delta) == m and len(eigenvalues_A) == n and len(row.arrays.sigma_all) == min(m, n):
        row.prediction = _attempt(
            row,
            lambda: predict_singular_values(
                eigenvalues_delta.clip(0),
                eigenvalues_A.clip(0),
                row.arrays.sigma_all,
                samples=row.samples,
                top=k,
            ),
            lambda _: None,
        )
    if row.prediction is not None and len(row.arrays.gn_sample):
        row.noise = _attempt(row, lambda: _noise(row, eigenvalues_delta, eigenvalues_A), lambda _: None)


def _noise(row: LayerLandscape, eigenvalues_delta: np.ndarray, eigenvalues_A: np.ndarray) -> NoiseLevel:
    arrays = row.arrays
    correlation = sample_correlation(arrays.gn_sample, arrays.sigma, arrays.h_kron)
    return noise_level(
        eigenvalues_delta, eigenvalues_A, arrays.sigma, samples=row.samples, positions=row.positions,
        correlation=correlation, shape=row.prediction.sigma if row.prediction else None,
    )  # fmt: skip


def _full_rank(eigenvalues: np.ndarray, size: int) -> EffectiveRank:
    return effective_rank(eigenvalues) if len(eigenvalues) == size else EffectiveRank()


def _factor_law(row: LayerLandscape, eigenvalues: np.ndarray, factor: str) -> RankModels:
    values = eigenvalues[eigenvalues > 1e-12 * eigenvalues.max(initial=0.0)]
    return _attempt(
        row,
        lambda: fit_rank_models(values),
        lambda reason: RankModels.empty(f"{factor}: {reason}"),
    )


def factor_match(gradient: RankModels, delta: RankModels, A: RankModels) -> str:
    """Which factor follows the gradient's rank law: ``A``, ``delta``, ``both`` or ``neither``; "" if a law is empty."""
    if not (gradient.ok and delta.ok and A.ok):
        return ""
    hits = [name for name, law in (("A", A), ("delta", delta)) if law.best == gradient.best]
    return "both" if len(hits) == 2 else hits[0] if hits else "neither"


def _r2(row: LayerLandscape, x: np.ndarray, y: np.ndarray) -> float:
    if not len(x) or len(x) != len(y):
        return math.nan
    return _attempt(row, lambda: squared_correlation(x, y), lambda _: math.nan)
