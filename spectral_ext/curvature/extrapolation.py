"""The derivative of a function at 0 by central differences, extrapolated to step 0 (Ridders 1982)."""

from __future__ import annotations

from collections.abc import Callable

RATIO = 2.0
"""Each step is the one before over this."""
LEVELS = 10
"""The most steps."""


def derivative_at_zero(function: Callable[[float], float], step: float, eps: float) -> tuple[float, float]:
    """φ′(0) and an estimate of its absolute error, from φ at ± step, ± step/2, …

    Args:
        step: the largest step; φ should be smooth on that scale.
        eps: relative rounding error of φ.

    The result is the entry of the extrapolation tableau with the smallest error estimate. The estimate is the largest
    change against the entry's two neighbours of lower order, but at least the rounding error of the difference
    quotient. Where φ has a jump or a kink near 0 the estimate stays large.
    """
    best, error = 0.0, float("inf")
    row: list[float] = []
    for level in range(LEVELS):
        h = step / RATIO**level
        ahead, behind = function(h), function(-h)
        noise = eps * max(abs(ahead), abs(behind)) / h
        new = [(ahead - behind) / (2 * h)]
        for order, below in enumerate(row, 1):
            factor = RATIO ** (2 * order)
            new.append((factor * new[-1] - below) / (factor - 1))
            change = max(abs(new[-1] - new[-2]), abs(new[-1] - below), noise)
            if change < error:
                best, error = new[-1], change
        if level > 1 and (error <= 2 * noise or abs(new[-1] - row[-1]) > 4 * error):
            break
        row = new
    return best, error
