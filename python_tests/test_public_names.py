"""The public face: every name is there, documented, and loaded only when asked for."""

import subprocess
import sys

import pytest

import spectral_ext


@pytest.mark.parametrize("name", [name for name in spectral_ext.__all__ if name != "__version__"])
def test_name_is_there_and_documented(name):
    found = getattr(spectral_ext, name)
    assert callable(found)
    assert len(found.__doc__ or "") > 80


def test_importing_loads_no_figures_and_no_statistics():
    code = "import sys; from spectral_ext import SpectralNewton, input_factor; "
    code += "sys.exit(any(name in sys.modules for name in ('matplotlib', 'scipy', 'pandas')))"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_unknown_name():
    with pytest.raises(AttributeError, match="nowhere"):
        spectral_ext.nowhere  # noqa: B018
    assert "measure" in dir(spectral_ext)
