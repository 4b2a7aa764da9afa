"""``measure(directions=)``: the singular directions of an optimizer's momentum, or of given tensors."""

import numpy as np
import pytest
import torch
from torch import nn

from spectral_ext import directional_curvature, measure
from spectral_ext.optim import SpectralNewton

LOSS = nn.functional.cross_entropy


def task():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.GELU(), nn.Flatten(), nn.Linear(96, 6), nn.GELU(), nn.Linear(6, 5))
    return model.double(), [(torch.randn(20, 2, 6, 6, dtype=torch.float64), torch.arange(20) % 5)]


def trained(make):
    model, batches = task()
    optimizer = make(model)
    for _ in range(3):
        optimizer.zero_grad()
        LOSS(model(batches[0][0]), batches[0][1]).backward()
        optimizer.step()
    return model, batches, optimizer


@pytest.mark.parametrize(
    "make, key",
    [
        (lambda m: SpectralNewton(m, lr=1e-3), "momentum_buffer"),
        (lambda m: torch.optim.SGD(m.parameters(), 0.01, momentum=0.9), "momentum_buffer"),
        (lambda m: torch.optim.AdamW(m.parameters(), 1e-3), "exp_avg"),
    ],
)
def test_the_directions_of_an_optimizers_momentum(make, key):
    model, batches, optimizer = trained(make)
    state = optimizer.state[model[3].weight]
    momentum = state.get(key, state.get("exp_avg")).double()
    U, sigma, Vh = torch.linalg.svd(momentum, full_matrices=False)
    found = measure(model, LOSS, batches, top_k=3, directions=optimizer, progress=False)
    h = directional_curvature(model, LOSS, batches, directions={"3": (U[:, :3], Vh[:3].T)})["3"].h
    np.testing.assert_allclose(found["3"].arrays.sigma, sigma[:3].numpy(), rtol=1e-6)
    np.testing.assert_allclose(found["3"].arrays.h, h.numpy(), rtol=1e-5, atol=1e-9)
    assert any("not of this batch's gradient" in note for note in found["3"].notes)
    assert found["3"].prediction is None


def test_a_state_dict_of_gradients_gives_the_gradients_row():
    model, batches = task()
    weights = {name: p for name, p in model.named_parameters() if p.dim() > 1}
    gradients = torch.autograd.grad(LOSS(model(batches[0][0]), batches[0][1]), list(weights.values()))
    own = measure(model, LOSS, batches, top_k=3, progress=False)
    given = measure(
        model, LOSS, batches, top_k=3, directions=dict(zip(weights, gradients, strict=True)), progress=False
    )
    for name, row in own.items():
        np.testing.assert_allclose(given[name].arrays.h, row.arrays.h, rtol=1e-8)
        np.testing.assert_allclose(given[name].arrays.sigma, row.arrays.sigma, rtol=1e-8)


def test_layers_without_a_matrix_are_skipped_with_the_reason():
    model, batches = task()
    found = measure(model, LOSS, batches, top_k=2, directions={"3": torch.randn(6, 96)}, progress=False)
    assert list(found) == ["3"] and "directions holds nothing" in found.skipped["0"]


@pytest.mark.parametrize(
    "directions, error, match",
    [
        ({"3": torch.ones(4, 4)}, ValueError, "another model"),
        ({"3": torch.full((6, 96), float("nan"))}, ValueError, "NaN"),
        ({"nowhere": torch.ones(6, 96)}, ValueError, "names of layers"),
        ({"3": [1.0]}, TypeError, "must be a tensor"),
        (3, TypeError, "an optimizer or a mapping"),
    ],
)
def test_bad_directions(directions, error, match):
    model, batches = task()
    with pytest.raises(error, match=match):
        measure(model, LOSS, batches, directions=directions, progress=False)


def test_an_optimizer_without_momentum_and_folds_are_refused():
    model, batches = task()
    with pytest.raises(ValueError, match="has a momentum"):
        measure(model, LOSS, batches, directions=torch.optim.SGD(model.parameters(), 0.1), progress=False)
    with pytest.raises(ValueError, match="exclude each other"):
        measure(model, LOSS, batches, directions={"3": torch.ones(6, 96)}, folds=4, progress=False)


def test_directional_curvature_takes_the_same_sources():
    model, batches, optimizer = trained(lambda m: torch.optim.SGD(m.parameters(), 0.01, momentum=0.9))
    momentum = {name: optimizer.state[p]["momentum_buffer"] for name, p in model.named_parameters() if p.dim() > 1}
    U, _, Vh = torch.linalg.svd(momentum["0.weight"].flatten(1), full_matrices=False)
    wanted = directional_curvature(model, LOSS, batches, directions={"0": (U[:, :4], Vh[:4].T)})["0"].h
    for source in (
        optimizer,
        momentum,
        {"0": momentum["0.weight"]},
        {"0": momentum["0.weight"].flatten(1)},
        {**momentum, "3.bias": torch.ones(6)},
    ):
        found = directional_curvature(model, LOSS, batches, directions=source, top_k=4)
        torch.testing.assert_close(found["0"].h, wanted, rtol=1e-8, atol=1e-12)
    assert set(directional_curvature(model, LOSS, batches, directions=momentum, top_k=4)) == {"0", "3", "5"}
    only = directional_curvature(model, LOSS, batches, directions=optimizer, layers=["3"], top_k=4)
    assert set(only) == {"3"}


def test_directional_curvature_names_what_is_wrong_with_a_source():
    model, batches = task()
    other = nn.Linear(3, 2).double()
    with pytest.raises(ValueError, match="has a momentum and has made a step"):
        directional_curvature(model, LOSS, batches, directions=torch.optim.SGD(other.parameters(), 0.1, momentum=0.9))
    with pytest.raises(ValueError, match="another model"):
        directional_curvature(model, LOSS, batches, directions={"3.weight": torch.ones(6, 95, dtype=torch.float64)})
    with pytest.raises(TypeError, match="optimizer or a mapping"):
        directional_curvature(model, LOSS, batches, directions="momentum")
    with pytest.raises(ValueError, match="every matrix is zero"):
        directional_curvature(model, LOSS, batches, directions={"3": torch.zeros(6, 96, dtype=torch.float64)})
    some = {"3": torch.zeros(6, 96, dtype=torch.float64), "5": torch.ones(5, 6, dtype=torch.float64)}
    found = directional_curvature(model, LOSS, batches, directions=some)
    assert set(found) == {"5"} and found.skipped["3"] == "its direction matrix is zero"
