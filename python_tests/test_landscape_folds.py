"""``measure(folds=)``: each layer cross-fitted over groups of samples."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from spectral_ext import Landscape, directional_curvature, measure
from spectral_ext.landscape.columns import BY_KEY, summary, terminal_columns
from spectral_ext.measurement.batches import as_batches
from spectral_ext.report.headline import sentences
from spectral_ext.signal.groups import make_groups

LOSS = nn.functional.cross_entropy


def net(norm=False):
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6) if norm else nn.Identity(), nn.GELU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(6 * 16, 8), nn.GELU(), nn.Linear(8, 4)).double()


def data(samples=96, batches=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 2, 6, 6, dtype=torch.float64, generator=generator)
    y = (2 * x[:, 0].mean((1, 2)) + x[:, 1, 0, 0] > 0).long() + 2 * (x[:, 1].mean((1, 2)) > 0).long()
    return list(zip(x.chunk(batches), y.chunk(batches), strict=True))


def measured(folds, model=None, batches=None, **options):
    model = net().eval() if model is None else model
    return measure(model, LOSS, batches or data(), top_k=5, folds=folds, progress=False, **options)


@pytest.fixture(scope="module")
def landscape():
    return measured(4)


def test_held_out_values_are_those_of_directions_from_the_other_groups(landscape):
    model, batches = net().eval(), data()
    for name in ("0", "4"):
        weight = model.get_submodule(name).weight
        gradients = [torch.autograd.grad(LOSS(model(x), y), weight)[0].flatten(1) for x, y in batches]
        for j, batch in enumerate(batches):
            rest = sum(g for i, g in enumerate(gradients) if i != j) / 3
            U, _, Vh = torch.linalg.svd(rest, full_matrices=False)
            pair = U[:, :5], Vh[:5].T
            h = directional_curvature(model, LOSS, [batch], directions={name: pair})[name].h
            sigma = ((gradients[j] @ pair[1]) * pair[0]).sum(0)
            np.testing.assert_allclose(landscape[name].signal.sigma_folds[j], sigma.numpy(), rtol=1e-7, atol=1e-10)
            np.testing.assert_allclose(landscape[name].signal.h_folds[j], h.numpy(), rtol=1e-6, atol=1e-10)


def test_folds_leave_the_rest_of_the_row_as_it_was(landscape):
    plain = measured(None)
    assert all(row.signal is None for row in plain.values())
    for name, row in plain.items():
        np.testing.assert_allclose(landscape[name].arrays.h, row.arrays.h, rtol=1e-10)
        np.testing.assert_allclose(landscape[name].arrays.sigma, row.arrays.sigma, rtol=1e-10)
        assert landscape[name].alpha.value == pytest.approx(row.alpha.value, nan_ok=True)


def test_every_row_has_a_verdict_and_a_reason(landscape):
    for row in landscape.values():
        signal = row.signal
        assert signal.groups == 4 and signal.verdict in ("signal", "mixed", "noise") and signal.reason
        assert len(signal.sigma) == len(signal.h) == len(signal.share) == len(signal.h_se)
        assert signal.problem() == ""
    assert len(landscape["6"].signal.sigma) == 3  # a head of 4 classes has rank 3
    assert landscape.meta["seconds"]["folds"] > 0 and landscape.meta["folds"] == 4


def test_a_landscape_with_folds_is_saved_and_loaded(landscape, tmp_path):
    landscape.save(tmp_path)
    loaded = Landscape.load(tmp_path)
    for name, row in landscape.items():
        assert loaded[name].signal.verdict == row.signal.verdict
        np.testing.assert_array_equal(loaded[name].signal.sigma_folds[1], row.signal.sigma_folds[1])
        assert str(summary(loaded[name])) == str(summary(row))


def test_a_resumed_run_gives_the_same(landscape, tmp_path):
    first = measured(4, resume=tmp_path)
    for file in list((tmp_path / "rows").glob("*.json"))[:1]:
        file.unlink()
    again = measured(4, resume=tmp_path)
    for name, row in first.items():
        np.testing.assert_allclose(again[name].signal.z, row.signal.z, rtol=1e-6)
    with pytest.raises(ValueError):
        measured(3, resume=tmp_path)


def test_labels_make_the_groups(landscape):
    labelled = measured(["a", "b", "c", "d"])
    np.testing.assert_allclose(labelled["4"].signal.sigma, landscape["4"].signal.sigma, rtol=1e-9)
    without = measured(["a", "b", None, "c"])
    assert without["4"].signal.groups == 3
    assert any("1 of 4 batches have no label" in note for note in without["4"].signal.notes)
    assert without["4"].samples == 96


def test_two_groups_are_too_few_and_the_row_says_so():
    row = measured(2)["4"]
    assert row.signal.verdict == "too few groups" and "at least 3" in row.signal.reason
    assert not row.signal.alpha.ok


def test_groups_of_unequal_size_are_named():
    batches = data()
    x, y = batches[0]
    batches[0] = (x[:10], y[:10])
    row = measured([0, 1, 2, 3], batches=batches)["4"]
    assert any("10 to 24 samples" in note for note in row.signal.notes)


def test_train_mode_batch_norm_keeps_batches_whole():
    row = measured(8, net(norm=True).train())["4"]
    assert row.signal.groups == 4
    assert any("whole batches" in note and "batch norm" in note for note in row.signal.notes)
    assert any("4 batches make 4 groups, 8 were asked for" in note for note in row.signal.notes)
    assert measured(8, net(norm=True).eval())["4"].signal.groups == 8


def test_integer_groups_cut_batches_evenly():
    batches = as_batches(data(samples=100, batches=3))
    made = make_groups(batches, 7)
    assert made.weights == [14, 14, 14, 15, 14, 14, 15]
    assert sum(batch.samples for batch in made.data) == 100
    joined = torch.cat([batch.args[0] for batch in made.data])
    assert torch.equal(joined, torch.cat([batch.args[0] for batch in batches]))
    assert make_groups(batches, 200).notes == ["folds: 100 samples make 100 groups, 200 were asked for"]


def test_no_resolved_direction_leaves_alpha_empty_with_the_reason():
    """Targets that do not depend on the input, at a model whose output is constant: the population gradient is zero."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 6, bias=False)).double()
    nn.init.zeros_(model[0].weight)
    x, y = torch.randn(120, 12, dtype=torch.float64), torch.randn(120, 6, dtype=torch.float64)
    found = measure(model, lambda o, t: (o - t).square().sum(1).mean() / 2, [(x, y)], top_k=5, folds=6, progress=False)
    signal = found["0"].signal
    assert signal.verdict == "noise" and math.isnan(signal.alpha.value)
    assert "0 of 5 directions are resolved" in signal.alpha.reason
    assert BY_KEY["alpha"].cell(found["0"]).doubt
    assert "noise in 1 (0)" in sentences(found)[0]
    advice = found["0"].recommendation
    assert advice.source == "fallback" and advice.alpha == 2.0 and not advice.trust
    assert "no α on other samples" in advice.reasons[0] and "since no law holds on other samples" in sentences(found)[1]


