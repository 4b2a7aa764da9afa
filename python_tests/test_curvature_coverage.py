"""h_k of every layer of many kinds of model against double backward in the weight, written here once more."""

import pytest
import torch
from curvature_cases import CASES, build

from spectral_ext.curvature import MECHANISMS, directional_curvature
from spectral_ext.layers import find_layers
from spectral_ext.measurement.batches import batch_loss, batch_size


def by_double_backward(model, loss_fn, batches, weight, directions):
    """⟨D_k, ∂²L/∂W² D_k⟩ with the mean over all samples, plain autograd."""
    samples = sum(batch_size(batch) for batch in batches)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        loss = sum(batch_loss(model, loss_fn, batch) * (batch_size(batch) / samples) for batch in batches)
    (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
    forms = []
    for direction in directions:
        if gradient.requires_grad:
            (product,) = torch.autograd.grad(gradient, weight, direction, retain_graph=True, allow_unused=True)
            forms.append(torch.zeros(()) if product is None else (product * direction).sum())
        else:
            forms.append(torch.zeros(()))
    return gradient.detach(), torch.stack(forms).double()


@pytest.mark.filterwarnings("ignore:.*falling back to double backward")
@pytest.mark.filterwarnings("ignore:.*nested tensor")
@pytest.mark.parametrize("name", CASES)
def test_every_layer_agrees_with_double_backward(name):
    model, loss_fn, batches = build(name)
    found = directional_curvature(model, loss_fn, batches, top_k=3, split=True, **CASES[name].options)
    assert len(found) > 0
    layers, _ = find_layers(model, named=found)
    for layer, result in found.items():
        weight, along = layers[layer].weight, layers[layer].tangents(result.U, result.V)
        gradient, expected = by_double_backward(model, loss_fn, batches, weight, along)
        scale = expected.abs().max().clamp_min(1e-12)
        assert (result.h - expected).abs().max() <= 1e-9 * scale, (layer, result.method)
        sigma = torch.linalg.svdvals(layers[layer].matrix(gradient))[: len(result.sigma)]
        assert torch.allclose(result.sigma, sigma, rtol=1e-9, atol=1e-12)
        if result.parts is not None:
            assert set(result.parts) == set(MECHANISMS)
            assert torch.allclose(sum(result.parts.values()), result.h, rtol=1e-12, atol=1e-12 * float(scale))
    assert next(iter(found.values())).method == CASES[name].method, next(iter(found.values())).reason
