"""The house of the experiments: journal, data, networks, training, verdicts, and the rule of the sweep.

One file, although long: the tests share one tiny run of the experiments.
"""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from experiments import data, networks, sweep, sweep_report
from experiments.claims import (
    FAILED,
    ONE_BATCH,
    REPRODUCED,
    UNTESTABLE,
    Exponent,
    Interval,
    exponent_claim,
    number_claim,
    order_claim,
    over_seeds,
)
from experiments.journal import Journal, JournalError, StaleResultError, journal_here
from experiments.optimizers import ROWS, matrices_and_rest, random_spectrum
from experiments.paper import EXPERIMENTS
from experiments.report import write_report
from experiments.studies import SCALES, Laboratory, MissingResultError
from experiments.training import schedule, train

HERE = {"processor": "a", "SIMD in use": "b", "threads": "1", "GPU": "none", "torch": "2", "spectral-ext": "0"}


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """No data but what the project carries."""
    monkeypatch.delenv(data.VARIABLE, raising=False)
    monkeypatch.setattr(data, "data_folder", lambda folder=None: None)
    monkeypatch.setattr(data, "CACHE", tmp_path)


def add(journal, key="k", seed=0, **settings):
    return journal.add(key, settings, {"x": 1.23456789}, seed=seed, data={"name": "d"}, substitutions=("s",))


class TestJournal:
    def test_a_finished_run_is_read_again_and_rounded(self, tmp_path):
        add(Journal(tmp_path / "j", HERE), lr=0.1)
        again = Journal(tmp_path / "j", HERE).get("k", {"lr": 0.1})
        assert again["result"] == {"x": 1.23457} and again["substitutions"] == ["s"] and again["seed"] == 0
        assert Journal(tmp_path / "j", HERE).get("other", {}) is None

    def test_other_settings_are_refused_with_the_remedy(self, tmp_path):
        journal = Journal(tmp_path / "j", HERE)
        add(journal, lr=0.1)
        with pytest.raises(StaleResultError, match=r"lr: 0\.1 → 0\.2.*forget 'k'"):
            journal.get("k", {"lr": 0.2})

    @pytest.mark.parametrize("what", ["spectral-ext", "processor", "threads"])
    def test_another_version_or_machine_is_refused(self, tmp_path, what):
        add(Journal(tmp_path / "j", HERE), lr=0.1)
        with pytest.raises(StaleResultError, match=what):
            Journal(tmp_path / "j", HERE | {what: "other"}).get("k", {"lr": 0.1})

    def test_runs_of_another_machine_are_left_alone(self, tmp_path, monkeypatch):
        path = tmp_path / "journal.jsonl"
        monkeypatch.setattr("experiments.journal.environment", lambda: dict(HERE))
        assert journal_here(path) == path
        add(Journal(path))
        assert journal_here(path) == path and journal_here(path, tmp_path / "named") == tmp_path / "named"
        monkeypatch.setattr("experiments.journal.environment", lambda: HERE | {"processor": "other"})
        beside = journal_here(path)
        assert beside != path and beside.parent == tmp_path and not beside.exists()

    def test_an_interrupted_last_line_costs_that_run_alone(self, tmp_path):
        journal = Journal(tmp_path / "j", HERE)
        add(journal, "first")
        add(journal, "second")
        text = (tmp_path / "j").read_text()
        (tmp_path / "j").write_text(text[:-20])
        with pytest.warns(UserWarning, match="cut off"):
            again = Journal(tmp_path / "j", HERE)
        assert set(again.runs) == {"first"}
        add(again, "third")
        assert set(Journal(tmp_path / "j", HERE).runs) == {"first", "third"}

    def test_a_damaged_line_is_named(self, tmp_path):
        journal = Journal(tmp_path / "j", HERE)
        add(journal, "first")
        add(journal, "second")
        lines = (tmp_path / "j").read_text().splitlines()
        (tmp_path / "j").write_text("\n".join([*lines[:2], "{broken", lines[-1]]) + "\n")
        with pytest.raises(JournalError, match="line 3"):
            Journal(tmp_path / "j", HERE)

    def test_two_writers_lose_nothing(self, tmp_path):
        one, two = (Journal(tmp_path / "j", HERE) for _ in range(2))
        for i in range(3):
            add(one, f"one{i}")
            add(two, f"two{i}")
        assert len(Journal(tmp_path / "j", HERE).runs) == 6

    def test_forget_takes_out_what_fits(self, tmp_path):
        journal = Journal(tmp_path / "j", HERE)
        for key in ("a/1", "a/2", "b/1"):
            add(journal, key)
        assert journal.forget("a/*") == ["a/1", "a/2"]
        assert set(Journal(tmp_path / "j", HERE).runs) == {"b/1"}
        assert Journal(tmp_path / "j", HERE).get("b/1", {})["result"]["x"] == 1.23457


