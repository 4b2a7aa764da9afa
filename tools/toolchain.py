"""What setup.py and the checks in tools/ share: the oldest torch, compiler flags, where the CUDA toolkit lies."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST_TORCH = (2, 11)
"""The binary uses LibTorch's stable ABI of this release, so it serves this release and every later one."""
STABLE_ABI_TARGET = f"-DTORCH_TARGET_VERSION=0x{OLDEST_TORCH[0]:02x}{OLDEST_TORCH[1]:02x}000000000000"
WARNINGS = ["-Wall", "-Wextra", "-Wno-unused-parameter"]
CXX_FLAGS = ["-fvisibility=hidden", *WARNINGS, STABLE_ABI_TARGET]


class ToolchainError(Exception):
    """Something that the build needs is missing or broken; the message names it and the remedy."""


def cxx() -> list[str]:
    """The C++ compiler as a command: ``CXX`` may hold arguments, as in ``ccache g++``."""
    return shlex.split(os.environ.get("CXX", "")) or ["c++"]


def check_compiler() -> None:
    """Compiles three lines with the compiler that torch will use, which is faster to read than ninja's output."""
    command = cxx()
    remedy = (
        "Install one (Debian, Ubuntu: `apt install g++`; Fedora: `dnf install gcc-c++`; conda: `conda install "
        "cxx-compiler`), or name it: CXX=/path/to/g++."
    )
    if shutil.which(command[0]) is None:
        named = "CXX names it" if os.environ.get("CXX") else "CXX is not set"
        raise ToolchainError(f"no C++ compiler: `{command[0]}` was not found ({named}). {remedy}")
    program = "#include <vector>\nint main() { return std::vector<int>(1).back(); }\n"
    tried = subprocess.run(
        [*command, "-std=c++17", "-fsyntax-only", "-x", "c++", "-"], input=program, capture_output=True, text=True
    )
    if tried.returncode:
        said = (tried.stderr or tried.stdout).strip() or f"exit status {tried.returncode}"
        raise ToolchainError(f"the C++ compiler `{shlex.join(command)}` cannot compile C++17:\n{said}\n{remedy}")
    headers = Path(sysconfig.get_paths()["include"])
    if not (headers / "Python.h").is_file():
        raise ToolchainError(
            f"Python's headers are missing: there is no {headers / 'Python.h'}. Install them "
            "(Debian, Ubuntu: `apt install python3-dev`; Fedora: `dnf install python3-devel`)."
        )


def cuda_home() -> Path | None:
    """The root of the CUDA toolkit, or None where there is no nvcc.

    ``CUDA_HOME`` or ``CUDA_PATH`` where it is set, else what the nvcc on the path says of itself: it may be a link or
    a script that starts the real one, so its own folder proves nothing. ``/usr/local/cuda`` comes last.
    """
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if given := os.environ.get(name):
            return _complete(Path(given), f"{name}={given}")
    if nvcc := shutil.which("nvcc"):
        said = subprocess.run([nvcc, "-dryrun", "-c", "-x", "cu", os.devnull], capture_output=True, text=True)
        output = said.stdout + said.stderr
        if not (top := re.search(r"^#\$ TOP=(.+)$", output, re.MULTILINE)):
            raise ToolchainError(
                f"`{nvcc}` does not say where its toolkit lies (`nvcc -dryrun` gave: {output.strip()[:200]!r}). "
                "Set CUDA_HOME to the toolkit's folder, or SPECTRAL_EXT_CUDA=0 to build for the CPU only."
            )
        return _complete(Path(top[1].strip()).resolve(), f"the toolkit of {nvcc}")
    default = Path("/usr/local/cuda")
    return default if (default / "bin" / "nvcc").is_file() else None


def _complete(home: Path, source: str) -> Path:
    for needed in ("bin/nvcc", "include/cuda_runtime.h"):
        if not (home / needed).is_file():
            raise ToolchainError(
                f"{source}: there is no {home / needed}. Set CUDA_HOME to the folder of a whole toolkit (it holds "
                "bin/nvcc and include/cuda_runtime.h), or SPECTRAL_EXT_CUDA=0 to build for the CPU only."
            )
    return home
