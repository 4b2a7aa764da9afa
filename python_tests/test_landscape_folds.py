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


def test_own_batch_alpha_is_named_as_such(landscape):
    plain = measured(None)
    assert "that of this batch" in sentences(plain)[0] and "own-batch" in sentences(plain)[1]
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
