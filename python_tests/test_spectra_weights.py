"""The weight's tail exponent against the powerlaw package, and its rank slope."""

import warnings

import numpy as np
import pytest
import torch

from spectral_ext.spectra import FitError, fit_tail_exponent, weight_spectrum, weights


@pytest.mark.parametrize("seed", range(4))
def test_tail_exponent_agrees_with_powerlaw(seed):
    powerlaw = pytest.importorskip("powerlaw", reason="powerlaw is the oracle here")
    rng = np.random.default_rng(seed)
    values = np.concatenate([rng.uniform(0, 1, 60), (1 - rng.random(140)) ** (-1 / 1.6)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = powerlaw.Fit(values, verbose=False)
    fit, x_min, distance = fit_tail_exponent(values)
    assert fit.value == pytest.approx(theirs.power_law.alpha, rel=1e-9)
    assert x_min == pytest.approx(theirs.power_law.xmin)
    assert distance == pytest.approx(theirs.power_law.D, rel=1e-9)


def test_tail_interval_covers():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        values = np.concatenate([rng.uniform(0.0, 0.9, 30), (1 - rng.random(200)) ** (-1 / 1.5)])
        low, high = fit_tail_exponent(values)[0].interval
        hits += low <= 2.5 <= high
    assert hits / 200 > 0.8  # x_min is chosen on the same data, so the rate is below the nominal 0.95


def test_weight_spectrum():
    u, v = np.linalg.qr(np.random.default_rng(0).standard_normal((40, 40)))[0], np.eye(60)[:40]
    singular = np.arange(1, 41, dtype=float) ** -0.7
    weight = torch.tensor((u * singular) @ v, dtype=torch.float64).reshape(40, 15, 2, 2)
    found = weight_spectrum(weight, top_k=20)
    assert found.s_weight.value == pytest.approx(1.4, abs=1e-8)
    assert found.s_weight.n == 20
    assert found.alpha_weight.ok
    pair = weight_spectrum(torch.stack([weight.flatten(1), 2 * weight.flatten(1)]), top_k=20, family=True)
    blocks = weight_spectrum(torch.block_diag(weight.flatten(1), 2 * weight.flatten(1)), top_k=20)
    assert pair.s_weight.value == pytest.approx(blocks.s_weight.value, abs=1e-9)
    with pytest.raises(ValueError, match="NaN"):
        weight_spectrum(weight * float("nan"))
    with pytest.raises(FitError, match="at least 4"):
        weight_spectrum(torch.eye(3))


def test_a_large_weight_goes_through_its_gram_matrix(monkeypatch):
    weight = torch.from_numpy(np.random.default_rng(0).standard_normal((90, 40)))
    direct = weight_spectrum(weight)
    monkeypatch.setattr(weights, "GRAM_FROM", 1)
    monkeypatch.setattr(weights, "TILE", 32)
    for one in (weight, weight.mT):
        found = weight_spectrum(one)
        assert found.alpha_weight.value == pytest.approx(direct.alpha_weight.value, rel=1e-8)
        assert found.s_weight.value == pytest.approx(direct.s_weight.value, rel=1e-8)
