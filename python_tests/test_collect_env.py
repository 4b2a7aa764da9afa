"""The environment report, and the loader's message where the binary is missing."""

import runpy
import subprocess
import sys

import pytest

from spectral_ext import collect_env


def test_report_names_what_was_built_and_what_is_here():
    found = collect_env.collect()
    assert found["ops"].startswith("loaded")
    assert "input_factor" in found["ops"]
    assert not found["built: torch"].startswith("unknown")
    if found["built: cuda"] == "None":
        assert found["built: why_no_cuda"] not in ("None", "")


def test_a_failing_probe_is_reported_not_raised():
    into = {}
    collect_env._probe("broken", lambda: 1 / 0, into)
    assert into == {"broken": "unknown (ZeroDivisionError: division by zero)"}


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_runs_as_a_module(capsys):
    runpy.run_module("spectral_ext.collect_env", run_name="__main__")
    assert "spectral-ext" in capsys.readouterr().out


@pytest.mark.parametrize("module", ["spectral_ext", "spectral_ext.cli"])
def test_the_command_line_runs_as_a_module(module, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["spectral-ext", "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module(module, run_name="__main__")
    assert "Curvature of neural networks" in capsys.readouterr().out


def test_a_missing_binary_says_what_to_run():
    script = "import sys; sys.modules['spectral_ext._C'] = None; import spectral_ext._extension"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "pip install --no-build-isolation" in done.stderr
