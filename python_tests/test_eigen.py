"""top_eigenpairs against known spectra and torch.linalg.eigh: values relative to the largest, vectors by residual."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_ext.factors import eigen
from spectral_ext.factors.eigen import top_eigenpairs


def spectrum(values):
    """A symmetric matrix with these eigenvalues: diagonal, reflected three times."""
    C = torch.diag(values)
    for seed in range(3):
        v = torch.randn(len(values), 1, generator=torch.Generator().manual_seed(seed), dtype=values.dtype)
        H = torch.eye(len(values), dtype=values.dtype) - 2 * v @ v.T / v.square().sum()
        C = H @ C @ H
    return (C + C.T) / 2


def powers(n, exponent, dtype=torch.float64):
    return torch.arange(1, n + 1, dtype=dtype) ** -exponent


class Operator:
    """A matrix behind `@` only."""

    def __init__(self, matrix):
        self.matrix, self.columns = matrix, 0
        self.shape, self.dtype, self.device = matrix.shape, matrix.dtype, matrix.device

    def __matmul__(self, block):
        self.columns += block.shape[1]
        return self.matrix @ block


def assert_eigenpairs(pairs, C, values, tolerance):
    k = len(values)
    scale = values.abs().max().clamp_min(1e-30)
    torch.testing.assert_close(pairs.values, values, rtol=0, atol=float(tolerance * scale))
    assert (pairs.values.diff() <= tolerance * scale).all(), "descending"
    gram = pairs.vectors.mT @ pairs.vectors
    torch.testing.assert_close(gram, torch.eye(k, dtype=C.dtype), rtol=0, atol=float(tolerance * 10))
    assert (C @ pairs.vectors - pairs.vectors * pairs.values).norm(dim=0).max() <= tolerance * scale
    assert pairs.residuals.max() <= tolerance


@pytest.mark.parametrize("dtype,tol", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("n,k,exponent", [(400, 1, 1.0), (400, 20, 0.7), (600, 20, 2.0), (600, 60, 1.0)])
def test_matches_the_spectrum(dtype, tol, n, k, exponent):
    values = powers(n, exponent, dtype)
    C = spectrum(values)
    found = eigen._with_residuals(C, *eigen._block_krylov(C, k, tol, 100))
    assert_eigenpairs(found, C, values[:k], 2 * tol)


@pytest.mark.parametrize(
    "values",
    [
        torch.cat([torch.full((12,), 3.0), powers(300, 1.0)]),  # a cluster larger than a few vectors
        torch.cat([powers(5, 1.0), torch.zeros(300)]),  # rank below k
        torch.cat([powers(5, 1.0), torch.full((300,), 1e-3)]),
        torch.ones(300),
        torch.cat([powers(150, 0.5), -2 * powers(150, 0.5)]).sort(descending=True).values,  # indefinite
    ],
    ids=["repeated", "low rank", "spiked", "identity", "indefinite"],
)
@pytest.mark.parametrize("diagonal", [False, True])
def test_hard_spectra(values, diagonal):
    """Repeated eigenvalues are all found, and exact zeros leave an orthonormal basis."""
    values = values.double()
    C = torch.diag(values) if diagonal else spectrum(values)
    found = eigen._block_krylov(C, 10, 1e-10, 100)
    assert found is not None
    assert_eigenpairs(eigen._with_residuals(C, *found), C, values[:10], 1e-8)


def test_zero_matrix_and_all_eigenvalues(device):
    for n, k in ((300, 4), (40, 40), (1, 1)):
        pairs = top_eigenpairs(torch.zeros(n, n, device=device), k)
        assert torch.equal(pairs.values.cpu(), torch.zeros(k))
        assert pairs.vectors.shape == (n, k)
        assert (pairs.residuals == 0).all()
        gram = pairs.vectors.mT @ pairs.vectors
        torch.testing.assert_close(gram, torch.eye(k, device=device), rtol=0, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 260), share=st.floats(0, 1), exponent=st.floats(0, 3), seed=st.integers(0, 2**31))
def test_equals_eigh(n, share, exponent, seed):
    torch.manual_seed(seed)
    rows = torch.randn(2 * n, n, dtype=torch.float64) * powers(n, exponent)
    C, k = rows.T @ rows, 1 + int(share * (n - 1))
    expected = torch.linalg.eigvalsh(C).flip(0)[:k]
    pairs = top_eigenpairs(C, k)
    torch.testing.assert_close(pairs.values, expected, rtol=0, atol=float(1e-9 * expected[0]))


@pytest.mark.parametrize("n", [50, 500])
def test_an_operator_is_never_formed(n):
    C = spectrum(powers(n, 1.0))
    operator = Operator(C)
    pairs = top_eigenpairs(operator, 5)
    assert_eigenpairs(pairs, C, powers(n, 1.0)[:5], 1e-9)
    assert operator.columns < 2 * n or n == 50


def test_factors_of_groups_at_once():
    C = torch.stack([spectrum(powers(30, 1.0)), spectrum(powers(30, 2.0))])
    pairs = top_eigenpairs(C, 3)
    assert pairs.values.shape == (2, 3)
    assert pairs.vectors.shape == (2, 30, 3)
    torch.testing.assert_close(pairs.values[1], powers(30, 2.0)[:3], rtol=1e-10, atol=0)


def test_on_the_device_of_the_factor(device):
    C = spectrum(powers(500, 1.0)).to(device)
    pairs = top_eigenpairs(C, 10)
    assert pairs.values.device == pairs.vectors.device == C.device
    torch.testing.assert_close(pairs.values.cpu(), powers(500, 1.0)[:10], rtol=1e-9, atol=0)


def test_falls_back_to_eigh_where_the_iteration_is_cut_short(monkeypatch):
    monkeypatch.setattr(eigen, "_block_krylov", lambda *_: None)
    C = spectrum(powers(300, 1.0))
    assert_eigenpairs(top_eigenpairs(C, 5), C, powers(300, 1.0)[:5], 1e-10)
    with pytest.raises(RuntimeError, match="did not reach"):
        top_eigenpairs(Operator(C), 5)


def test_same_result_twice_and_no_random_state_consumed():
    C = spectrum(powers(300, 0.5))
    state = torch.get_rng_state()
    first, second = top_eigenpairs(C, 20), top_eigenpairs(C, 20)
    assert torch.equal(first.vectors, second.vectors)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_widened(dtype):
    C = spectrum(powers(300, 1.0, torch.float32)).to(dtype)
    pairs = top_eigenpairs((C + C.T) / 2, 3)
    assert pairs.values.dtype == torch.float32
    torch.testing.assert_close(pairs.values, powers(300, 1.0, torch.float32)[:3], rtol=0, atol=2e-2)


@pytest.mark.parametrize(
    "C,k,error,message",
    [
        (torch.zeros(3, 4), 1, ValueError, "square"),
        (torch.zeros(3, 3), 0, ValueError, "k must be between"),
        (torch.zeros(3, 3), 4, ValueError, "k must be between"),
        (torch.full((3, 3), float("nan")), 1, ValueError, "not finite"),
        (torch.zeros(3, 3, dtype=torch.int64), 1, ValueError, "floating"),
        (torch.randn(300, 300).triu(), 5, RuntimeError, "not symmetric"),
    ],
)
def test_bad_input(C, k, error, message):
    with pytest.raises(error, match=message):
        top_eigenpairs(C, k)
