"""SPECTRAL_EXT_SIMD, the one choice of vector instructions."""

import pytest
from processes import run_script

from spectral_ext._extension import compiled

SCRIPT = "from spectral_ext._extension import compiled; print(compiled.cpu_capability())"
LEVELS = ["baseline", "avx2", "avx512"]


def test_the_environment_lowers_the_level(tmp_path):
    best = LEVELS.index(run_script(SCRIPT, {"SPECTRAL_EXT_SIMD": None}, tmp_path)[1].strip())
    for index, name in enumerate(LEVELS):
        _, found, said = run_script(SCRIPT, {"SPECTRAL_EXT_SIMD": name}, tmp_path)
        assert found.strip() == LEVELS[min(index, best)], said
        assert ("this processor lacks these instructions" in said) == (index > best)


@pytest.mark.parametrize("value", ["portable", "AVX2"])
def test_an_unknown_level_is_refused_by_name(value, tmp_path):
    status, _, said = run_script(SCRIPT, {"SPECTRAL_EXT_SIMD": value}, tmp_path)
    assert status != 0
    assert f"ValueError: the environment variable SPECTRAL_EXT_SIMD: '{value}' names no level" in said


def test_set_cpu_capability():
    before = compiled.cpu_capability()
    try:
        compiled.set_cpu_capability("baseline")
        assert compiled.cpu_capability() == "baseline"
        with pytest.raises(ValueError, match="baseline, avx2 or avx512"):
            compiled.set_cpu_capability("sse")
    finally:
        compiled.set_cpu_capability(before)
