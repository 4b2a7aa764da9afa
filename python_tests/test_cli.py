"""The command line: every command, its help, and errors that are one line with a remedy."""

import html
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from spectral_ext.cli import main, parser
from spectral_ext.landscape import Landscape
from spectral_ext.landscape.synthetic import synthetic_landscape

ROOT = Path(__file__).resolve().parents[1]
ORACLE = ROOT.parent / "shared" / "oracle"
COMMANDS = ("landscape", "compare", "audit", "bench", "env", "completion")


def last_error(capsys):
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_shows_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        parser().parse_args([command, "--help"])
    assert stop.value.code == 0
    assert f"spectral-ext {command}" in capsys.readouterr().out.split("example")[1]


def test_help_needs_no_heavy_imports():
    code = "import sys\nfrom spectral_ext.cli import parser\nparser()\nprint('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("spec", ["mine:task", "mine.py:task"])
def test_landscape_of_a_users_own_model(here, capsys, spec):
    assert main(["landscape", spec, "--out", "out", "--top-k", "5", "--layers", "0", "--title", "Mine"]) == 0
    found = Landscape.load(here / "out")
    assert list(found) == ["0"]
    assert found["0"].num_directions == 5
    assert found.meta["specification"] == spec
    page = (here / "out" / "index.html").read_text(encoding="utf-8")
    assert "<title>Mine</title>" in page
    assert (here / "out" / "figures" / "power_law.png").exists()
    assert "At a glance" in capsys.readouterr().out


def test_json_is_all_that_is_printed(here, capsys):
    arguments = ["landscape", "mine:task", "--out", "j", "--top-k", "5", "--no-figures", "--format", "json"]
    assert main(arguments) == 0
    said = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    found = Landscape.load(here / "j")
    assert [layer["layer"] for layer in said["layers"]] == list(found)
    layer, row = said["layers"][0], next(iter(found.values()))
    assert layer["pr_gradient"] == row.pr_gradient
    assert layer["alpha"] is None and not row.alpha.ok  # NaN is no JSON
    assert said["page"] == "j/index.html"


def test_completion_scripts_name_the_commands(capsys, monkeypatch):
    pytest.importorskip("shtab")
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert "landscape" in script and "--top-k" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0


def test_completion_without_its_package_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "zsh"]) == 2
    assert "pip install shtab" in last_error(capsys)


def test_options_reach_the_measurement(here):
    assert (
        main(
            [
                "landscape",
                "mine:task",
                "--out",
                "o",
                "--dtype",
                "float64",
                "--mode",
                "train",
                "--resume",
                "--no-split",
                "--no-figures",
            ]
        )
        == 0
    )
    meta = Landscape.load(here / "o").meta
    assert (meta["dtype"], meta["mode"], meta["split"]) == ("float64", "train", False)
    assert not (here / "o" / "unfinished").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mine"], "is not a model: give module:function"),
        (["nowhere:task"], "cannot import 'nowhere'"),
        (["absent.py:task"], "there is no file absent.py"),
        (["mine:absent"], "mine has no 'absent'"),
        (["mine:value"], "not a function without arguments"),
        (["mine:wrong"], r"must return \(model, loss_fn, batches\), not a tuple of 2"),
        (["mine:not_a_model"], "must be a torch.nn.Module, not int"),
        (["mine:task", "--layers", "none.*"], "matches 'none"),
        (["mine:task", "--checkpoint", "absent.pt"], "there is no checkpoint"),
        (["mine:task", "--checkpoint", "mine.py"], "save a state_dict with torch.save"),
        (["mine:task", "--data", "mine:wrong"], r"must return \(loss_fn, batches\), not \(int, int\)"),
        (["hf:absent"], "holds no config.json"),
        (["mine:task", "--device", "cuda"], "this torch sees no CUDA device"),
    ],
)
def test_errors_are_one_line_with_a_remedy(here, capsys, arguments, message):
    import torch

    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert main(["landscape", *arguments, "--out", "o"]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    ours = [line for line in error if line.startswith("spectral-ext: ")]
    assert len(ours) == 1
    assert re.search(message, ours[0])


def test_checkpoint_is_loaded_and_a_wrong_one_is_refused(here, capsys):
    import torch
    from torch import nn

    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    page_only = ["--no-figures", "--layers", "0"]
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, "good.pt")
    torch.save(nn.Linear(2, 2).state_dict(), "bad.pt")
    assert main(["landscape", "mine:task", "--out", "a", "--top-k", "4", *page_only]) == 0
    assert main(["landscape", "mine:task", "--out", "b", "--top-k", "4", "--checkpoint", "good.pt", *page_only]) == 0
    values = [Landscape.load(here / name)["0"].alpha.value for name in ("a", "b")]
    assert values[0] != values[1]
    assert main(["landscape", "mine:task", "--checkpoint", "bad.pt"]) == 2
    assert "does not fit the model" in last_error(capsys)


def test_numbers_must_be_positive(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["landscape", "a:b", "--top-k", "0"])
    assert stop.value.code == 2
    assert "not a positive whole number" in capsys.readouterr().err


def test_interruption_is_said_and_exits_130(here, capsys, monkeypatch):
    from spectral_ext.cli import commands

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "measure", interrupted)
    assert main(["landscape", "mine:task"]) == 130
    assert "--resume keeps finished layers" in last_error(capsys)


def test_traceback_shows_where(here):
    with pytest.raises(ValueError, match="must return"):
        main(["--traceback", "landscape", "mine:wrong"])