class TestData:
    def test_a_clone_without_data_takes_what_the_project_carries_and_says_so(self, nowhere):
        found = data.images("cifar10", 64, 32, 32)
        assert found.train.x.shape == (64, 3, 32, 32) and found.classes == 10
        assert any("Fashion-MNIST" in text for text in found.substitutions)
        text = data.text(16, 32, 8, 8)
        assert text.train.x.shape == (32, 16) and "documentation" in text.substitutions[0]
        assert torch.equal(text.train.x[:, 1:], text.train.y[:, :-1])

    def test_splits_share_no_image_and_are_normalised(self, nowhere):
        found = data.images("cifar10", 200, 100, 100, side=16)
        seen = [{x.numpy().tobytes() for x in part.x} for part in (found.train, found.validation, found.test)]
        assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
        assert found.train.x.mean((0, 2, 3)).abs().max() < 1e-4
        assert "16×16" in " ".join(found.substitutions)
        assert found.describe() == data.images("cifar10", 200, 100, 100, side=16).describe()

    def test_more_images_than_there_are_is_said(self, nowhere):
        found = data.images("tiny-imagenet", 6000, 3000, 3000)
        assert any("instead of 12000" in text for text in found.substitutions)

    def test_a_damaged_archive_is_named(self, tmp_path, monkeypatch):
        monkeypatch.setattr(data, "CACHE", tmp_path / "cache")
        (tmp_path / "cifar10_jpeg.npz.xz").write_bytes(b"no archive")
        with pytest.raises(data.DataError, match=r"cifar10_jpeg.npz.xz is damaged.*fetch it again"):
            data.images("cifar10", 8, 8, 8, folder=tmp_path)

    def test_a_folder_that_does_not_exist_is_named(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="correct --data"):
            data.images("cifar10", 8, 8, 8, folder=tmp_path / "none")

    def test_the_real_archive(self, shared, tmp_path):
        found = data.images("cifar10", 64, 32, 32, folder=shared / "data")
        assert found.source == "cifar10_jpeg.npz.xz" and "lossy" in found.substitutions[0]


class TestNetworks:
    @pytest.mark.parametrize("make, layers", [
        (lambda: networks.resnet8(4), 7), (lambda: networks.resnet20(), 19), (lambda: networks.resnet18(4), 20),
        (lambda: networks.resnet50(4), 53), (lambda: networks.VGG(11, 4), 8), (lambda: networks.VGG(16, 4), 13),
    ])  # fmt: skip
    def test_convolutions_and_output(self, make, layers):
        model = make()
        assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == layers
        assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)

    def test_transformers(self):
        tokens = torch.randint(9, (2, 8))
        assert networks.GPT(9, 16, 8, 1, 2)(tokens).shape == (2, 8, 9)
        assert networks.GPT(9, 16, 8, 1, 2, classes=2)(tokens).shape == (2, 2)
        bare = networks.ViT(16, 8, 16, 1, 2, 5, norm=False)
        assert bare(torch.randn(2, 3, 16, 16)).shape == (2, 5)
        assert not any(isinstance(module, nn.LayerNorm) for module in bare.modules())

    def test_gpt_does_not_look_ahead(self):
        model, tokens = networks.GPT(9, 16, 8, 2, 2), torch.randint(9, (1, 8))
        other = tokens.clone()
        other[0, -1] = (other[0, -1] + 1) % 9
        torch.testing.assert_close(model(tokens)[:, :-1], model(other)[:, :-1])


class TestTraining:
    def test_the_same_seed_gives_the_same_run(self, nowhere):
        found = data.images("cifar10", 64, 32, 32, side=16)
        runs = []
        for _ in range(2):
            torch.manual_seed(0)
            model = networks.resnet8(4)
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            runs.append(train(model, [optimizer], found, steps=6, batch=16, seed=1, looks=2, flip=True))
        assert runs[0] == runs[1] and runs[0]["at"] == [3, 6]

    def test_a_loss_that_is_not_finite_ends_the_run(self, nowhere):
        found = data.images("cifar10", 64, 32, 32, side=16)
        model = networks.MLP(768, 8, 1)
        optimizer = torch.optim.SGD(model.parameters(), 1e30)
        assert "not finite" in train(model, [optimizer], found, steps=6, batch=16, seed=1)["stopped"]

    def test_schedule(self):
        factors = [schedule(step, 100) for step in range(100)]
        assert max(factors) == 1 and factors[0] == 0.2 and 0 < factors[-1] < 0.02

    def test_a_batch_larger_than_the_data_is_refused(self, nowhere):
        found = data.images("cifar10", 64, 32, 32, side=16)
        with pytest.raises(ValueError, match="larger than the 64 training samples"):
            train(networks.MLP(768, 8, 1), [], found, steps=1, batch=65, seed=0)


