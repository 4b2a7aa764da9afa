"""spectral_map against the float64 SVD, its certificate, its refusals; and bounded runs of the fuzz and the counts."""

import math

import numpy as np
import pytest
import torch

from benchmarks.count_newton_calls import count
from benchmarks.fuzz_spectral_newton import MAPS, run
from spectral_ext import SpectralMap, polar, spectral_map
from spectral_ext.ops.spectral_newton import fit_map


def test_random_problems_of_every_solver_and_map():
    found = run(first=20_000, count=60, maps=2 * len(MAPS))
    assert found["wrong"] == []


def test_denormal_matrices_in_float64():
    found = run(first=771, count=1, maps=0)  # the mean of σ² underflows
    assert found["wrong"] == [] and found["counts"] == {"auto right": 1}


@pytest.mark.parametrize("f", MAPS, ids=lambda f: f"{f.name}{dict(f.parameters)}")
def test_the_certificate_holds_on_an_independent_grid(f):
    fit = fit_map(f, 1.0, 1e-3)
    x = np.concatenate([np.geomspace(1e-11, 1, 20_011), np.random.default_rng(0).random(20_000)])
    assert np.abs(fit(x) - f(x)).max() / f(x).max() <= 1.05 * fit.error <= 1.05e-3


def test_polar_batches_lists_dtypes_zero_and_nan():
    G = torch.randn(3, 8, 12)
    G[1], G[2, 0, 0] = 0.0, math.nan
    result = polar([G, G[0].mT.bfloat16()])
    U, _, Vh = torch.linalg.svd(G[0].double(), full_matrices=False)
    assert torch.linalg.matrix_norm(result[0][0] - U @ Vh, 2) < 5e-3
    assert torch.equal(result[0][1], torch.zeros(8, 12)) and result[0][2].isnan().all()
    assert result[1].dtype == torch.bfloat16 and torch.linalg.matrix_norm(result[1].double() - (U @ Vh).mT, 2) < 3e-2


@pytest.mark.parametrize(
    ("f", "match"),
    [
        (lambda s: s - 0.3 * s**0.5, "changes sign"),
        (lambda s: s / (s - 0.5) ** 2 / (s != 0.5), "not finite|poles"),
        (lambda s: -s, "negative"),
        (lambda s: np.ones_like(s), "does not vanish at σ = 0"),
        (lambda s: 0 * s, "is zero"),
        ("flat", "no spectral map is called 'flat'"),
    ],
)
def test_maps_that_are_refused(f, match):
    G = torch.eye(4, dtype=torch.float64)
    with pytest.raises(ValueError, match=match):
        spectral_map(G, f)


def test_maps_are_saved_by_name():
    f = SpectralMap.named("power", "rms", exponent=0.25)
    assert SpectralMap.from_dict(f.to_dict()) == f
    with pytest.raises(ValueError, match="callable"):
        SpectralMap("mine", function=np.sqrt).to_dict()
    with pytest.raises(ValueError, match="no parameter 'width'"):
        SpectralMap.named("clip", width=1.0)


def test_calls_of_an_accelerator_are_counted():
    few = count([(64, 576)] * 4, 2.0, "rms")
    many = count([(64, 576)] * 40, 2.0, "rms")
    assert 0 < few["calls"] == many["calls"] < 60 and many["GFLOP"] > 9 * few["GFLOP"]
