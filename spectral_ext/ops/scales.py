"""How libraries scale their Kronecker factors, by name.

With B samples, S positions of a sample, the patches a and the per-sample errors d (B times what a hook sees under a
mean loss), every convention is a number times Σ a aᵀ and a number times Σ d dᵀ:

============  ==================  ==================  ================================================================
name          input factor        output factor       source
============  ==================  ==================  ================================================================
curvlinops    1/(BS)              1/B                 Eschenhagen et al. 2023, KFAC-expand
paper         1/(BS)              1/B                 C_A and C_δ of :mod:`spectral_ext.reference`
backpack      1/B                 1/B, of Σ_s d       BackPACK's KFAC: errors are summed over positions first
nngeometry    √(C−1)/B            1/(BS√(C−1))        C classes: pass ``num_classes``
kfac-jax      1/(BS)              1/(BS)              its blocks are multiplied by S in addition
kfac-pytorch  1/(BS³)             1/(B³S³)            gpauloski/kfac-pytorch, errors of a mean loss
sum           1                   1                   plain sums
============  ==================  ==================  ================================================================

``reduction="reduce"`` (KFAC-reduce) replaces a by its mean and d by its sum over positions, one row a sample (S = 1 in
the table).
"""

from __future__ import annotations

import math

SCALES = ("curvlinops", "paper", "backpack", "nngeometry", "kfac-jax", "kfac-pytorch", "sum")
REDUCTIONS = ("expand", "reduce")


def check_scale(scale: str, reduction: str, num_classes: int | None) -> None:
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}, not {scale!r}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be 'expand' or 'reduce', not {reduction!r}")
    if scale == "nngeometry" and (num_classes is None or num_classes < 2):
        raise ValueError(f"scale='nngeometry' needs num_classes of at least 2, not {num_classes}")


def input_scale(scale: str, samples: float, positions: float, num_classes: int | None = None) -> float:
    """The number in front of Σ a aᵀ. Zero where there is no row."""
    if samples * positions == 0:
        return 0.0
    if scale == "sum":
        return 1.0
    if scale == "backpack":
        return 1 / samples
    if scale == "nngeometry":
        return math.sqrt((num_classes or 2) - 1) / samples
    if scale == "kfac-pytorch":
        return 1 / (samples * positions**3)
    return 1 / (samples * positions)


def output_scale(scale: str, samples: float, positions: float, num_classes: int | None = None) -> float:
    """The number in front of Σ d dᵀ. Zero where there is no row."""
    if samples * positions == 0:
        return 0.0
    if scale == "sum":
        return 1.0
    if scale == "nngeometry":
        return 1 / (samples * positions * math.sqrt((num_classes or 2) - 1))
    if scale == "kfac-jax":
        return 1 / (samples * positions)
    if scale == "kfac-pytorch":
        return 1 / (samples * positions) ** 3
    return 1 / samples
