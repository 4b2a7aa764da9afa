"""Inputs and per-sample errors of every layer, one batch at a time, straight into sums.

Hooks sit on output *tensors*, and the model goes on with a copy of each, so that an operation in place behind a layer
does no harm. Nothing is kept beyond the batch: each layer's (x, d) is visited during the backward pass and released.
The error d is B times the hook's gradient of the mean loss, B the samples of the batch.
"""

from spectral_ext.capture.factors import Capture, FactorSums, LayerFactors, capture_factors, sum_factors
from spectral_ext.capture.quotients import Quotients, QuotientSums, capture_quotients, sum_quotients

__all__ = [
    "Capture",
    "FactorSums",
    "LayerFactors",
    "QuotientSums",
    "Quotients",
    "capture_factors",
    "capture_quotients",
    "sum_factors",
    "sum_quotients",
]
