"""Spectra, their exponents and their alignment: functions on plain vectors, and the fits that they return."""

from spectral_ext.spectra.couillet_hachem import SpectrumPrediction, predict_singular_values, separable_distribution
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
from spectral_ext.spectra.weights import WeightSpectrum, fit_tail_exponent, weight_spectrum

__all__ = [
    "EffectiveRank",
    "Fit",
    "FitError",
    "RankModels",
    "SpectrumPrediction",
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
    "predict_singular_values",
    "predicted_rank_law",
    "separable_distribution",
    "squared_correlation",
    "weight_spectrum",
    "zeta_bound",
]
