"""s and s = αγ where h has nothing to do with σ."""

import numpy as np
import pytest

from spectral_ext.signal import s_of_scatter, slopes_by_mechanism, transfer_null
from spectral_ext.spectra import FitError, fit_alpha, fit_s

K = np.arange(1, 21.0)


def test_permuting_h_breaks_a_true_law_and_not_an_unrelated_one():
    rng = np.random.default_rng(0)
    sigma = np.sort(K**-0.8 * np.exp(0.1 * rng.standard_normal(20)))[::-1]
    law = transfer_null(sigma, sigma**2 * np.exp(0.1 * rng.standard_normal(20)))
    assert law.p_permuted <= 0.002
    p = [transfer_null(sigma, np.exp(rng.standard_normal(20)), draws=199, seed=i).p_permuted for i in range(100)]
    assert np.mean(np.array(p) <= 0.05) <= 0.12
    assert 0.35 < np.mean(p) < 0.65


def test_an_unrelated_sorted_h_is_not_taken_for_a_confirmation():
    """s = αγ "holds" for most sorted h that were drawn without a look at σ; against that null it says nothing."""
    rng = np.random.default_rng(1)
    sigma = np.sort(K**-0.8 * np.exp(0.1 * rng.standard_normal(20)))[::-1]
    p = []
    for i in range(100):
        h = np.sort(np.exp(1.2 * rng.standard_normal(20)))[::-1]
        p.append(transfer_null(sigma, h, draws=199, seed=i).p_sorted)
    assert np.mean(np.array(p) <= 0.05) <= 0.12
    assert 0.35 < np.mean(p) < 0.65


def test_scatter_alone_has_a_slope_after_sorting():
    rng = np.random.default_rng(2)
    measured = np.mean([fit_s(np.exp(0.3 * rng.standard_normal(20))).value for _ in range(400)])
    said = np.mean([s_of_scatter(K**-0.8, np.exp(0.3 * rng.standard_normal(20)), seed=i) for i in range(60)])
    assert measured == pytest.approx(0.34, abs=0.03)
    assert said == pytest.approx(measured, abs=0.03)
    assert s_of_scatter(K**-0.8, K**-1.6) == pytest.approx(0.0, abs=1e-9)


def test_too_few_directions():
    with pytest.raises(FitError):
        transfer_null(K[:3], K[:3])


def test_slope_without_each_mechanism():
    sigma = K**-1.0
    parts = {"gauss_newton": sigma**2, "norm": 0.3 * sigma, "softmax": np.zeros(20)}
    h = sum(parts.values())
    found = slopes_by_mechanism(sigma, h, parts)
    assert list(found) == ["gauss_newton", "norm"]
    assert found["norm"].without.value == pytest.approx(2.0)
    assert found["gauss_newton"].without.value == pytest.approx(1.0)
    assert found["norm"].shift == pytest.approx(fit_alpha(sigma, h).value - 2.0)
    assert found["norm"].share == pytest.approx(0.3 * sigma.sum() / h.sum())


def test_a_mechanism_without_which_h_is_not_positive():
    sigma = K**-1.0
    found = slopes_by_mechanism(sigma, sigma**2, {"gauss_newton": 2 * sigma**2, "norm": -(sigma**2)})
    assert not found["gauss_newton"].without.ok and "usable points" in found["gauss_newton"].without.reason
    assert np.isnan(found["gauss_newton"].shift)
    assert found["norm"].without.value == pytest.approx(2.0)
    with pytest.raises(ValueError, match="norm"):
        slopes_by_mechanism(sigma, sigma, {"norm": [1.0]})