class TestVerdicts:
    @staticmethod
    def found(own, held, resolved):
        def interval(value):
            return Interval(value, value - 0.1, value + 0.1, 3)

        return Exponent(interval(own), 0.1, 0.2, interval(held), 0.3, 9, 9 if resolved else 0, resolved)

    @pytest.mark.parametrize("own, held, resolved, verdict", [
        (2.0, 2.0, 0.9, REPRODUCED), (2.0, 1.2, 0.9, ONE_BATCH), (2.0, 2.0, 0.2, ONE_BATCH),
        (2.0, math.nan, 0.0, ONE_BATCH), (1.5, 2.0, 0.9, FAILED),
    ])  # fmt: skip
    def test_rule_of_exponents(self, own, held, resolved, verdict):
        claim = exponent_claim("T", "c", "2", 1.85, 2.15, self.found(own, held, resolved))
        assert claim.verdict == verdict and "1.85" in claim.overturn

    def test_rule_of_numbers(self):
        inside = over_seeds([0.4, 0.5, 0.6])
        assert number_claim("T", "c", "p", 0.3, 1, inside).verdict == REPRODUCED
        assert number_claim("T", "c", "p", 0.3, 1, inside, resolved=0.1).verdict == ONE_BATCH
        assert number_claim("T", "c", "p", 2, 3, inside).verdict == FAILED

    def test_a_wide_interval_is_no_reproduction(self):
        wide = over_seeds([0.0, 0.5, 1.0])
        assert wide.undecided(0.9, 2) and not wide.inside(0.9, 2)
        claim = number_claim("T", "c", "p", 0.9, 2, wide)
        assert claim.verdict == UNTESTABLE and "More seeds" in claim.overturn
        assert number_claim("T", "c", "p", 0.9, 2, over_seeds([0.5])).verdict == FAILED

    def test_what_has_no_number_is_not_judged(self):
        nothing = self.found(math.nan, math.nan, 0.0)
        assert exponent_claim("T", "c", "2", 1.85, 2.15, nothing).verdict == UNTESTABLE
        assert number_claim("T", "c", "p", 0, 1, over_seeds([math.nan])).verdict == UNTESTABLE

    def test_a_difference_counts_only_with_its_whole_interval(self):
        assert order_claim("T", "c", "p", over_seeds([0.9, 1.0, 1.1])).verdict == REPRODUCED
        assert order_claim("T", "c", "p", over_seeds([-1.0, 1.0, 2.0])).verdict == FAILED
        assert order_claim("T", "c", "p", over_seeds([1.0])).verdict == UNTESTABLE

    def test_interval_over_seeds(self):
        found = over_seeds([1.0, 2.0, 3.0, math.nan, None])
        assert found.n == 3 and found.value == 2
        assert found.high - 2 == pytest.approx(4.302653 / 3**0.5, rel=1e-6)


