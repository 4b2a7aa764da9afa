"""Cross-fitted singular values: an error rate that holds on pure noise, and a planted signal that is found."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from spectral_ext.signal import cross_fit, fold_directions, holm
from spectral_ext.signal.cross_fitting import top_singular_vectors


def noise(groups, m, n, generator, rows=0.8, columns=0.8):
    """Group gradients with a separable variance profile and mean zero."""
    d = torch.arange(1, m + 1, dtype=torch.float64) ** (-rows / 2)
    e = torch.arange(1, n + 1, dtype=torch.float64) ** (-columns / 2)
    return d[:, None] * torch.randn(groups, m, n, dtype=torch.float64, generator=generator) * e


@pytest.mark.parametrize("groups, m, n, rows", [(8, 16, 24, 0.0), (8, 16, 24, 1.0), (4, 12, 30, 1.0), (3, 16, 12, 1.0)])
def test_pure_noise_is_resolved_at_most_at_the_error_rate(groups, m, n, rows):
    generator = torch.Generator().manual_seed(groups + m)
    runs = 100
    wrong = sum(cross_fit(list(noise(groups, m, n, generator, rows)), top_k=10).num_resolved > 0 for _ in range(runs))
    assert wrong <= 0.05 * runs


def test_a_t_test_over_the_folds_would_not_hold_the_rate():
    """Why the standard error is a jackknife: the folds share their directions."""
    generator = torch.Generator().manual_seed(1)
    wrong, ratio = 0, []
    for _ in range(60):
        found = cross_fit(list(noise(8, 12, 18, generator)), top_k=8)
        folds = found.folds
        ratio.append(found.sigma_se**2 / (folds.var(0, ddof=1) / 8))

        naive = stats.ttest_1samp(folds, 0, alternative="greater").pvalue
        wrong += bool(holm(naive, 0.05).any())
    assert wrong > 0.15 * 60
    assert np.mean(ratio) > 2


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, bias=False)

    def forward(self, x):
        return self.conv(x).mean((2, 3))


def linear_net():
    return nn.Linear(12, 8, bias=False)


def perceptron():
    return nn.Sequential(nn.Linear(12, 10, bias=False), nn.Tanh(), nn.Linear(10, 8, bias=False))


@pytest.mark.parametrize("kind", ["linear", "mlp", "convolution"])
def test_networks_whose_population_gradient_is_zero(kind):
    """Targets are the network's own output plus noise that is independent of the input, so that E[gradient] = 0."""
    torch.manual_seed(3)
    net = {"linear": linear_net, "mlp": perceptron, "convolution": Tokens}[kind]().double()
    weight = next(net.parameters())
    shape = (3, 5, 5) if kind == "convolution" else (12,)
    scale = torch.arange(1, shape[-1] + 1, dtype=torch.float64) ** -0.5
    wrong = 0
    for _ in range(100):
        gradients = []
        for _ in range(6):
            x = torch.randn(24, *shape, dtype=torch.float64) * scale
            output = net(x)
            target = output.detach() + torch.randn_like(output) * torch.arange(1, output.shape[1] + 1) ** -0.5
            loss = (output - target).square().sum(1).mean() / 2
            gradients.append(torch.autograd.grad(loss, weight)[0].flatten(1))
        wrong += cross_fit(gradients, top_k=6).num_resolved > 0
    assert wrong <= 5


def planted(generator, groups=8, m=24, n=32, rank=8, ratio=3.0):
    """A rank-8 signal whose smallest singular value is ``ratio`` times the largest of the noise of the mean."""
    U = torch.linalg.qr(torch.randn(m, rank, dtype=torch.float64, generator=generator))[0]
    V = torch.linalg.qr(torch.randn(n, rank, dtype=torch.float64, generator=generator))[0]
    edge = torch.linalg.matrix_norm(noise(groups, m, n, generator).mean(0), 2)
    sigma = ratio * edge * (torch.arange(1, rank + 1, dtype=torch.float64) / rank) ** -0.8
    return list((U * sigma) @ V.T + noise(groups, m, n, generator)), sigma


def test_a_planted_signal_is_resolved_and_its_size_unbiased():
    generator = torch.Generator().manual_seed(5)
    found, beyond, error = [], 0, []
    for _ in range(30):
        gradients, sigma = planted(generator)
        fit = cross_fit(gradients, top_k=16)
        found.append(fit.resolved[:8].sum())
        beyond += bool(fit.resolved[8:].any())
        error.append((fit.sigma[:8] - sigma.numpy()) / fit.sigma_se[:8])
    assert min(found) >= 7 and np.mean(found) > 7.9
    assert beyond <= 2
    assert abs(np.mean(error)) < 0.5 and 0.6 < np.std(error) < 1.4