def test_own_batch_alpha_is_named_as_such(landscape):
    plain = measured(None)
    assert "that of this batch" in sentences(plain)[0] and any("own-batch" in one for one in sentences(plain))
    for found in (plain, landscape):
        for row in found.values():
            if row.alpha.ok:
                assert "own batch" in BY_KEY["alpha"].cell(row).title
    assert "4 groups" in sentences(landscape)[0]
    assert "signal" not in [column.key for column in terminal_columns(plain.values())]
    assert {"signal", "alpha_held_out"} <= {column.key for column in terminal_columns(landscape.values())}
    assert "signal" in str(landscape) and "held out" in str(landscape)


@pytest.mark.parametrize(
    "folds, error, match",
    [
        (1, ValueError, "at least 2"),
        (0, ValueError, "at least 2"),
        (True, TypeError, "number of groups"),
        (2.5, TypeError, "number of groups"),
        ([0, 1], ValueError, "2 labels for 4 batches"),
    ],
)
def test_bad_folds_are_refused_before_work_is_spent(folds, error, match):
    with pytest.raises(error, match=match):
        measured(folds)


def test_the_interval_of_the_data_follows_from_each_groups_own_values(landscape):
    """Along the directions of all samples, group by group, against directional_curvature on each group."""
    model, batches = net().eval(), data()
    row = landscape["4"]
    own = directional_curvature(model, LOSS, batches, layers=["4"], top_k=5)["4"]
    pair = own.U, own.V
    each = [directional_curvature(model, LOSS, [batch], directions={"4": pair})["4"] for batch in batches]
    sigma, h = (np.stack([getattr(one, what).numpy() for one in each]) for what in ("sigma", "h"))
    np.testing.assert_allclose(row.data_intervals.sigma_se, sigma.std(0, ddof=1) / 2, rtol=1e-6)
    np.testing.assert_allclose(row.data_intervals.h_se, h.std(0, ddof=1) / 2, rtol=1e-6)
    np.testing.assert_allclose(np.mean(row.signal.own_folds, axis=0), row.arrays.sigma, rtol=1e-8)
    low, high = row.data_intervals.gamma
    assert low < row.gamma.value < high
    assert measured(2)["4"].data_intervals is None


