"""The tracker in a plain loop, under foreign trainers, and through failures.

One file, although long: every test follows the same small training.
"""

import functools
import sys
import types

import pytest
import torch
from torch import nn

from spectral_ext.landscape import Landscape
from spectral_ext.optim import SpectralNewton
from spectral_ext.tracker import LandscapeTracker, Track

LOSS = nn.CrossEntropyLoss()


def setting():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Dropout(0.5), nn.Linear(12, 8))
    x, y = torch.randn(24, 6), torch.randint(8, (24,))
    return model, (x, y), torch.optim.SGD(model.parameters(), lr=0.1)


def train(tracker, model, batch, optimizer, epochs=2, steps=3):
    tracker.start()
    for _ in range(epochs):
        for _ in range(steps):
            model.train()
            optimizer.zero_grad()
            LOSS(model(batch[0]), batch[1]).backward()
            optimizer.step()
            tracker.step()
        tracker.end_epoch()


class Writer:
    def __init__(self):
        self.scalars = {}

    def add_scalar(self, name, value, step):
        self.scalars.setdefault(name, {})[step] = value


def test_plain_loop_by_epoch(tmp_path):
    model, batch, optimizer = setting()
    writer = Writer()
    tracker = LandscapeTracker(model, LOSS, [batch], folder=tmp_path, top_k=5, tensorboard=writer)
    train(tracker, model, batch, optimizer)
    assert model.training
    track = tracker.track
    assert track.steps == [0, 3, 6]
    assert track.epochs == [0, 1, 2]
    steps, values = track.series("alpha")["0"]
    assert steps == [0, 3, 6]
    assert len(set(values)) == 3
    assert [sum(counts.values()) for counts in track.winners()] == [2, 2, 2]
    assert writer.scalars["alpha/0"] == dict(zip(steps, values, strict=True))
    assert set(writer.scalars["rank model wins/lognormal"]) == {0, 3, 6}
    again = Track.load(tmp_path)
    assert again.series("gamma") == track.series("gamma")
    written = track.plot(tmp_path / "figures")
    assert {path.name for path in written.values()} == {"exponents_over_time.png", "phase_transition.png"}
    assert all(path.stat().st_size > 5000 for path in written.values())
    with pytest.raises(KeyError, match="no quantity 'beta_max'"):
        track.series("beta_max")


def test_training_is_the_same_with_and_without():
    results = []
    for tracked in (False, True):
        model, batch, optimizer = setting()
        tracker = LandscapeTracker(model, LOSS, [batch], every=1 if tracked else 100, unit="step", top_k=4)
        tracker.start = tracker.start if tracked else lambda: None
        train(tracker, model, batch, optimizer)
        results.append(torch.cat([p.flatten() for p in model.parameters()]))
        assert len(tracker.track) == (7 if tracked else 0)
    assert torch.equal(*results)


def test_every_second_step():
    model, batch, optimizer = setting()
    tracker = LandscapeTracker(model, LOSS, [batch], every=2, unit="step", top_k=4)
    train(tracker, model, batch, optimizer)
    assert tracker.track.steps == [0, 2, 4, 6]
    frame = pytest.importorskip("pandas") and tracker.track.to_frame()
    assert list(frame["step"]) == [0, 0, 2, 2, 4, 4, 6, 6]


def test_a_resumed_training_goes_on_with_its_track(tmp_path):
    model, batch, optimizer = setting()
    first = LandscapeTracker(model, LOSS, [batch], folder=tmp_path, top_k=4, tensorboard=False)
    train(first, model, batch, optimizer, epochs=1)
    second = LandscapeTracker(model, LOSS, [batch], folder=tmp_path, top_k=4, tensorboard=False)
    second.load_state_dict(first.state_dict())
    train(second, model, batch, optimizer, epochs=1)
    assert second.track.steps == [0, 3, 6]


def test_a_failed_measurement_does_not_stop_training():
    model, batch, _ = setting()
    bad = batch[0] * float("nan"), batch[1]
    tracker = LandscapeTracker(model, LOSS, [bad], top_k=4)
    with pytest.warns(RuntimeWarning, match="no landscape at step 0: the loss on batch 0 is nan"):
        assert tracker.start() is None
    strict = LandscapeTracker(model, LOSS, [bad], top_k=4, on_error="raise")
    with pytest.raises(ValueError, match="nan"):
        strict.start()
    dropping = LandscapeTracker(model, LOSS, [batch], mode="as is", on_error="raise")
    with pytest.raises(ValueError, match=r"model.eval\(\)"):
        dropping.start()


