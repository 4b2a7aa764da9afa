"""The definitions themselves, against torch's own convolution, unfold and per-sample gradients."""

import pytest
import torch
import torch.nn.functional as F

from spectral_ext import reference

GEOMETRIES = [
    dict(kernel_size=3),
    dict(kernel_size=(3, 2), stride=(2, 1), padding=(1, 2), dilation=(2, 1)),
    dict(kernel_size=1, stride=2),
    dict(kernel_size=2, stride=3, padding=1),
]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_patches_are_unfold(geometry):
    x = torch.randn(3, 4, 9, 8, dtype=torch.float64)
    assert torch.equal(reference.patches(x, **geometry)[0].mT, F.unfold(x, **geometry))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_patches_times_weight_is_the_convolution(dims, groups):
    x = torch.randn(2, 4, *(7, 6, 5)[:dims], dtype=torch.float64)
    weight = torch.randn(6, 4 // groups, *(3, 2, 2)[:dims], dtype=torch.float64)
    geometry = dict(stride=2, padding=1, dilation=1)
    convolution = (F.conv1d, F.conv2d, F.conv3d)[dims - 1](x, weight, groups=groups, **geometry)
    rows = reference.patches(x, kernel_size=weight.shape[2:], groups=groups, **geometry)
    filters = weight.flatten(1).unflatten(0, (groups, -1))
    torch.testing.assert_close(
        torch.einsum("gbsn,gmn->bgms", rows, filters).flatten(1, 2), convolution.flatten(2), rtol=0, atol=1e-12
    )


def test_gauss_newton_form_is_the_mean_square_of_per_sample_gradients():
    x, weight = torch.randn(5, 3, 6, 6, dtype=torch.float64), torch.randn(4, 3, 3, 3, dtype=torch.float64)
    target = torch.randn(5, 4, 4, 4, dtype=torch.float64)

    def loss(weight, x, target):
        return (F.conv2d(x[None], weight)[0] - target).square().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(weight, x, target).flatten(2)
    delta = 2 * (F.conv2d(x, weight) - target)
    U, V = torch.randn(4, 2, dtype=torch.float64), torch.randn(27, 2, dtype=torch.float64)
    found = reference.rayleigh_quotients(x, delta, U, V, kernel_size=3)
    expected = torch.einsum("mk,bmn,nk->bk", U, per_sample, V).square().mean(0)
    torch.testing.assert_close(found.gauss_newton, expected)
    C_A, C_delta = reference.input_factor(x, kernel_size=3), reference.output_factor(delta, convolution=True)
    torch.testing.assert_close(found.input, (V * (C_A @ V)).sum(0))
    torch.testing.assert_close(found.output, (U * (C_delta @ U)).sum(0))


@pytest.mark.parametrize("mode", ["absolute", "spectral", "rms"])
@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 3.5])
def test_spectral_newton_on_a_diagonal(mode, alpha):
    sigma = torch.tensor([3.0, 1.0, 0.25, 0.0], dtype=torch.float64)
    d = {"absolute": 0.1, "spectral": 0.1 * 3.0**alpha, "rms": 0.1 * (sigma**2).mean() ** (alpha / 2)}[mode]
    found = reference.spectral_newton(torch.diag(sigma), alpha, 0.1, damping_mode=mode)
    torch.testing.assert_close(found, torch.diag(sigma / (sigma**alpha + d)))


def test_spectral_newton_of_zero_is_zero():
    for mode in ("absolute", "spectral", "rms"):
        assert torch.equal(reference.spectral_newton(torch.zeros(3, 4), damping_mode=mode), torch.zeros(3, 4))
