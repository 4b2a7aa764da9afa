"""The rank law of a gradient that its factors' effective ranks predict (App. L)."""

from __future__ import annotations

import math

THRESHOLD = 10.0


def predicted_rank_law(effective_rank_delta: float, effective_rank_A: float, *, threshold: float = THRESHOLD) -> str:
    """``exponential`` where one factor has effective rank below 10 (a hard cut-off), else ``lognormal``; "" for NaN.

    The paper's rule, stated for entropy ranks exp(−Σ p log p) of C_δ and C_A on 15 layers of one network.
    """
    smaller = min(effective_rank_delta, effective_rank_A)
    if math.isnan(effective_rank_delta) or math.isnan(effective_rank_A):
        return ""
    return "exponential" if smaller < threshold else "lognormal"