def test_a_memory_budget_that_cuts_groups_changes_no_interval(landscape):
    from spectral_ext.landscape.held_out import own_intervals

    signal = landscape["4"].signal
    rng = np.random.default_rng(0)
    h = torch.as_tensor(rng.random((4, len(signal.own_folds[0]))))
    whole = own_intervals(signal, list(h), [24.0] * 4, [24] * 4, 0.95)
    halves = [part for one in h for part in (1.5 * one, 0.5 * one)]
    cut = own_intervals(signal, halves, [12.0] * 8, [24] * 4, 0.95)
    rest = own_intervals(signal, [*h, 7 * h[0]], [24.0] * 4 + [9.0], [24] * 4, 0.95)
    for other in (cut, rest):
        np.testing.assert_allclose(other.h_se, whole.h_se)
        np.testing.assert_allclose(other.alpha, whole.alpha)


def test_every_exponent_has_an_interval_of_the_data_around_its_value(landscape):
    """The eigenvalues of the factors of all samples are the means of the groups' moments along their eigenvectors."""
    for name in ("0", "4"):
        row = landscape[name]
        for exponent in ("alpha", "beta", "phi", "gamma", "s"):
            low, high = getattr(row.data_intervals, exponent)
            assert low < high
            assert (low + high) / 2 == pytest.approx(getattr(row, exponent).value, rel=1e-5, abs=1e-7), exponent
            assert len(row.data_intervals.replicates[exponent]) == 4
            assert summary(row)[f"{exponent}_data_low"] == pytest.approx(low)


def test_beta_without_a_group_follows_the_factors_without_it(landscape):
    """To first order: the eigenvectors of all samples, against the eigenvalues of the other groups' factors."""
    from spectral_ext.capture import capture_factors
    from spectral_ext.layers import find_layers

    model, batches = net().eval(), as_batches(data())
    layers, _ = find_layers(model, ["4"])
    row = landscape["4"]
    for j, replicate in enumerate(row.data_intervals.replicates["beta"]):
        rest = capture_factors(model, LOSS, [b for i, b in enumerate(batches) if i != j], layers).layers["4"]
        eigenvalues = [torch.linalg.eigvalsh(C.dense().double()).flip(0)[:5].numpy() for C in (rest.C_delta, rest.C_A)]
        sigma = np.mean([own for i, own in enumerate(row.signal.own_folds) if i != j], axis=0)
        keep = row.arrays.h > 0
        exact = np.polyfit(np.log(sigma[keep]), np.log(eigenvalues[0] * eigenvalues[1])[keep], 1)[0]
        assert replicate == pytest.approx(exact, abs=0.15)