class TestSweep:
    @pytest.fixture
    def runs(self, tmp_path, monkeypatch):
        calls = []

        def fake(self, name, lr, momentum, seed, batch=None):
            calls.append((lr, momentum, seed))
            loss = abs(math.log2(lr / self.best)) + abs(momentum - 0.98)
            return {"validation": [loss], "test": {"loss": loss, "accuracy": 1.0}}

        monkeypatch.setattr(sweep.Sweep, "run", fake)
        return calls, sweep.Sweep("tiny", "conv", Journal(tmp_path / "j", HERE))

    @pytest.mark.parametrize("steps", [-3, -1, 0, 2, 5])
    def test_every_row_gets_seven_runs_wherever_its_optimum_lies(self, runs, steps):
        calls, one = runs
        one.best = ROWS["AdamW"].lr * 2.0**steps
        lr, momentum, inside = one.search("AdamW")
        assert len(set(calls)) == 7 and lr == one.best and momentum == 0.98 and inside == (-3 < steps < 5)

    def test_seeds_of_the_search_are_others(self, runs):
        calls, one = runs
        one.best = ROWS["SGD"].lr
        one.finish("SGD")
        assert len(calls) == 7 + len(sweep.SEEDS) and sweep.TUNING_SEED not in sweep.SEEDS

    def test_no_exponent_keeps_its_layer(self):
        alphas = {f"layer{i}": float(i) for i in range(5)}
        moved = sweep.permuted(alphas)
        assert sorted(moved.values()) == sorted(alphas.values()) and all(moved[k] != alphas[k] for k in alphas)

    def test_a_real_piece_goes_on_where_it_stopped(self, nowhere, tmp_path):
        arguments = ["run", "--scale", "tiny", "--tasks", "conv", "--rows", "SGD", "--journal", str(tmp_path / "j")]
        assert sweep.main([*arguments, "--seconds", "0"]) == 3
        assert sweep.main(arguments) == 0
        before = (tmp_path / "j").read_text()
        assert sweep.main(arguments) == 0 and (tmp_path / "j").read_text() == before
        assert sum("key" in json.loads(line) for line in before.splitlines()) == 12
        assert sweep.main(["status", *arguments[1:]]) == 0

    def test_rows_of_measured_exponents(self, nowhere, tmp_path):
        one = sweep.Sweep("tiny", "conv", Journal(tmp_path / "j", HERE))
        for row in ("Spectral Newton, α permuted", "Spectral Newton, α tracked"):
            assert "test" in one.run(row, 0.03, 0.95, 0)
        assert set(one.exponents()) == {"conv1", *(f"layer{i}.0.conv{j}" for i in (1, 2, 3) for j in (1, 2))}

    def test_random_spectrum_keeps_the_singular_vectors(self):
        D = torch.randn(6, 9)
        update = random_spectrum(D, torch.Generator().manual_seed(0))
        U, _, Vh = torch.linalg.svd(D, full_matrices=False)
        middle = U.mT @ update @ Vh.mT
        assert (middle - middle.diag().diag()).abs().max() < 1e-4
        assert torch.linalg.matrix_norm(update, 2) == pytest.approx(0.2 * 3, rel=1e-4)
        torch.testing.assert_close(random_spectrum(D.mT, torch.Generator().manual_seed(0)), update.mT)

    def test_the_split_is_the_same_for_all(self):
        model = networks.resnet8(4)
        matrices, rest = matrices_and_rest(model)
        assert len(matrices) == 7 and len(matrices) + len(rest) == len(list(model.parameters()))

    def test_holm_against_its_definition(self):
        p = [0.001, 0.02, 0.04, 0.03]
        assert sweep_report.holm(p) == pytest.approx([0.004, 0.06, 0.06, 0.06])


class TestLaboratory:
    def test_a_study_is_kept_and_read_again(self, nowhere, tmp_path):
        journal = Journal(tmp_path / "j", HERE)
        found = Laboratory("tiny", journal, seeds=(0,)).records("mlp")
        again = Laboratory("tiny", Journal(tmp_path / "j", HERE), seeds=(0,), read_only=True).records("mlp")
        assert found == again and len(found[0]["layers"]) == 4
        assert all(len(layer["alpha"]) == 4 for layer in found[0]["layers"].values())

    def test_a_rerun_has_the_same_digits(self, nowhere, tmp_path):
        first, second = (Laboratory("tiny", Journal(tmp_path / n, HERE), seeds=(1,)).records("mlp") for n in "ab")
        assert first == second

    def test_what_is_missing_is_an_error_when_only_reading(self, tmp_path):
        lab = Laboratory("tiny", Journal(tmp_path / "j", HERE), read_only=True)
        with pytest.raises(MissingResultError, match="experiments run"):
            lab.records("mlp")
        with pytest.raises(KeyError, match="no stage"):
            lab.records("mlp", "middle")

    def test_the_report_says_how_many_seeds_have_run(self, nowhere, tmp_path, monkeypatch):
        monkeypatch.setattr("experiments.report.EXPERIMENTS", ("appendix_i", "table_2"))
        widths = Laboratory("tiny", Journal(tmp_path / "j", HERE), seeds=(0, 1))
        for width in (64, 128, 256, 512):
            widths.records(f"width_{width}")
        lab = Laboratory("tiny", Journal(tmp_path / "j", HERE), Journal(tmp_path / "none", HERE), seeds=(0, 1, 2))
        text = write_report(lab, tmp_path / "out").read_text()
        assert "(preliminary: 2 of 3 seeds)" in text and "Not run yet: table_2" in text
        assert "Fashion-MNIST, 7,000 images, stands in for cifar10" in text and "The sweep has not run" in text

    def test_all_scales_have_the_same_studies(self):
        assert set(SCALES["small"]()) == set(SCALES["full"]()) == set(SCALES["tiny"]())

    def test_one_file_per_experiment(self):
        folder = data.ROOT / "experiments" / "paper"
        assert {path.stem for path in folder.glob("*.py")} == {"__init__", *EXPERIMENTS}


def test_rank_laws_of_a_gradient_alone(nowhere):
    from experiments.studies import rank_laws

    torch.manual_seed(0)
    model, found = networks.MLP(768, 16, 1), data.images("cifar10", 32, 8, 8, side=16)
    laws = rank_laws(model, [(found.train.x, found.train.y)], 12)
    assert set(laws) == {"1", "3"} and laws["1"]["rank_model"] in ("power_law", "exponential", "lognormal")
    assert all(p.grad is None or not np.any(p.grad.numpy()) for p in model.parameters())
