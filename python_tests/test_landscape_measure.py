"""measure(): the whole chain on small models, against independent computations, and on bad input."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from spectral_ext.landscape import Landscape, measure

LOSS = nn.CrossEntropyLoss()


def conv_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        nn.Conv2d(16, 16, 3, stride=2),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(16 * 9, 12),
        nn.LayerNorm(12),
        nn.Linear(12, 10),
    )


def images(samples=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, 3, 8, 8, generator=generator), torch.randint(10, (samples,), generator=generator)


def run(net, batches, **options):
    return measure(net, LOSS, batches, progress=False, **options)


@pytest.fixture(scope="module")
def landscape():
    return run(conv_net().double().eval(), [tuple(t.double() if t.is_floating_point() else t for t in images())])


def test_every_layer_has_a_row_and_every_other_module_a_reason(landscape):
    assert list(landscape) == ["0", "3", "6", "8"]
    assert set(landscape.skipped) == {"1", "7"}
    assert [row.kind for row in landscape.values()] == ["Conv2d", "Conv2d", "Linear", "Linear"]
    assert [row.shape for row in landscape.values()] == [(16, 27), (16, 144), (12, 144), (10, 12)]
    assert [row.positions for row in landscape.values()] == [64, 9, 1, 1]
    assert landscape.meta["samples"] == 32
    assert landscape.meta["batch_norm"] == "eval"
    with pytest.raises(KeyError, match="BatchNorm2d has no weight matrix"):
        landscape["1"]


def test_curvature_is_the_hessian_form(landscape):
    net = conv_net().double().eval()
    x, y = images()
    for name in ("3", "8"):
        row, weight = landscape[name], net.get_submodule(name).weight
        (gradient,) = torch.autograd.grad(LOSS(net(x.double()), y), weight, create_graph=True)
        U, sigma, Vh = torch.linalg.svd(gradient.detach().flatten(1), full_matrices=False)
        np.testing.assert_allclose(row.arrays.sigma, sigma[: row.num_directions], rtol=1e-9)
        for k in range(row.num_directions):
            direction = torch.outer(U[:, k], Vh[k]).reshape(weight.shape)
            (product,) = torch.autograd.grad(gradient, weight, direction, retain_graph=True)
            assert row.arrays.h[k] == pytest.approx(float((product * direction).sum()), rel=1e-7, abs=1e-12)


def test_arrays_obey_the_definitions(landscape):
    for row in landscape.values():
        a = row.arrays
        np.testing.assert_allclose(a.h_kron, a.output_quotient * a.input_quotient)
        np.testing.assert_allclose(a.chi * a.h_kron, a.h)
        defined = np.isfinite(a.Phi)
        np.testing.assert_allclose((a.Phi * a.Lambda)[defined], a.h_kron[defined])
        np.testing.assert_allclose(a.concentration, row.positions * a.h_sop / a.h_kron)
        assert (a.output_quotient <= a.spectrum_delta[0] * (1 + 1e-9)).all()
        assert (a.input_quotient <= a.spectrum_A[0] * (1 + 1e-9)).all()
        assert row.closure.full == pytest.approx(0, abs=1e-10)
        assert row.closure.kronecker == pytest.approx(row.chi_slope.value, abs=1e-10)
        assert (np.diff(a.sigma_all) <= 0).all()


def test_parts_add_up_to_h(landscape):
    for row in landscape.values():
        a = row.arrays
        if len(a.h_gauss_newton):
            total = a.h_gauss_newton + sum(a.h_residual.values())
            np.testing.assert_allclose(total, a.h, rtol=1e-6, atol=1e-9 * np.abs(a.h).max())
        else:
            assert any("not split" in note for note in row.notes)


def test_gauss_newton_part_is_the_ggn_form(landscape):
    curvlinops = pytest.importorskip("curvlinops", reason="curvlinops is the outside oracle here")
    net = conv_net().double().eval()
    x, y = images()
    for name in ("3", "6"):
        row, weight = landscape[name], net.get_submodule(name).weight
        (gradient,) = torch.autograd.grad(LOSS(net(x.double()), y), weight)
        U, _, Vh = torch.linalg.svd(gradient.flatten(1), full_matrices=False)
        directions = torch.einsum("mk,kn->mnk", U, Vh)[..., : row.num_directions].reshape(
            *weight.shape, row.num_directions
        )
        data = [(x.double(), y)]
        for operator, expected in (
            (curvlinops.GGNLinearOperator, row.arrays.h_gauss_newton),
            (curvlinops.HessianLinearOperator, row.arrays.h),
        ):
            (product,) = operator(net, LOSS, [weight], data, check_deterministic=False) @ [directions]
            form = (directions * product).flatten(0, -2).sum(0).detach().numpy()
            np.testing.assert_allclose(form, expected, rtol=1e-6, atol=1e-9 * np.abs(expected).max())


def test_head_is_a_softmax_head(landscape):
    head = landscape["8"]
    assert head.softmax.is_softmax
    assert head.softmax.rank == 9
    assert head.num_directions == 9
    assert any("numerical rank 9" in note for note in head.notes)
    assert head.layer_norm.behind_norm
    assert landscape["6"].softmax is None
    assert landscape["6"].layer_norm.behind_norm is False


def test_layers_by_pattern_and_top_k():
    found = run(conv_net().eval(), [images()], layers=["[68]"], top_k=5)
    assert list(found) == ["6", "8"]
    assert found.skipped["0"] == "not asked for"
    assert [row.num_directions for row in found.values()] == [5, 5]
    assert [row.depth for row in found.values()] == [2, 3]


def test_batches_are_one_data_set():
    net = conv_net().eval()
    x, y = images()
    whole, parts = run(net, [(x, y)]), run(net, [(x[:10], y[:10]), (x[10:], y[10:])])
    for name in whole:
        np.testing.assert_allclose(parts[name].arrays.sigma, whole[name].arrays.sigma, rtol=1e-4)
        assert parts[name].alpha.value == pytest.approx(whole[name].alpha.value, abs=1e-2)


@pytest.mark.parametrize("train", [True, False])
def test_the_model_is_left_alone(train):
    net = conv_net().train(train)
    net[0].weight.grad = torch.ones_like(net[0].weight)
    before, grad, rng = copy.deepcopy(net.state_dict()), net[0].weight.grad, torch.get_rng_state()
    modes = [module.training for module in net.modules()]
    found = run(net, [images()], layers=["0", "8"], top_k=4)
    assert found.meta["batch_norm"] == ("train" if train else "eval")
    assert bool(found.meta["notes"]) == train
    with pytest.raises(ValueError, match="nan"):
        run(net, [(images()[0] * float("nan"), images()[1])])
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert net[0].weight.grad is grad
    assert [module.training for module in net.modules()] == modes
    assert torch.equal(rng, torch.get_rng_state())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in net.modules())


def test_a_mapping_batch_and_half_precision_rows():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 4)

        def forward(self, values, labels):
            return {"loss": nn.functional.cross_entropy(self.head(torch.tanh(self.body(values))), labels)}

    torch.manual_seed(0)
    batch = {"values": torch.randn(16, 6), "labels": torch.randint(4, (16,))}
    found = measure(Named(), lambda output, _: output["loss"], [batch], progress=False)
    assert found["body"].alpha.ok


def test_zero_gradient_gives_an_empty_row():
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.dead, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(x + 0 * self.dead(x))

    found = run(Cut(), [(torch.randn(8, 4), torch.randint(3, (8,)))])
    assert found["dead"].empty_reason == "its gradient is zero"
    assert found["dead"].recommendation is None
    assert not found["dead"].alpha.ok
    assert found["head"].num_directions == 2
    assert "at least 4" in found["head"].alpha.reason
    assert found["head"].recommendation.trust is False
    assert "its gradient is zero" in str(found)


def test_too_few_samples_give_fewer_directions():
    x, y = images(2)
    found = run(conv_net().eval(), [(x, y)], layers="6")
    assert found["6"].num_directions == 2
    assert any("numerical rank 2" in note for note in found["6"].notes)


def test_one_sample_is_measured_and_its_reduction_unchecked():
    found = run(conv_net().eval(), [images(1)], layers="0")
    assert "could not be checked" in found.meta["notes"][0]


def test_shared_and_repeated_layers_are_listed():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.again, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.head(torch.tanh(self.again(torch.tanh(self.again(self.b(self.a(x)))))))

    found = run(Tied(), [(torch.randn(8, 4), torch.randint(3, (8,)))])
    assert list(found) == ["a", "again", "head"]
    assert "shared with a" in found.skipped["b"]
    assert any("no Kronecker factors" in note for note in found["a"].notes) and len(found["a"].arrays.h) == 4
    again = found["again"]
    assert any("no Kronecker factors" in note and "called 2 times" in note for note in again.notes)
    assert again.num_directions == len(again.arrays.h) == 4 and again.alpha.ok
    assert len(again.arrays.h_kron) == len(again.arrays.spectrum_A) == 0 and again.softmax is None
    assert not again.beta.ok and again.recommendation.kronecker_justified == "undecided"
    assert "again" in str(found)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm])
def test_a_parametrized_weight_is_listed(norm):
    net = nn.Sequential(norm(nn.Linear(4, 8)), nn.Tanh(), nn.Linear(8, 3))
    found = run(net, [(torch.randn(8, 4), torch.randint(3, (8,)))])
    assert len(found) == 2 and "2" in found
    assert "computed from other parameters" in found.skipped["0"]


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (nn.CrossEntropyLoss(reduction="sum"), "reduction='sum'"),
        (nn.CrossEntropyLoss(reduction="none"), "reduction='none'"),
        (lambda o, t: nn.functional.cross_entropy(o, t, reduction="sum"), "is a sum over samples"),
        (lambda o, t: nn.functional.cross_entropy(o, t, reduction="none"), "not a scalar"),
        (lambda o, t: o.sum() * float("inf"), "the loss on batch 0 is"),
        (lambda o, t: LOSS(o, t) + torch.rand(()), "the model is not deterministic"),
    ],
)
def test_unusable_losses_are_refused(loss, message):
    with pytest.raises(ValueError, match=message):
        measure(conv_net().eval(), loss, [images()], progress=False)


def test_an_unknown_reduction_is_noted():
    def contrastive(output, target):
        return nn.functional.cross_entropy(output @ output.mT, torch.arange(len(output)))

    found = measure(conv_net().eval(), contrastive, [images()], layers="8", progress=False)
    assert "neither mean nor sum" in found.meta["notes"][0]


def test_dropout_in_train_mode_is_refused():
    net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)).train()
    with pytest.raises(ValueError, match=r"model.eval\(\)"):
        run(net, [(torch.randn(8, 4), torch.randint(3, (8,)))])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: run(conv_net(), []), ValueError, "batches is empty"),
        (lambda: run(conv_net(), images()), TypeError, "looks like one pair"),
        (lambda: run(conv_net(), [images()], top_k=0), ValueError, "top_k must be at least 1"),
        (lambda: run(conv_net(), [images()], level=1.0), ValueError, "level must lie"),
        (lambda: run(conv_net(), [images()], layers="nope*"), KeyError, "no module"),
        (lambda: run(nn.BatchNorm2d(3), [images()]), ValueError, "no layer can be measured"),
        (lambda: run(conv_net(), [images(0)]), ValueError, "no samples"),
    ],
)
def test_unusable_arguments_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_landscape_survives_the_disk(landscape, tmp_path):
    landscape.save(tmp_path)
    again = Landscape.load(tmp_path)
    assert list(again) == list(landscape)
    assert again.skipped == landscape.skipped
    for name, row in landscape.items():
        for key, value in vars(row.arrays).items():
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(getattr(again[name].arrays, key), value)
        assert repr(again[name]) == repr(row)


def test_the_residual_diagnostic_is_there_only_where_there_is_a_skip():
    class Block(nn.Module):
        def __init__(self, skip):
            super().__init__()
            self.up, self.down, self.skip = nn.Linear(8, 16), nn.Linear(16, 8), skip

        def forward(self, x):
            f = self.down(torch.tanh(self.up(x)))
            return x + f if self.skip else f

    torch.manual_seed(0)
    blocks = nn.Sequential(Block(True), Block(False), Block(True))
    net = nn.Sequential(nn.Linear(6, 8), blocks, nn.Linear(8, 5))
    data = [(torch.randn(60, 6), torch.randint(5, (60,)))]
    found = measure(net, nn.CrossEntropyLoss(), data, top_k=4, progress=False)
    have = {name: row.residual is not None for name, row in found.items()}
    assert have["1.0.down"]
    assert have["1.2.down"]
    assert not any(have[name] for name in ("0", "2", "1.1.up", "1.1.down"))
    assert found["1.0.down"].residual.block == "1.0"