def test_the_noise_exponent_is_that_of_single_samples():
    model, batches = net().eval(), data()
    row = measured(None, model, batches)["4"]
    own = directional_curvature(model, LOSS, batches, layers=["4"], top_k=5)["4"]
    along = []
    for x, y in batches:
        for one in range(len(x)):
            (g,) = torch.autograd.grad(LOSS(model(x[one : one + 1]), y[one : one + 1]), model[4].weight)
            along.append(((g @ own.V) * own.U).sum(0))
    variance = torch.stack(along).var(0, correction=0).numpy()
    keep = row.arrays.h > 0
    gamma = np.polyfit(np.log(row.arrays.h[keep]), np.log(variance[keep]), 1)[0]
    assert row.noise_exponent.value == pytest.approx(gamma, rel=1e-6)
    assert row.noise_alpha == pytest.approx(2 / gamma, rel=1e-6)
    assert BY_KEY["noise_alpha"].cell(row).text == f"{2 / gamma:.2f}".replace("-", "−")


def test_two_landscapes_on_the_same_groups_are_compared_with_their_covariance(landscape):
    from spectral_ext.report.compare import compare

    other = net().eval()
    with torch.no_grad():
        other[4].weight.mul_(1.05)
    after = measured(4, other)
    pairs = {pair.name: pair for pair in compare(landscape, after)}
    pair = pairs["4"]
    assert pair.kind == "data, paired" and landscape.meta["groups"] == after.meta["groups"]
    difference = after["4"].data_intervals.replicates["alpha"] - landscape["4"].data_intervals.replicates["alpha"]
    spread = np.sqrt(3 / 4 * np.square(difference - difference.mean()).sum())
    assert pair.half_width == pytest.approx(3.182446 * spread, rel=1e-5)  # Student's t with 3 degrees of freedom
    alone = [row.data_intervals.alpha for row in (landscape["4"], after["4"])]
    halves = [(high - low) / 2 for low, high in alone]
    assert pair.half_width < 0.5 * math.hypot(*halves)  # nearly the same model: most of the error is common
    elsewhere = measured(4, other, data(seed=7))
    (independent,) = (pair for pair in compare(landscape, elsewhere) if pair.name == "4")
    assert independent.kind == "data, independent"
    (plain,) = (pair for pair in compare(measured(None), elsewhere) if pair.name == "4")
    assert plain.kind == "fit"


def test_the_held_out_change_is_paired(landscape):
    from spectral_ext.report.compare import compare

    (pair,) = (pair for pair in compare(landscape, landscape) if pair.name == "0")
    change, half = pair.held_out
    if landscape["0"].signal.alpha.ok:
        fit = landscape["0"].signal.alpha.fit_interval
        assert change == 0 and half == pytest.approx(math.sqrt(2) * (fit[1] - fit[0]) / 2)
    else:
        assert math.isnan(change)


def test_nonpositive_h_is_named_with_the_alpha_that_keeps_it():
    from spectral_ext.landscape.derive import take_signal
    from spectral_ext.landscape.synthetic import synthetic_row
    from spectral_ext.signal import Signal, own_batch_intervals

    rng = np.random.default_rng(0)
    sigma = np.arange(1, 21) ** -0.8
    h = sigma**2 + 0.05 * rng.standard_normal((8, 20))
    folds = sigma * (1 + 0.02 * rng.standard_normal((8, 20)))
    row = synthetic_row("x", negative=int((h.mean(0) <= 0).sum()))
    assert row.num_nonpositive > 0
    assert any("α comes out too small" in note for note in row.notes)
    intervals = own_batch_intervals(folds, h)
    take_signal(row, Signal(8, own_folds=list(folds)), intervals)
    assert abs(intervals.alpha_all.value - 2) < 0.25
    assert any(f"keeps the h_k ≤ 0 is {intervals.alpha_all.value:.2f}" in note for note in row.notes)


def test_tables_have_the_null_of_the_transfer_check_and_the_parts_of_alpha(landscape):
    row = landscape["4"]
    values = summary(row)
    assert 0 < values["transfer_p_permuted"] <= 1 and 0 < values["transfer_p_sorted"] <= 1
    assert values["s_unrelated"] > 0
    assert "gauss_newton" in row.mechanism_slopes or not row.mechanism_slopes
    for name, one in row.mechanism_slopes.items():
        if math.isfinite(one.shift):
            assert name in values["mechanism_slopes"]
