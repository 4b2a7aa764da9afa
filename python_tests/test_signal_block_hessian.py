"""Eigen-residuals, Lanczos eigenvalues and trace of a layer's Hessian block, against the dense Hessian in float64."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian

from spectral_ext.curvature import directional_curvature
from spectral_ext.signal import block_spectrum


def case(kind):
    torch.manual_seed(0)
    if kind == "convolution":
        net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.GELU(), nn.Flatten(), nn.Linear(3 * 9, 4)).double()
        x = [torch.randn(5, 2, 5, 5, dtype=torch.float64), torch.randn(3, 2, 5, 5, dtype=torch.float64)]
        name = "0"
    else:
        net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double()
        x = [torch.randn(7, 6, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)]
        name = "0"
    return net, [(one, torch.randint(4, (len(one),))) for one in x], name


def dense(net, batches, name):
    key = f"{name}.weight"
    parameters = {k: v.detach() for k, v in net.named_parameters()}
    total, count = 0.0, 0
    for x, y in batches:

        def loss(w, x=x, y=y):
            return nn.functional.cross_entropy(functional_call(net, {**parameters, key: w}, (x,)), y)

        size = parameters[key].numel()
        total = total + len(x) * hessian(loss)(parameters[key]).reshape(size, size)
        count += len(x)
    return (total / count).numpy()


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_against_the_dense_hessian(kind):
    net, batches, name = case(kind)
    measured = directional_curvature(net, nn.functional.cross_entropy, batches, layers=[name], top_k=3)[name]
    found = block_spectrum(net, nn.functional.cross_entropy, batches, {name: (measured.U, measured.V)}, eigenvalues=3)
    found = found[name]
    H = dense(net, batches, name)
    D = torch.einsum("mk,nk->kmn", measured.U, measured.V).flatten(1).numpy()
    values, vectors = np.linalg.eigh(H)
    h = np.einsum("ki,ij,kj->k", D, H, D)
    np.testing.assert_allclose(found.h, h, rtol=1e-8)
    np.testing.assert_allclose(found.h, measured.h.numpy(), rtol=1e-8)
    np.testing.assert_allclose(found.residual, np.linalg.norm(D @ H - h[:, None] * D, axis=1) / np.abs(h), rtol=1e-8)
    np.testing.assert_allclose(found.eigenvalues, values[::-1][:3], rtol=1e-8)
    np.testing.assert_allclose(found.overlap, (vectors[:, ::-1][:, :3].T @ D.T) ** 2, atol=1e-8)
    assert found.trace == pytest.approx(np.trace(H), rel=1e-8) and found.trace_se == 0
    assert found.trace_share == pytest.approx(h.sum() / np.trace(H), rel=1e-8)
    assert (found.captured <= 1 + 1e-9).all()


def test_an_eigenvector_has_no_residual():
    """A linear least-squares layer has H = C_A ⊗ 1: products of a basis vector and an eigenvector of C_A."""
    torch.manual_seed(1)
    net = nn.Linear(4, 3, bias=False).double()
    x, y = torch.randn(20, 4, dtype=torch.float64), torch.randn(20, 3, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(x.T @ x / 20)
    U, V = torch.eye(3, dtype=torch.float64)[:, :2], vectors[:, -2:]
    net = nn.Sequential(net)
    found = block_spectrum(net, lambda o, t: (o - t).square().sum(1).mean() / 2, [(x, y)], {"0": (U, V)})["0"]
    np.testing.assert_allclose(found.residual, 0, atol=1e-10)
    np.testing.assert_allclose(found.h, values[-2:], rtol=1e-10)
    np.testing.assert_allclose(found.eigenvalues, float(values[-1]), rtol=1e-10)  # three-fold


def test_the_trace_of_a_large_block_is_estimated(monkeypatch):
    net, batches, name = case("linear")
    measured = directional_curvature(net, nn.functional.cross_entropy, batches, layers=[name], top_k=2)[name]
    monkeypatch.setattr("spectral_ext.signal.block_hessian.EXACT_TRACE", 4)
    found = block_spectrum(net, nn.functional.cross_entropy, batches, {name: (measured.U, measured.V)}, probes=200)
    exact = np.trace(dense(net, batches, name))
    assert 0 < found[name].trace_se < 0.2 * exact
    assert abs(found[name].trace - exact) < 4 * found[name].trace_se


def test_the_model_is_left_alone_and_bad_input_is_named():
    net, batches, name = case("linear")
    before = {k: v.clone() for k, v in net.state_dict().items()}
    U, V = torch.eye(5, dtype=torch.float64)[:, :1], torch.eye(6, dtype=torch.float64)[:, :1]
    rng = torch.get_rng_state()
    block_spectrum(net, nn.functional.cross_entropy, batches, {name: (U, V)})
    assert torch.equal(rng, torch.get_rng_state())
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    with pytest.raises(KeyError, match="nowhere"):
        block_spectrum(net, nn.functional.cross_entropy, batches, {"nowhere": (U, V)})
    with pytest.raises(ValueError, match="have shapes"):
        block_spectrum(net, nn.functional.cross_entropy, batches, {name: (V, U)})
    with pytest.raises(ValueError, match="loss is nan"):
        block_spectrum(net, lambda o, t: o.sum() * float("nan"), batches, {name: (U, V)})


def test_curvlinops_has_the_same_products():
    curvlinops = pytest.importorskip("curvlinops")
    net, batches, name = case("linear")
    operator = curvlinops.HessianLinearOperator(net, nn.CrossEntropyLoss(), [net[0].weight], batches)
    try:
        dense_of_theirs = (operator @ torch.eye(30, dtype=torch.float64)).numpy()
    except Exception as why:
        pytest.skip(f"curvlinops: {why}")
    np.testing.assert_allclose(dense_of_theirs, dense(net, batches, name), rtol=1e-8, atol=1e-12)
    U, V = torch.eye(5, dtype=torch.float64)[:, :3], torch.eye(6, dtype=torch.float64)[:, :3]
    found = block_spectrum(net, nn.functional.cross_entropy, batches, {name: (U, V)}, eigenvalues=2)[name]
    np.testing.assert_allclose(found.eigenvalues, np.linalg.eigvalsh(dense_of_theirs)[::-1][:2], rtol=1e-8)
