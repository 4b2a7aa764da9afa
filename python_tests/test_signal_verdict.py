"""The verdict on a layer: signal, mixed, noise, too few groups, each with its reason."""

import numpy as np
import pytest
import torch

from spectral_ext.signal import cross_fit, judge
from spectral_ext.signal.verdict import too_few_groups

GROUPS, M, N = 8, 24, 32


def layer(rank, offset=0.0, seed=0):
    """(cross-fit, h folds, own σ) of a rank-``rank`` gradient in white noise; h = σ̃^1.5 with an error of 10 %."""
    generator = torch.Generator().manual_seed(seed)
    errors = torch.randn(GROUPS, M, N, dtype=torch.float64, generator=generator)
    errors = errors - offset * errors.mean(0)
    U = torch.linalg.qr(torch.randn(M, M, dtype=torch.float64, generator=generator))[0][:, :rank]
    V = torch.linalg.qr(torch.randn(N, N, dtype=torch.float64, generator=generator))[0][:, :rank]
    sigma = 12 * torch.arange(1, rank + 1, dtype=torch.float64) ** -0.3
    G = (U * sigma) @ V.T + errors
    cross = cross_fit(list(G), top_k=16)
    rng = np.random.default_rng(seed)
    count = len(cross.sigma)
    law = np.maximum(np.abs(cross.sigma), 0.1) ** 1.5
    h = law * (1 + 0.1 * rng.standard_normal((GROUPS, count)))
    return cross, h, torch.linalg.svdvals(G.mean(0)).numpy()


def test_signal():
    found = judge(*layer(rank=12))
    assert found.verdict == "signal" and found.resolved >= 11
    assert found.alpha.ok and found.alpha.interval[0] < 1.5 < found.alpha.interval[1]
    assert found.share[0] == pytest.approx(0.95, abs=0.1) and found.median_share < 1
    assert "hold on other samples" in found.reason and "5 %" in found.reason
    assert len(found.h_se) == 16 and np.shape(found.h_folds) == (8, 16)


def test_mixed():
    found = judge(*layer(rank=5))
    assert found.verdict == "mixed" and found.resolved == 5
    assert "may be noise" in found.reason and found.alpha.n == 5


def test_noise_has_no_alpha_and_says_why():
    found = judge(*layer(rank=0))
    assert found.verdict == "noise" and found.resolved == 0
    assert not found.alpha.ok and "0 of 16 directions are resolved" in found.alpha.reason
    assert "no better than any" in found.reason


def test_memorised_data_has_negative_held_out_values():
    """Where training has brought the total gradient near zero, each group is minus the sum of the others."""
    found = judge(*layer(rank=0, offset=0.999))
    assert found.verdict == "noise" and np.median(found.sigma) < 0
    assert "they are negative" in found.reason


def test_few_resolved_directions_have_no_alpha():
    found = judge(*layer(rank=2))
    assert found.verdict == "mixed" and not found.alpha.ok
    assert "2 of 16 directions are resolved, at least 4" in found.alpha.reason


def test_too_few_groups():
    found = too_few_groups(2)
    assert found.verdict == "too few groups" and "at least 3" in found.reason and not found.alpha.ok
    assert found.resolved == 0 and np.isnan(found.median_share)


def test_a_zero_gradient():
    cross = cross_fit([torch.zeros(4, 5)] * 4)
    found = judge(cross, np.zeros((4, 0)), np.zeros(0))
    assert found.verdict == "noise" and "no direction" in found.reason