@pytest.fixture
def libraries(monkeypatch):
    """Stand-ins for timm and torchvision with the few functions that are called: the real ones need each other."""
    from types import SimpleNamespace

    from torch import nn

    def network(name, num_classes, pretrained=False, weights=None):
        assert not pretrained
        assert weights is None
        model = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        model.append(nn.Linear(4, num_classes))
        model.pretrained_cfg = {"input_size": (3, 64, 64)}
        return model

    timm = SimpleNamespace(is_model=lambda name: name == "tiny", list_models=lambda p: ["tiny"], create_model=network)
    models = SimpleNamespace(list_models=lambda: ["tiny"], get_model=network)
    monkeypatch.setitem(sys.modules, "timm", timm)
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(models=models))


@pytest.mark.parametrize("source", ["timm", "torchvision"])
def test_library_model_on_random_data_says_so(here, libraries, capsys, source):
    sizes = ["--samples", "6", "--batch-size", "4", "--image-size", "16", "--classes", "5", "--no-figures"]
    assert main(["landscape", f"{source}:tiny", "--top-k", "4", "--out", "o", *sizes]) == 0
    found = Landscape.load(here / "o")
    assert found.meta["samples"] == 6
    assert found["4"].shape == (5, 4)
    assert "random data" in (here / "o" / "index.html").read_text(encoding="utf-8")
    assert main(["landscape", f"{source}:tin"]) == 2
    assert f"{source} has no model 'tin'" in last_error(capsys)


def test_library_model_on_own_data(here, libraries):
    assert main(["landscape", "timm:tiny", "--data", "mine:images", "--top-k", "4", "--out", "o", "--no-figures"]) == 0
    found = Landscape.load(here / "o")
    assert not any("random data" in note for note in found.meta["notes"])


@pytest.mark.parametrize(("error", "message"), [("ImportError", "pip install timm"), ("RuntimeError", "reinstall it")])
def test_library_that_is_absent_or_broken(here, capsys, error, message):
    sys.modules.pop("timm", None)
    (here / "timm.py").write_text(f"raise {error}('no')")
    sys.path.insert(0, str(here))
    try:
        assert main(["landscape", "timm:tiny"]) == 2
    finally:
        sys.path.remove(str(here))
        sys.modules.pop("timm", None)
    assert message in last_error(capsys)


def test_hugging_face_folder_without_weights(here, capsys):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        num_hidden_layers=1, num_attention_heads=2, hidden_size=16, intermediate_size=24, vocab_size=40,
        max_position_embeddings=16, num_labels=3, architectures=["BertForSequenceClassification"],
    )  # fmt: skip
    config.save_pretrained("tiny")
    sizes = ["--samples", "4", "--batch-size", "2", "--length", "8", "--top-k", "5", "--no-figures"]
    assert main(["landscape", "hf:tiny", "--out", "o", *sizes]) == 0
    found = Landscape.load(here / "o")
    assert any("holds no weights" in note for note in found.meta["notes"])
    assert found["bert.encoder.layer.0.intermediate.dense"].num_directions > 0
    assert "bert.embeddings.word_embeddings" in found.skipped
    Path("tiny/config.json").write_text('{"model_type": "bert"}')
    assert main(["landscape", "hf:tiny"]) == 2
    assert "names no architecture" in last_error(capsys)


def test_compare(here, capsys):
    synthetic_landscape(3).save("a")
    synthetic_landscape(3, seed=7).save("b")
    assert main(["compare", "a", "b/landscape.json", "--out", "c", "--names", "with", "without"]) == 0
    assert "with → without" in capsys.readouterr().out
    assert (here / "c" / "comparison.html").exists()
    capsys.readouterr()
    assert main(["compare", "a", "b", "--format", "json"]) == 0
    said = json.loads(capsys.readouterr().out)
    first = said["layers"][0]
    assert first["change"] == pytest.approx(first["b"]["alpha"] - first["a"]["alpha"])
    synthetic_landscape(3, seed=8).save("d")
    assert main(["compare", "a", "b", "d", "--out", "three"]) == 0
    assert "a, b, d." in (here / "three" / "comparison.html").read_text(encoding="utf-8")
    assert main(["compare", "a", "b", "d"]) == 2
    assert "say where by --out" in last_error(capsys)
    assert main(["compare", "a", "b", "--names", "x"]) == 2
    assert "--names gives 1 names for 2 landscapes" in last_error(capsys)
    assert main(["compare", "a", "absent"]) == 2
    assert "no landscape at" in last_error(capsys)
    Path("b/landscape.json").write_text('{"schema"')
    assert main(["compare", "a", "b"]) == 2
    assert "truncated" in last_error(capsys)


@pytest.mark.skipif(not ORACLE.is_dir(), reason=f"no frozen results at {ORACLE}")
def test_audit_writes_what_it_prints(tmp_path, capsys):
    assert main(["audit", str(ORACLE), "--out", str(tmp_path / "a"), "--brief"]) == 0
    counts = capsys.readouterr().out
    found = json.loads((tmp_path / "a" / "audit.json").read_text(encoding="utf-8"))
    contradicted = sum(one["verdict"] == "contradicted" for one in found)
    assert f"{contradicted} contradicted" in " ".join(counts.split())
    page = (tmp_path / "a" / "audit.html").read_text(encoding="utf-8")
    assert page.count('class="verdict CONTRADICTED"') == contradicted
    assert "what would overturn it" in page and all(one["overturn"] in html.unescape(page) for one in found)
    assert main(["audit", str(tmp_path)]) == 2
    assert "holds no results" in last_error(capsys)


def test_bench_outside_a_clone_says_so(here, capsys, monkeypatch):
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT])
    for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [finder for finder in sys.meta_path if "editable" not in repr(finder)])
    assert main(["bench"]) == 2
    assert "run this in a clone" in last_error(capsys)


def test_env_prints_the_build(capsys):
    assert main(["env"]) == 0
    assert "torch" in capsys.readouterr().out
