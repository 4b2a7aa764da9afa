"""The commands for a GPU machine, rehearsed on the CPU: they run to the end, keep partial results, and can fail."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.count_newton_calls import MODELS
from benchmarks.predict_newton_gpu import blocked, milliseconds, newton_schulz

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / "tools").is_dir(), reason="needs the source tree")


def run(*arguments: str, timeout: float = 250) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout
    )


def test_bench_runs_every_row(tmp_path):
    out = tmp_path / "bench.json"
    done = run("tools/gpu_bench.py", "--device", "cpu", "--out", str(out))
    table = json.loads(out.read_text())
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert sum("spectral_newton" in name for name in table) == 4
    for name, row in table.items():
        if name == "limits":
            continue
        assert set(row["ms"]) == set(row["error"]), name
        assert row["ms"]["ours"] > 0
        assert row["error"]["ours"] < 2e-3, name
        assert row["limit_ms"] > 0


def test_bench_begins_no_row_after_its_time(tmp_path):
    out = tmp_path / "bench.json"
    done = run("tools/gpu_bench.py", "--device", "cpu", "--only", "rayleigh", "--seconds", "0", "--out", str(out))
    assert done.returncode == 0, done.stderr
    rows = [row for name, row in json.loads(out.read_text()).items() if name != "limits"]
    assert rows and all("skipped" in row for row in rows)


def test_measure_runs_every_case(tmp_path):
    out = tmp_path / "measure.json"
    done = run("tools/gpu_measure.py", "--device", "cpu", "--out", str(out))
    table = json.loads(out.read_text())
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert {"measure", "directional_curvature", "tracker", "accumulator", "graph n=768"} <= set(table)
    assert all(row["ok"] and row["seconds"] >= 0 for row in table.values())


def test_check_keeps_earlier_results_and_says_what_failed(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps({"build": {"ok": True, "seconds": 1.0}}))
    done = run("tools/gpu_check.py", "--device", "cpu", "--out", str(folder), "--only", "measure", "--seconds", "1")
    report = json.loads((folder / "report.json").read_text())
    assert done.returncode == 1
    assert report["build"]["ok"] and report["machine"]["ok"]
    assert report["measure"]["status"] == "no time left in this call"
    assert "measure … failed (no time left in this call)" in done.stdout


def test_check_refuses_unknown_steps(tmp_path):
    done = run("tools/gpu_check.py", "--out", str(tmp_path), "--only", "tests,benhc")
    assert done.returncode == 2
    assert "unknown: benhc; there are build, tests, sanitize, measure, bench" in done.stderr


def test_a_step_that_is_stopped_leaves_its_output(tmp_path):
    sys.path.insert(0, str(ROOT / "tools"))
    import time

    from gpu_check import Call

    call = Call(tmp_path, "cpu", time.monotonic() + 100)
    result = call.run("slow", [sys.executable, "-c", "import time; print('row 1'); time.sleep(60)"], limit=6)
    assert not result["ok"]
    assert result["status"] == "stopped after 6 s"
    assert "row 1" in (tmp_path / "slow.log").read_text()
    assert call.run("bad", [sys.executable, "-c", "raise SystemExit(3)"])["status"] == 3


def test_predictions_by_count():
    """The committed table is what the counts give, and names no measurement."""
    table = json.loads((ROOT / "benchmarks" / "results" / "newton_predictions.json").read_text())
    assert table["measured"] is False
    rows = {(row["set"], row["alpha"]): row for row in table["rows"]}
    for name in ("ResNet-18", "GPT-2 small"):
        shapes = MODELS[name]
        kernel, peer = blocked(shapes, 2.0), newton_schulz(shapes)
        assert milliseconds(kernel) <= 0.5 * milliseconds(peer)
        assert rows[name, 2.0]["ms"]["blocked"] == pytest.approx(milliseconds(kernel), abs=1e-3)
        for alpha in (0.5, 1.0, 1.5):  # by operations alone: the traffic of the L2 cache is more for GPT-2
            assert blocked(shapes, alpha)["bfloat16"] <= peer["bfloat16"]
