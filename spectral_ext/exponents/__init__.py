"""Exponents and rank laws of spectra: functions on plain vectors, and the fits they return."""

from spectral_ext.exponents.curvature import alpha_by_quartile, fit_alpha, fit_gamma, fit_s
from spectral_ext.exponents.participation import (
    EffectiveRank,
    effective_rank,
    exponential_bound,
    lognormal_bound,
    participation_ratio,
    zeta_bound,
)
from spectral_ext.exponents.rank_models import RankModels, fit_rank_models
from spectral_ext.exponents.regression import Fit, FitError, fit_power_law, log_correlation, squared_correlation
from spectral_ext.exponents.transfer import TransferCheck, check_transfer
from spectral_ext.exponents.weights import WeightSpectrum, fit_tail_exponent, weight_spectrum

__all__ = [
    "EffectiveRank",
    "Fit",
    "FitError",
    "RankModels",
    "TransferCheck",
    "WeightSpectrum",
    "alpha_by_quartile",
    "check_transfer",
    "effective_rank",
    "exponential_bound",
    "fit_alpha",
    "fit_gamma",
    "fit_power_law",
    "fit_rank_models",
    "fit_s",
    "fit_tail_exponent",
    "log_correlation",
    "lognormal_bound",
    "participation_ratio",
    "squared_correlation",
    "weight_spectrum",
    "zeta_bound",
]
