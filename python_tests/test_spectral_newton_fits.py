"""Coefficients of T(σ; α, d): closed forms, certified errors on independent grids, limits, bad input."""

import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_ext import reference
from spectral_ext.ops.spectral_newton.partial_fractions import (
    FLOOR,
    extent_of,
    fit_partial_fractions,
    partial_fractions,
)
from spectral_ext.ops.spectral_newton.transfer_function import transfer, transfer_maximum

ALPHAS = [0.5, 0.84, 1.0, 1.3, 1.5, 1.9, 2.0, 2.1, 2.5, 3.0, 3.7, 4.0, 4.5, 6.0]


@given(st.floats(0.05, 6.0), st.floats(1e-6, 10.0))
@settings(max_examples=60, deadline=None)
def test_maximum_is_the_largest_value_on_a_grid(alpha, damping):
    sigma = np.concatenate([np.linspace(0.0, 3.0, 20001), np.geomspace(1e-6, 3.0, 2001)])
    at, value = transfer_maximum(alpha, damping, 3.0)
    found = transfer(sigma, alpha, damping)
    assert 0.0 <= at <= 3.0
    assert found.max() <= value * (1 + 1e-12)
    assert found.max() >= value * (1 - 1e-3)


def test_closed_forms():
    assert transfer_maximum(2.0, 0.1)[1] == pytest.approx(1 / (2 * math.sqrt(0.1)))
    assert transfer_maximum(1.0, 0.1)[1] == 1.0
    assert transfer_maximum(0.5, 0.1)[1] == math.inf
    assert transfer_maximum(2.0, 0.1, 0.0) == (0.0, 0.0)
    assert float(transfer(0.0, 0.5, 0.1)) == 0.0


def test_agrees_with_the_reference_on_a_diagonal_matrix():
    sigma = torch.tensor([2.0, 0.7, 0.01, 0.0], dtype=torch.float64)
    expected = reference.spectral_newton(torch.diag(sigma), 1.3, 0.2).diagonal()
    assert np.allclose(transfer(sigma.numpy(), 1.3, 0.2), expected.numpy(), atol=1e-15)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("damping", [1.0, 0.1, 0.01])
def test_partial_fractions_hold_their_bound_off_the_grid_they_were_fitted_on(alpha, damping):
    fit = fit_partial_fractions(alpha, extent_of(alpha, damping, "spectral", 1), 1e-4)
    sigma = np.concatenate([[0.0], np.geomspace(1e-12, 1.0, 20011), np.linspace(0.0, 1.0, 5003)])
    y = sigma**2 * damping ** (-2 / alpha)
    exact = transfer(sigma, alpha, damping)
    error = np.abs(sigma * fit(y) / damping - exact) / np.maximum(exact, FLOOR * exact[-1] + 1e-300)
    assert fit.error <= 1e-4
    assert error.max() <= 1.02 * fit.error + 1e-13
    assert all(p > 0 for p in fit.poles)
    assert len(fit.poles) <= 16


@pytest.mark.parametrize("alpha", [0.5, 1.9, 1.99, 2.01, 2.1, 3.0, 3.9, 4.1, 5.5, 5.765625, 5.99])
def test_terms_do_not_cancel_and_the_pole_of_the_pair_comes_first(alpha):
    for power in range(-2, 7):
        fit = fit_partial_fractions(alpha, 4.0**power, 8e-6)
        y = 4.0 ** (power - np.arange(20.0))
        terms = [np.full_like(y, fit.constant), *(r / (y + p) for p, r in zip(fit.poles, fit.residues))]
        assert (np.abs(terms).sum(0) <= 4.5 * np.abs(np.sum(terms, 0))).all()
        assert fit.form != 1 or fit.poles[0] == fit.quadratic


@pytest.mark.parametrize(("alpha", "poles"), [(2.0, 1), (4.0, 0), (6.0, 1)])
def test_exact_cases(alpha, poles):
    fit = fit_partial_fractions(alpha, 123.0, 1e-12)
    y = np.geomspace(1e-9, 1e9, 50)
    assert len(fit.poles) == poles
    assert np.allclose(fit(y) * (y ** (alpha / 2) + 1), 1.0, rtol=1e-12)


def test_a_matrix_to_invert_is_positive_definite_for_every_alpha_above_two():
    for alpha in np.linspace(2.01, 6.0, 50):
        b = fit_partial_fractions(4.0, 1.0, 0.1).quadratic if alpha == 4.0 else -2 * math.cos(2 * math.pi / alpha)
        assert abs(b) < 2.0  # y² + b y + 1 has no real root


def test_tiny_spectra_are_a_multiple_of_the_gradient():
    for alpha in (1.0, 3.0, 5.0):
        fit = fit_partial_fractions(alpha, 1e-30, 1e-6)
        assert np.allclose(fit(np.array([0.0, 1e-31])), 1.0, atol=1e-6)
    for alpha in (0.5, 1.5, 2.001, 2.5, 3.0, 3.7, 3.999, 4.001, 4.3, 5.0, 5.9, 5.9999999):
        for tolerance in (1e-3, 8e-6, 8e-11):
            reach = (0.49 * tolerance) ** (2 / alpha)
            fit = fit_partial_fractions(alpha, reach, tolerance)
            y = reach * np.linspace(0.25, 1.0, 50)
            assert np.allclose(fit(y) * (y ** (alpha / 2) + 1), 1.0, rtol=1.02 * tolerance, atol=0), (alpha, tolerance)


def test_fits_are_cached_and_quick():
    start = time.process_time()
    first = fit_partial_fractions(1.234, 50.0, 1e-5)
    assert time.process_time() - start < 2.0
    assert fit_partial_fractions(1.234, 50.0, 1e-5) is first


def test_a_schedule_of_alpha_keeps_its_bound_and_costs_milliseconds():
    sigma = np.concatenate([[0.0], np.geomspace(1e-7, 8.0, 4001)])
    for alpha in (0.5, 1.0, 1.99, 2.01, 3.0, 4.6):
        partial_fractions(alpha + 0.001, 64.0, 1e-4)  # fits the poles of the neighbourhood
        start = time.process_time()
        fits = [partial_fractions(alpha + step * 1e-4, 64.0, 1e-4) for step in range(11, 21)]
        if abs(alpha - 2) > 0.1:  # near 2, where the residues of the neighbour vanish, each α is fitted anew
            assert (time.process_time() - start) / 10 < 0.02, alpha
        for fit in fits:
            exact = transfer(sigma, fit.alpha, 1.0)
            error = np.abs(sigma * fit(sigma**2) - exact) / np.maximum(exact, FLOOR * exact[-1])
            assert error.max() <= 1.02 * fit.error <= 1.02e-4, fit.alpha


@pytest.mark.parametrize("alpha", [0.0, -1.0, 6.5, math.nan, math.inf])
def test_bad_alpha(alpha):
    for call in (
        lambda: transfer(1.0, alpha, 0.1),
        lambda: transfer_maximum(alpha, 0.1),
        lambda: fit_partial_fractions(alpha, 1.0, 1e-3),
    ):
        with pytest.raises(ValueError, match="alpha"):
            call()


@pytest.mark.parametrize("damping", [0.0, -0.1, math.nan, math.inf])
def test_bad_damping(damping):
    with pytest.raises(ValueError, match="damping"):
        transfer(1.0, 2.0, damping)


def test_bad_reach_and_too_many_poles():
    with pytest.raises(ValueError, match="reach"):
        fit_partial_fractions(1.0, math.inf, 1e-3)
    with pytest.raises(ValueError, match="eigh"):
        fit_partial_fractions(0.1, 1e12, 1e-6)
