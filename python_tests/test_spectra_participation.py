"""Participation ratios, effective ranks, and the bounds on them: formulas against sums."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_ext.spectra import (
    effective_rank,
    exponential_bound,
    lognormal_bound,
    participation_ratio,
    zeta_bound,
)


def test_participation_ratio():
    assert participation_ratio([1, 1, 1, 1]) == 4
    assert participation_ratio([5, 0, 0]) == 1
    assert participation_ratio([1e200, 1e200]) == 2
    assert math.isnan(participation_ratio([0.0, 0.0]))
    assert math.isnan(participation_ratio([]))
    with pytest.raises(ValueError, match="1 are negative"):
        participation_ratio([1, -1])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=30))
def test_appending_a_smaller_number_never_lowers_it(values):
    falling = sorted(values, reverse=True)
    ratios = [participation_ratio(falling[: n + 1]) for n in range(len(falling))]
    assert all(after >= before - 1e-9 for before, after in itertools.pairwise(ratios))


def test_zeta_bound():
    assert zeta_bound(2.0) == pytest.approx((math.pi**2 / 6) ** 2 / (math.pi**4 / 90))
    assert zeta_bound(2.0) == pytest.approx(2.5)
    assert zeta_bound(1.0) == math.inf
    assert zeta_bound(3.0, 10**6) == pytest.approx(zeta_bound(3.0), rel=1e-9)
    assert zeta_bound(1.5, 100) < zeta_bound(1.5)


@pytest.mark.parametrize("rate", [0.01, 0.2, 1.0, 5.0])
def test_exponential_bound(rate):
    k = np.arange(1, 31)
    assert exponential_bound(rate, 30) == pytest.approx(participation_ratio(np.exp(-rate * k)), rel=1e-12)
    assert exponential_bound(rate, 30) <= exponential_bound(rate) * (1 + 1e-12)
    k = np.arange(1, int(60 / rate))
    assert exponential_bound(rate) == pytest.approx(participation_ratio(np.exp(-rate * k)), rel=1e-10)


def test_exponential_bound_of_a_flat_spectrum():
    assert exponential_bound(0.0) == math.inf
    assert exponential_bound(0.0, 7) == 7


@pytest.mark.parametrize("a", [-3.0, -1.0, -0.2, 0.0, 0.7, 2.0])
@pytest.mark.parametrize("b", [-0.15, -0.4, -2.0])
def test_lognormal_bound(a, b):
    exact = lognormal_bound(a, b, n=2_000_000)
    closed, tight = lognormal_bound(a, b), lognormal_bound(a, b, terms=2000)
    assert exact <= tight * (1 + 1e-9)
    assert tight <= closed * (1 + 1e-9)
    assert tight == pytest.approx(exact, rel=0.02)
    assert closed < 4 * exact
    if a <= 0:  # the closed form of the docstring, by quadrature
        from scipy.integrate import quad

        def J(a, c, start):
            return quad(lambda t: math.exp((a + 1) * t - c * t * t), math.log(start), 60, limit=500)[0]

        by_hand = (1 + J(a, -b, 1)) ** 2 / (1 + J(2 * a, -2 * b, 2))
        assert closed == pytest.approx(by_hand, rel=1e-6)


def test_lognormal_bound_limits():
    assert lognormal_bound(-2.0, 0.0) == pytest.approx(2.5)
    assert lognormal_bound(-2.0, 0.1) == math.inf
    assert math.isfinite(lognormal_bound(-0.5, -0.05))  # s = 0.5 < 1: the zeta bound says nothing
    assert lognormal_bound(-0.5, -1e-5) > 1e3
    assert lognormal_bound(50.0, -0.1) == math.inf
    assert lognormal_bound(-20.0, -3.0, terms=20) == pytest.approx(1.0, abs=1e-4)


def test_effective_rank():
    flat = effective_rank(np.ones(7))
    assert flat.entropy == pytest.approx(7)
    assert flat.participation == pytest.approx(7)
    assert flat.count == 7
    one = effective_rank([3.0, 0.0, -1e-9])
    assert one.entropy == pytest.approx(1)
    assert math.isnan(effective_rank([0.0, 0.0]).entropy)
    with pytest.raises(ValueError, match="NaN"):
        effective_rank([1.0, float("nan")])
