"""Spectra predicted by random-matrix theory."""

from .couillet_hachem import (
    SpectrumPrediction,
    predict_singular_values,
    separable_distribution,
)

__all__ = ["SpectrumPrediction", "predict_singular_values", "separable_distribution"]
