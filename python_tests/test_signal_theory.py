"""The claims of docs/concepts/signal-and-noise.md, each by a small run."""

import numpy as np
import pytest
import torch

from spectral_ext.signal import fit_noise_exponent
from spectral_ext.spectra import fit_alpha, fit_power_law


def quotients(G, left, right, k):
    """σ_k and u'Lu · v'Rv along the k leading singular directions."""
    U, sigma, Vh = np.linalg.svd(G, full_matrices=False)
    return sigma[:k], np.einsum("mk,mj,jk->k", U[:, :k], left, U[:, :k]) * np.einsum(
        "kn,nj,kj->k", Vh[:k], right, Vh[:k]
    )


@pytest.mark.parametrize("samples", [256, 4096])
def test_the_kronecker_alpha_of_pure_noise_is_two(samples):
    """δ independent of a, both of mean zero: σ_k² ∝ h_k^Kron, whatever the number of samples."""
    rng = np.random.default_rng(0)
    d, e = np.arange(1, 31.0) ** -1, np.arange(1, 41.0) ** -1.2
    values = []
    for _ in range(10):
        delta = rng.standard_normal((samples, 30)) * np.sqrt(d)
        a = rng.standard_normal((samples, 40)) * np.sqrt(e)
        sigma, h = quotients(delta.T @ a / samples, delta.T @ delta / samples, a.T @ a / samples, 15)
        values.append(fit_power_law(sigma, h).value)
    assert np.mean(values) == pytest.approx(2.0, abs=0.3)


def test_white_factors_give_noise_no_power_law():
    """The limit of the claim: without decay in the factors σ spreads by repulsion alone, and h stays flat."""
    rng = np.random.default_rng(0)
    delta, a = rng.standard_normal((20000, 30)), rng.standard_normal((20000, 40))
    sigma, h = quotients(delta.T @ a / 20000, delta.T @ delta / 20000, a.T @ a / 20000, 15)
    assert abs(fit_power_law(sigma, h).value) < 0.3


def softmax_regression(samples=3000, classes=30, inputs=40, seed=0):
    """(G, C_δ, C_A) of a softmax layer at its population optimum, labels drawn from the model: H = C_δ ⊗ C_A there."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.arange(1, inputs + 1, dtype=torch.float64) ** -0.6
    x = torch.randn(samples, inputs, dtype=torch.float64, generator=generator) * scale
    bias = torch.linspace(0, -4, classes, dtype=torch.float64)
    p = torch.softmax(bias.expand(samples, -1), 1)
    y = torch.multinomial(p, 1, generator=generator)[:, 0]
    error = p - torch.nn.functional.one_hot(y, classes)
    G = error.T @ x / samples
    left = torch.diag(p[0]) - torch.outer(p[0], p[0])
    return G.numpy(), left.numpy(), (x.T @ x / samples).numpy()


def test_the_exact_alpha_of_noise_is_two_where_the_model_draws_its_labels():
    """Fisher identity: the covariance of the sampled gradient is the Gauss–Newton matrix, which is H for this layer."""
    values = []
    for seed in range(10):
        G, left, right = softmax_regression(seed=seed)
        values.append(fit_alpha(*quotients(G, left, right, 10)).value)
    assert np.mean(values) == pytest.approx(2.0, abs=0.3)


@pytest.mark.parametrize("gamma", [1.0, 1.5, 2.0])
def test_the_alpha_of_noise_is_two_over_gamma(gamma):
    """C_k ∝ h_k^γ in a common eigenbasis: a noise spectrum has α = 2/γ, and the variance over samples measures γ."""
    rng = np.random.default_rng(1)
    h = np.arange(1, 25.0) ** -1.5
    alphas, gammas = [], []
    for _ in range(20):
        samples = rng.standard_normal((200, 24)) * np.sqrt(h**gamma)
        sigma = np.abs(rng.standard_normal((4000, 24)) * np.sqrt(h**gamma)).mean(0)
        alphas.append(fit_alpha(sigma, h).value)
        gammas.append(fit_noise_exponent(samples.var(0), h).value)
    assert np.mean(alphas) == pytest.approx(2 / gamma, abs=0.03)
    assert np.mean(gammas) == pytest.approx(gamma, abs=0.1)


def least_squares(steps, rate=0.5):
    """(σ, h) of a linear least-squares layer with isotropic target after gradient descent: H = 1 ⊗ C_A, G = Δ C_A."""
    rng = np.random.default_rng(2)
    eigenvalues = np.arange(1, 31.0) ** -1.0
    delta = np.linalg.qr(rng.standard_normal((30, 30)))[0] * (1 - rate * eigenvalues) ** steps
    return quotients(delta * eigenvalues, np.eye(30), np.diag(eigenvalues), 20)


def test_the_alpha_of_signal_is_a_property_of_the_problem():
    """At initialisation a least-squares layer has α = 1. Training empties the directions of high curvature first,
    until h is no power of σ at all."""
    start = fit_alpha(*least_squares(0))
    assert start.value == pytest.approx(1.0, abs=1e-6) and start.r2 == pytest.approx(1.0)
    later = fit_alpha(*least_squares(8))
    assert later.r2 < 0.8 and abs(later.value - 1) > 0.5


def test_the_transfer_function_gives_noise_the_larger_part_of_the_update():
    """With h = σ²B for noise, T(σ; 2) = σ/(σ² + d) weighs noise directions up: their share of the step grows."""
    rng = np.random.default_rng(3)
    m, n, rank = 40, 60, 5
    U, V = (np.linalg.qr(rng.standard_normal((size, rank)))[0] for size in (m, n))
    noise = rng.standard_normal((m, n)) * np.sqrt(np.arange(1, m + 1.0)[:, None] ** -1)
    signal = (U * np.linspace(60, 30, rank)) @ V.T
    left, sigma, right = np.linalg.svd(signal + noise, full_matrices=False)

    def share(weights):
        step = (left * weights) @ right
        return 1 - np.linalg.norm(U.T @ step @ V) ** 2 / np.linalg.norm(step) ** 2

    damping = 0.1 * np.mean(sigma**2)
    gradient, muon, newton = share(sigma), share(np.ones_like(sigma)), share(sigma / (sigma**2 + damping))
    assert gradient < 0.5 < muon < newton