def test_shuffled_groups_and_equal_weights_change_nothing():
    gradients, _ = planted(torch.Generator().manual_seed(6))
    one = cross_fit(gradients, top_k=6)
    other = cross_fit(gradients[::-1], top_k=6, weights=[3.0] * 8)
    np.testing.assert_allclose(one.sigma, other.sigma, rtol=1e-9)
    np.testing.assert_allclose(one.sigma_se, other.sigma_se, rtol=1e-7)
    np.testing.assert_allclose(one.folds, other.folds[::-1], rtol=1e-8, atol=1e-12)


def test_a_group_of_weight_w_counts_like_its_samples():
    gradients, _ = planted(torch.Generator().manual_seed(7), groups=5)
    weights = np.array([1.0, 2.0, 3.0, 1.0, 1.0])
    fit = cross_fit(gradients, top_k=4, weights=weights)
    U, _ = fold_directions(gradients, top_k=4, weights=weights)[1]
    rest = sum(w * g for i, (w, g) in enumerate(zip(weights, gradients, strict=True)) if i != 1) / 6
    u, _, vh = torch.linalg.svd(rest, full_matrices=False)
    np.testing.assert_allclose((U.T @ u[:, :4]).abs().diagonal(), 1.0, rtol=1e-10)
    np.testing.assert_allclose(fit.folds[1], ((gradients[1] @ vh[:4].T) * u[:, :4]).sum(0).numpy(), rtol=1e-8)
    np.testing.assert_allclose(fit.sigma, weights @ fit.folds / 8, rtol=1e-12)


def test_a_gradient_of_low_rank_has_fewer_directions():
    generator = torch.Generator().manual_seed(8)
    left = torch.randn(10, 3, dtype=torch.float64, generator=generator)
    right = torch.randn(6, 3, 12, dtype=torch.float64, generator=generator)
    fit = cross_fit(list(left @ right), top_k=8)
    assert fit.folds.shape == (6, 3) and len(fit.resolved) == 3


def test_a_zero_gradient_has_no_direction():
    fit = cross_fit([torch.zeros(4, 5)] * 4, top_k=3)
    assert fit.folds.shape == (4, 0) and fit.num_resolved == 0


@pytest.mark.parametrize(
    "gradients, match",
    [
        ([torch.ones(2, 3)] * 2, "at least 3 groups"),
        ([torch.ones(2, 3), torch.ones(2, 3), torch.ones(3, 2)], "one shape"),
        ([torch.ones(2, 3), torch.ones(2, 3), torch.full((2, 3), float("nan"))], "NaN"),
    ],
)
def test_bad_groups(gradients, match):
    with pytest.raises(ValueError, match=match):
        cross_fit(gradients)


def test_bad_weights():
    with pytest.raises(ValueError, match="positive"):
        cross_fit([torch.ones(2, 3)] * 3, weights=[1.0, 0.0, 1.0])


def test_holm_rejects_step_by_step():
    p = np.array([0.2, 0.001, 0.012, 0.03])
    assert holm(p, 0.05).tolist() == [False, True, True, False]
    assert holm(np.array([0.04]), 0.05).all()
    assert not holm(np.array([np.nan, np.nan]), 0.05).any()


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_singular_vectors_of_wide_and_tall_matrices(shape):
    G = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    U, V = top_singular_vectors(G, 4)
    _, s, _ = torch.linalg.svd(G)
    np.testing.assert_allclose((U.T @ G @ V).numpy(), np.diag(s[:4]), atol=1e-10)


def test_randomised_singular_vectors_leave_the_rng_alone(monkeypatch):
    monkeypatch.setattr("spectral_ext.signal.cross_fitting.EXACT_BELOW", 8)
    generator = torch.Generator().manual_seed(10)
    G = torch.randn(60, 3, dtype=torch.float64, generator=generator) @ torch.randn(
        3, 50, dtype=torch.float64, generator=generator
    )
    before = torch.get_rng_state()
    U, V = top_singular_vectors(G, 4)
    assert torch.equal(before, torch.get_rng_state())
    s = torch.linalg.svdvals(G)
    assert U.shape == (60, 3)
    np.testing.assert_allclose(((G @ V) * U).sum(0).numpy(), s[:3].numpy(), rtol=1e-9)
