"""The demo: its data, its network, and a quick run from end to end."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from spectral_ext.landscape import Landscape

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from examples.demo import OPTIMIZERS, main, train  # noqa: E402
from examples.small_resnet import DATA, SmallResNet, load_images, task  # noqa: E402


def test_data_is_small_balanced_and_licensed():
    images = load_images()
    assert DATA.stat().st_size < 3 << 20
    assert (DATA.parent / "LICENSE").read_text(encoding="utf-8").count("MIT") >= 1
    assert images.train.shape == (6000, 1, 28, 28)
    assert images.train_labels.bincount().tolist() == [600] * 10
    assert images.test_labels.bincount().tolist() == [100] * 10
    assert abs(images.train.mean()) < 0.01
    assert abs(images.train.std() - 1) < 0.01


def test_first_images_hold_all_classes():
    assert len(load_images(train=400).train_labels.unique()) == 10


def test_network_is_the_one_the_issue_asks_for():
    modules = list(SmallResNet().modules())
    assert sum(isinstance(module, nn.Conv2d) for module in modules) >= 8
    assert any(isinstance(module, nn.BatchNorm2d) for module in modules)


def test_training_learns_with_each_optimizer():
    images = load_images(train=600, test=200)
    for name in OPTIMIZERS:
        _, curve, seconds, tracker = train(name, 0, 2, images, lambda: None)
        assert curve[-1] > 30
        assert seconds > 0
        assert tracker is None


def test_same_seed_same_run():
    images = load_images(train=200, test=100)
    models = [train("Spectral Newton", 3, 1, images, lambda: None)[0] for _ in range(2)]
    for a, b in zip(*(model.state_dict().values() for model in models)):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_quick_demo_leaves_page_figures_and_numbers(tmp_path, capsys):
    assert main(["--quick", "--out", str(tmp_path / "demo")]) == 0
    out = tmp_path / "demo"
    found = Landscape.load(out)
    assert len(found) == 10
    assert found["stage3.conv2"].alpha.ok
    assert found.meta["samples"] == 64
    for name in ("power_law", "alpha_by_depth", "transfer_triangle", "phase_transition", "training"):
        assert (out / "figures" / f"{name}.png").stat().st_size > 5000
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "Spectral Newton beside AdamW" in page
    assert "2 landscapes of the same data" in page
    assert "Open" in capsys.readouterr().out


def test_help_and_bad_numbers(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "--quick" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--seeds", "0"])


def test_task_is_what_the_command_line_takes():
    model, loss_fn, batches = task()
    inputs, target = batches[0]
    assert loss_fn(model(inputs), target).isfinite()
