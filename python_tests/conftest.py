"""Shared fixtures: the folder of given data, devices, seeds."""

import os
from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True, scope="session")
def _sanitized_binary():
    """``make sanitize`` must not pass because another binary was loaded."""
    if os.environ.get("SPECTRAL_EXT_SANITIZE"):
        from spectral_ext._extension import compiled

        assert b"__asan_report" in Path(compiled.__file__).read_bytes(), f"{compiled.__file__} is not instrumented"


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