@pytest.mark.parametrize("options", [{"every": 0}, {"unit": "hour"}, {"mode": "train"}, {"on_error": "ignore"}])
def test_options_are_checked(options):
    model, batch, _ = setting()
    with pytest.raises(ValueError, match=next(iter(options))):
        LandscapeTracker(model, LOSS, [batch], **options)


def test_scalars_reach_a_run_of_weights_and_biases():
    class Run:
        def __init__(self):
            self.logged = []

        def log(self, values):
            self.logged.append(values)

    model, batch, _ = setting()
    run = Run()
    tracker = LandscapeTracker(model, LOSS, [batch], top_k=4, wandb=run)
    landscape = tracker.start()
    (values,) = run.logged
    name, row = next((name, row) for name, row in landscape.items() if row.alpha.ok)
    assert values["landscape/step"] == 0
    assert values[f"landscape/alpha/{name}"] == row.alpha.value
    with pytest.raises(TypeError, match="wandb must be a run with log"):
        LandscapeTracker(model, LOSS, [batch], wandb="my-project")


def test_tensorboard_writes_event_files(tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    model, batch, _ = setting()
    tracker = LandscapeTracker(model, LOSS, [batch], folder=tmp_path, top_k=4)
    assert isinstance(tracker.start(), Landscape)
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_lightning_callback(monkeypatch):
    package = types.ModuleType("lightning.pytorch")
    package.Callback = type("Callback", (), {})
    monkeypatch.setitem(sys.modules, "lightning", types.ModuleType("lightning"))
    monkeypatch.setitem(sys.modules, "lightning.pytorch", package)
    model, batch, _ = setting()
    tracker = LandscapeTracker(model, LOSS, [batch], top_k=4, every=2, unit="step")
    callback = tracker.lightning_callback()
    assert isinstance(callback, package.Callback)
    trainer = types.SimpleNamespace(global_step=0, current_epoch=0)
    callback.on_train_start(trainer, None)
    for index in range(8):  # an optimizer step every second batch
        trainer.global_step = (index + 1) // 2
        callback.on_train_batch_end(trainer, None, None, batch, index)
    callback.on_train_epoch_end(trainer, None)
    assert tracker.track.steps == [0, 2, 4]
    assert callback.state_dict() == {"steps": 4, "epochs": 1}


def test_lightning_missing_says_what_to_install(monkeypatch):
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    model, batch, _ = setting()
    with pytest.raises(ImportError, match="pip install lightning"):
        LandscapeTracker(model, LOSS, [batch]).lightning_callback()


def test_transformers_trainer(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(6, 12), nn.Linear(12, 8)

        def forward(self, x, labels):
            return {"loss": LOSS(self.head(torch.tanh(self.body(x))), labels)}

    torch.manual_seed(0)
    model, (_, (x, y), _) = Net(), setting()
    tracker = LandscapeTracker(model, lambda out, _: out["loss"], [{"x": x, "labels": y}], top_k=4, on_error="raise")
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=2, per_device_train_batch_size=8, report_to=[], use_cpu=True,
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    data = [{"x": x[i], "labels": y[i]} for i in range(24)]
    trainer = transformers.Trainer(model, arguments, train_dataset=data, callbacks=[tracker.transformers_callback()])
    trainer.train()
    assert tracker.track.steps == [0, 3, 6]


def test_a_killed_training_starts_again(tmp_path):
    model, batch, _ = setting()

    def tracker():
        return LandscapeTracker(model, LOSS, [batch], folder=tmp_path, unit="step", top_k=4, tensorboard=False)

    tracker().start()
    (tmp_path / "step_00000001").mkdir()  # killed before the file was written
    (tmp_path / "step_00000001" / ".0123.partial").write_text("{")
    (tmp_path / "step_old_backup").mkdir()
    with pytest.warns(RuntimeWarning, match=r"step_00000001 holds no landscape"):
        assert Track.load(tmp_path).steps == [0]
    (tmp_path / "step_00000002").mkdir()
    (tmp_path / "step_00000002" / "landscape.json").write_text('{"schema"')  # a disk that lost the end
    with pytest.warns(RuntimeWarning, match=r"step_00000002 is left out of the track: .*truncated"):
        again = tracker()
    again.load_state_dict({"steps": 1, "epochs": 0})
    again.step()
    assert again.track.steps == [0, 2]
    with pytest.warns(RuntimeWarning, match="step_00000001"):
        assert Track.load(tmp_path).steps == [0, 2]


def test_a_landscape_without_a_step_is_no_snapshot(tmp_path):
    from spectral_ext.landscape.synthetic import synthetic_landscape

    synthetic_landscape(1).save(tmp_path / "step_00000003")
    with pytest.raises(ValueError, match="does not say at which step"):
        Track.load(tmp_path)


def test_warn_covers_saving_and_logging(tmp_path, monkeypatch):
    model, batch, _ = setting()

    def full(self, folder):
        raise OSError(28, "No space left on device")

    class Broken:
        def add_scalar(self, *arguments):
            raise RuntimeError("the event file is gone")

    options = dict(folder=tmp_path, top_k=4, tensorboard=Broken())
    tracker = LandscapeTracker(model, LOSS, [batch], **options)
    monkeypatch.setattr(Landscape, "save", full)
    with pytest.warns(RuntimeWarning) as warned:
        assert tracker.start() is not None
    said = " ".join(str(one.message) for one in warned)
    assert "not saved at step 0: [Errno 28] No space left" in said
    assert "not logged at step 0: the event file is gone" in said
    assert tracker.track.steps == [0]
    strict = LandscapeTracker(model, LOSS, [batch], on_error="raise", **options)
    with pytest.raises(OSError, match="No space left"):
        strict.start()


def test_an_unknown_option_of_measure_is_refused_at_once():
    model, batch, _ = setting()
    with pytest.raises(TypeError, match="measure has no option 'topk'; it has top_k"):
        LandscapeTracker(model, LOSS, [batch], topk=4)


def test_with_a_process_group_the_first_rank_alone_writes(tmp_path, monkeypatch):
    from spectral_ext.tracker import tracker as module

    model, batch, _ = setting()
    asked = []
    real = module.measure

    def measure(*arguments, process_group=None, **options):
        asked.append(process_group)
        return real(*arguments, **options)

    monkeypatch.setattr(module, "measure", functools.wraps(real)(measure))
    for rank, written in ((1, []), (0, ["step_00000000"])):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda group, rank=rank: rank)
        group = object()
        tracker = LandscapeTracker(
            model, LOSS, [batch], folder=tmp_path, top_k=4, tensorboard=False, process_group=group
        )
        assert tracker.start() is not None
        assert asked[-1] is group
        assert [path.name for path in tmp_path.iterdir()] == written


def following(tmp_path=None, seed=0, **options):
    """A model, its data, its SpectralNewton, and a tracker that the optimizer follows every two steps."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 8))
    batch = (torch.randn(64, 10), torch.randint(8, (64,)))
    optimizer = SpectralNewton(model, alpha=1.7)
    given = {"every": 2, "unit": "step", "folder": tmp_path, "top_k": 6, "on_error": "raise", "hysteresis": 0.1}
    tracker = LandscapeTracker(model, LOSS, [batch], **({"optimizer": optimizer} | given | options))
    return model, batch, optimizer, tracker


def steps_of(model, batch, optimizer, tracker, count):
    for _ in range(count):
        optimizer.zero_grad()
        LOSS(model(batch[0]), batch[1]).backward()
        optimizer.step()
        tracker.step()


def exponents(optimizer):
    return {line.name: line.alpha for line in optimizer.routing() if line.alpha is not None}


def test_the_optimizer_follows_its_landscape_along_its_momentum():
    model, batch, optimizer, tracker = following()
    tracker.start()
    assert exponents(optimizer) == {"0.weight": 1.7, "2.weight": 1.7}
    steps_of(model, batch, optimizer, tracker, 2)
    (_, landscape) = tracker.track
    assert landscape.meta["method"] == "sampled_gauss_newton"
    momentum = optimizer.state[model[0].weight]["momentum_buffer"]
    sigma = torch.linalg.svdvals(momentum)[: len(landscape["0"].arrays.sigma)]
    assert torch.allclose(torch.as_tensor(landscape["0"].arrays.sigma, dtype=sigma.dtype), sigma, rtol=1e-4)
    handed = landscape.meta["track"]["handed"]["alpha"]
    advised = {f"{name}.weight": landscape[name].recommendation.alpha for name in ("0", "2")}
    wanted = {name: alpha if 0 < alpha <= 6 and abs(alpha - 1.7) > 0.1 else 1.7 for name, alpha in advised.items()}
    assert exponents(optimizer) == pytest.approx(wanted)
    assert handed == {name: [1.7, pytest.approx(alpha)] for name, alpha in wanted.items() if alpha != 1.7}
    assert handed


def test_a_training_that_goes_on_has_the_exponents_of_one_that_was_not_stopped(tmp_path):
    whole = following(tmp_path / "whole")
    steps_of(*whole, 6)
    first = following(tmp_path / "parts")
    steps_of(*first, 3)
    saved = first[0].state_dict(), first[2].state_dict(), first[3].state_dict()
    second = following(tmp_path / "parts", seed=0)
    for part, state in zip((second[0], second[2], second[3]), saved):
        part.load_state_dict(state)
    assert exponents(second[2]) == exponents(first[2])
    second[3].start()
    steps_of(*second, 3)
    assert exponents(second[2]) == exponents(whole[2])
    assert all(torch.equal(a, b) for a, b in zip(second[0].parameters(), whole[0].parameters()))
    assert [one.meta["track"].get("handed") for one in Track.load(tmp_path / "whole")] == [
        one.meta["track"].get("handed") for one in Track.load(tmp_path / "parts") if one.meta["track"]["step"] % 2 == 0
    ]


def test_hysteresis_keeps_what_differs_little():
    model, batch, optimizer, tracker = following(hysteresis=5.0)
    steps_of(model, batch, optimizer, tracker, 2)
    assert set(exponents(optimizer).values()) == {1.7}
    assert tracker.track.landscapes[-1].meta["track"]["handed"] == {"alpha": {}}


def test_damping_and_transfer_are_handed_by_a_function():
    def adapt(landscape):
        return {"damping": dict.fromkeys(("0", "2"), 0.2), "transfer": "polar" if len(landscape) else None}

    model, batch, optimizer, tracker = following(adapt=adapt)
    steps_of(model, batch, optimizer, tracker, 2)
    assert tracker.track.landscapes[-1].meta["track"]["handed"] == {
        "damping": {"0.weight": [0.1, 0.2], "2.weight": [0.1, 0.2]},
        "transfer": True,
    }
    assert optimizer.param_groups[0]["damping"] == 0.2
    assert optimizer.param_groups[0]["transfer"]["name"] == "polar"
    steps_of(model, batch, optimizer, tracker, 2)
    assert tracker.track.landscapes[-1].meta["track"]["handed"] == {"damping": {}, "transfer": False}


def test_what_cannot_be_handed_is_refused_and_changes_nothing():
    model, batch, optimizer, tracker = following(adapt=lambda landscape: {"momentum": 0.5}, on_error="warn")
    with pytest.warns(RuntimeWarning, match="the optimizer keeps its settings at step 2: adapt returned momentum"):
        steps_of(model, batch, optimizer, tracker, 2)
    assert len(tracker.track) == 1
    for bad, message in (({"alpha": {"0": 9.0}}, "alpha"), ({"damping": {"0": -1.0}}, "damping")):
        model, batch, optimizer, tracker = following(adapt=lambda landscape, bad=bad: bad)
        with pytest.raises(ValueError, match=message):
            steps_of(model, batch, optimizer, tracker, 2)
        assert set(exponents(optimizer).values()) == {1.7}
    with pytest.raises(TypeError, match="SpectralNewton"):
        following(optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="adapt"):
        following(adapt="beta")
    with pytest.raises(ValueError, match="hysteresis"):
        following(hysteresis=-1.0)
    with pytest.raises(ValueError, match="momentum"):
        following(folds=4)
