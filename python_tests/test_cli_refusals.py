"""The command line refuses early: the folder of the report, the user's own code, and a library's model."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from spectral_ext.cli import main
from spectral_ext.landscape import Landscape

ROOT = Path(__file__).resolve().parents[1]


def last_error(capsys):
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_a_finished_report_is_not_replaced_unasked(here, capsys, monkeypatch):
    from spectral_ext.cli import commands

    short = ["landscape", "mine:task", "--out", "o", "--top-k", "4", "--layers", "0", "--no-figures"]
    assert main(short) == 0
    before = (here / "o" / "landscape.json").read_bytes()
    calls = []
    monkeypatch.setattr(commands, "measure", lambda *a, **k: calls.append(1))
    monkeypatch.setattr(commands, "load_task", lambda *a, **k: calls.append(1))
    for more in ([], ["--resume"], ["--resume", "--seed", "5"]):
        assert main([*short, *more]) == 2
        assert "already holds index.html, landscape.json, landscape.csv" in last_error(capsys)
    assert not calls
    assert (here / "o" / "landscape.json").read_bytes() == before
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert main([*short, "--seed", "5", "--overwrite"]) == 0
    assert Landscape.load(here / "o").meta["seed"] == 5


def test_out_is_judged_before_any_work(here, capsys, monkeypatch):
    from spectral_ext.cli import commands

    monkeypatch.setattr(commands, "load_task", lambda *a, **k: pytest.fail("work was begun"))
    (here / "file").write_text("x")
    (here / "part" / "unfinished").mkdir(parents=True)
    for out, message in (
        ("file", "is not a folder"),
        ("file/deeper", "is not a folder"),
        ("/proc/nowhere", "cannot be written to"),
        ("part", "pass --resume to go on with it, or --overwrite"),
    ):
        assert main(["landscape", "mine:task", "--out", out]) == 2
        assert message in last_error(capsys)
    assert main(["compare", "a", "b", "--out", "file"]) == 2
    assert "is not a folder" in last_error(capsys)
    assert not (here / "file").is_dir()
    assert list((here / "part").iterdir()) == [here / "part" / "unfinished"]


def test_an_error_in_the_users_code_names_type_and_place(here, capsys):
    (here / "bad.py").write_text(
        textwrap.dedent(
            """
            import torch
            from torch import nn
            def task():
                return {}["labels"]
            def loss(output, target):
                return {}["weights"]
            def late():
                return nn.Linear(3, 2), loss, [(torch.randn(4, 3), torch.randint(2, (4,)))]
            def broken():
                return nn.Linear(3, 2), lambda o, t: 1 / 0, [(torch.randn(4, 3), torch.randint(2, (4,)))]
            """
        )
    )
    (here / "needs.py").write_text("import absent_package\n")
    assert main(["landscape", "bad:task"]) == 2
    assert re.search(r"bad:task raised KeyError: 'labels' at .*bad\.py, line 5", last_error(capsys))
    assert main(["landscape", "bad.py:late"]) == 2
    assert re.search(r"KeyError: weights in .*bad\.py, line 7", last_error(capsys))
    assert main(["landscape", "bad:broken"]) == 1
    assert re.search(r"ZeroDivisionError: division by zero in .*bad\.py, line 11", last_error(capsys))
    assert main(["landscape", "needs:task"]) == 2
    assert "needs imports 'absent_package', which is not installed" in last_error(capsys)


def test_a_redirected_run_writes_no_bars(here):
    arguments = ["landscape", "mine:task", "--out", "o", "--top-k", "4", "--no-figures"]
    done = subprocess.run(
        [sys.executable, "-m", "spectral_ext.cli", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "%|" not in done.stderr
    assert "\r" not in done.stderr


def test_torchvision_models_get_their_own_size_and_fetch_nothing(here, monkeypatch, capsys):
    from types import SimpleNamespace

    import torch
    from torch import nn

    asked = {}

    class Net(nn.Module):
        def __init__(self, classes):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3, 2), nn.Linear(4 * 11 * 11, classes)

        def forward(self, x):
            return self.head(self.conv(x).flatten(1))

    def plain(*, weights=None, num_classes=10):
        return Net(num_classes)

    def segmenter(*, weights=None, weights_backbone="DEFAULT", num_classes=10):
        asked["weights_backbone"] = weights_backbone
        return nn.Sequential(nn.Conv2d(3, num_classes, 1))

    def fetcher(*, weights=None, num_classes=10):
        torch.hub.load_state_dict_from_url("https://example.org/x.pth", model_dir=str(here / "hub"))

    builders = {"plain": plain, "segmenter": segmenter, "fetcher": fetcher}
    weights = SimpleNamespace(DEFAULT=SimpleNamespace(transforms=lambda: SimpleNamespace(crop_size=[24])))
    models = SimpleNamespace(
        list_models=lambda: list(builders), get_model_builder=builders.__getitem__,
        get_model=lambda name, **options: builders[name](**options), get_model_weights=lambda name: weights,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(models=models))
    small = ["--samples", "4", "--batch-size", "4", "--top-k", "4", "--no-figures"]
    assert main(["landscape", "torchvision:plain", "--out", "o", *small]) == 0
    assert main(["landscape", "torchvision:plain", "--out", "p", *small, "--image-size", "32"]) == 2
    assert "does not run on a random image of 32 × 32 pixels; its own size is 24" in last_error(capsys)
    assert main(["landscape", "torchvision:segmenter", "--out", "p", *small]) == 2
    assert "a tensor of shape (1, 10, 24, 24) and not scores of 10 classes" in last_error(capsys)
    assert asked == {"weights_backbone": None}
    assert main(["landscape", "torchvision:fetcher", "--out", "p", *small]) == 2
    assert "would download weights from https://example.org/x.pth" in last_error(capsys)
