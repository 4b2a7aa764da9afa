"""Shared fixtures: the folder of given data, devices, seeds, a working folder of the command line."""

import os
import sys
import textwrap
from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True, scope="session")
def _sanitized_binary():
    """``make sanitize`` must not pass because another binary was loaded."""
    if sanitizers := os.environ.get("SPECTRAL_EXT_SANITIZE"):
        from spectral_ext._extension import compiled

        mark = b"__tsan_func_entry" if sanitizers == "thread" else b"__asan_report"
        assert mark in Path(compiled.__file__).read_bytes(), f"{compiled.__file__} is not instrumented"


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def shared() -> Path:
    """The folder of given data beside the checkout; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("the folder ../shared is absent")
    return SHARED


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


@pytest.fixture(params=DEVICES)
def device(request) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with a user's own module."""
    (tmp_path / "mine.py").write_text(
        textwrap.dedent(
            """
            import torch
            from torch import nn
            def task():
                torch.manual_seed(0)
                model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
                return model, nn.CrossEntropyLoss(), [(torch.randn(32, 6), torch.randint(3, (32,)))]
            def images():
                return nn.CrossEntropyLoss(), [(torch.randn(4, 3, 32, 32), torch.randint(10, (4,)))]
            def wrong():
                return 1, 2
            def not_a_model():
                return 1, 2, []
            value = 3
            """
        )
    )
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "bad", "needs"):
        sys.modules.pop(name, None)
    return tmp_path
