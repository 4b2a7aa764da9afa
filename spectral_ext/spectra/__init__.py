"""Spectra predicted by random-matrix theory."""

from spectral_ext.spectra.couillet_hachem import SpectrumPrediction, predict_singular_values, separable_distribution
from spectral_ext.spectra.rank_rule import predicted_rank_law

__all__ = ["SpectrumPrediction", "predict_singular_values", "predicted_rank_law", "separable_distribution"]
