"""SPECTRAL_EXT_SIMD, the one choice of vector instructions."""

import os
import subprocess
import sys

import pytest

from spectral_ext._extension import compiled

SCRIPT = "from spectral_ext._extension import compiled; print(compiled.cpu_capability())"
LEVELS = ["baseline", "avx2", "avx512"]


def run(value: str | None) -> subprocess.CompletedProcess[str]:
    environment = {name: text for name, text in os.environ.items() if name != "SPECTRAL_EXT_SIMD"}
    if value is not None:
        environment["SPECTRAL_EXT_SIMD"] = value
    return subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=120)


def test_the_environment_lowers_the_level():
    best = LEVELS.index(run(None).stdout.strip())
    for index, name in enumerate(LEVELS):
        found = run(name)
        assert found.stdout.strip() == LEVELS[min(index, best)], found.stderr
        assert ("this processor lacks these instructions" in found.stderr) == (index > best)


@pytest.mark.parametrize("value", ["portable", "AVX2"])
def test_an_unknown_level_is_refused_by_name(value):
    found = run(value)
    assert found.returncode != 0
    assert f"ValueError: the environment variable SPECTRAL_EXT_SIMD: '{value}' names no level" in found.stderr


def test_set_cpu_capability():
    before = compiled.cpu_capability()
    try:
        compiled.set_cpu_capability("baseline")
        assert compiled.cpu_capability() == "baseline"
        with pytest.raises(ValueError, match="baseline, avx2 or avx512"):
            compiled.set_cpu_capability("sse")
    finally:
        compiled.set_cpu_capability(before)
