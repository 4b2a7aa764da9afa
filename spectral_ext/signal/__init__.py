"""Signal or noise: does a gradient's singular spectrum hold on other samples, and how far can an exponent be trusted?

Functions on plain arrays and tensors. Data goes in as J *groups* of samples, each with its own mean gradient.
"""

from spectral_ext.signal.block_hessian import BlockSpectrum, block_spectrum
from spectral_ext.signal.cross_fitting import CrossFit, cross_fit, fold_directions, holm
from spectral_ext.signal.exponent import GroupFit, fit_alpha_from_groups, fit_noise_exponent
from spectral_ext.signal.mechanism_slopes import MechanismSlope, slopes_by_mechanism
from spectral_ext.signal.noise_spectrum import NoiseLevel, noise_level
from spectral_ext.signal.own_batch import DataIntervals, own_batch_intervals
from spectral_ext.signal.resampling import Jackknife, jackknife, jackknife_difference
from spectral_ext.signal.unrelated import TransferNull, s_of_scatter, transfer_null
from spectral_ext.signal.verdict import Signal, judge

__all__ = [
    "BlockSpectrum",
    "CrossFit",
    "DataIntervals",
    "GroupFit",
    "Jackknife",
    "MechanismSlope",
    "NoiseLevel",
    "Signal",
    "TransferNull",
    "block_spectrum",
    "cross_fit",
    "fit_alpha_from_groups",
    "fit_noise_exponent",
    "fold_directions",
    "holm",
    "jackknife",
    "jackknife_difference",
    "judge",
    "noise_level",
    "own_batch_intervals",
    "s_of_scatter",
    "slopes_by_mechanism",
    "transfer_null",
]
