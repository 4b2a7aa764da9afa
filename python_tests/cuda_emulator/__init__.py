"""Compiles the CUDA sources with the host compiler and runs them on the CPU, one fiber a CUDA thread (tests only).

``load()`` registers the CUDA bindings, kernels and all, as CPU kernels of ``torch.ops.spectral_ext_emulated``: every
index, bound, barrier and shuffle is really executed. ``racecheck()`` builds the kernels into a program under
ThreadSanitizer.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
OUT = ROOT / "build" / "cuda_emulator"
TORCH = Path(torch.__file__).parent
COMMON = [
    "-std=c++17",
    "-fPIC",
    "-fno-strict-aliasing",
    "-w",
    "-DSPECTRAL_EXT_CHUNK_FLOATS=300000",  # two matrices or poles of two tiles per side
    f"-I{HERE}",
    f"-I{ROOT / 'csrc'}",
    f"-I{TORCH / 'include'}",
]
BINDING = [
    "-DUSE_CUDA",
    "-DTORCH_TARGET_VERSION=0x020b000000000000",
    "-Dspectral_ext=spectral_ext_emulated",
    "-DSPECTRAL_EXT_CUDA_KEY=CPU",
    "-fvisibility=hidden",
]
# Traps: an index outside an array with known bounds (shared memory, registers), a misaligned vector, a division by 0.
CHECKED = ["-O1", "-fsanitize=bounds,alignment,integer-divide-by-zero,shift,bool", "-fsanitize-undefined-trap-on-error"]


def compiler() -> str:
    found = shutil.which(os.environ.get("CXX", "g++"))
    if found is None:
        pytest.skip("no C++ compiler: the CUDA kernels cannot be emulated")
    return found


def _compile(source: Path, flags: list[str], objects: Path) -> Path:
    target = objects / (source.name + ".o")
    subprocess.run([compiler(), *flags, "-x", "c++", "-c", str(source), "-o", str(target)], check=True)
    return target


def _build(name: str, sources: dict[Path, list[str]], link: list[str]) -> Path:
    """Compiles and links once for every state of the sources; a lock keeps test workers apart."""
    state = hashlib.sha256(repr((torch.__version__, compiler(), sorted(sources.items()), link)).encode())
    for path in sorted([*ROOT.glob("csrc/*/*"), *HERE.glob("*")]):
        if path.is_file():
            state.update(path.read_bytes())
    target = OUT / f"{name}-{state.hexdigest()[:16]}"
    OUT.mkdir(parents=True, exist_ok=True)
    with open(OUT / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            objects = OUT / f"{name}-objects"
            objects.mkdir(exist_ok=True)
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                compiled = list(pool.map(lambda item: _compile(item[0], item[1], objects), sources.items()))
            partial = target.with_suffix(".partial")
            subprocess.run([compiler(), *map(str, compiled), "-o", str(partial), *link], check=True)
            for old in OUT.glob(f"{name}-????????????????"):
                old.unlink()
            partial.rename(target)
    return target


def kernels() -> list[Path]:
    return sorted((ROOT / "csrc" / "cuda").glob("*.cu"))


def load():
    """``torch.ops.spectral_ext_emulated``: the CUDA ops, emulated."""
    sources = {path: [*COMMON, *CHECKED, *BINDING] for path in kernels()}
    bindings = [
        *sorted((ROOT / "csrc" / "ops").glob("*_cuda.cpp")),
        ROOT / "csrc/ops/library.cpp",
        HERE / "torch_cuda.cpp",
    ]
    sources |= {path: [*COMMON, "-O0", *BINDING] for path in bindings}
    sources[HERE / "emulator.cpp"] = [*COMMON, "-O2"]
    lib = TORCH / "lib"
    # -Bsymbolic: the stand-ins of torch_cuda.cpp come before what libtorch exports under the same names.
    link = ["-shared", "-Wl,-Bsymbolic", f"-L{lib}", f"-Wl,-rpath,{lib}", "-ltorch", "-ltorch_cpu", "-lc10"]
    torch.ops.load_library(str(_build("emulated", sources, link)))
    return torch.ops.spectral_ext_emulated


def racecheck() -> Path:
    """A program that runs every kernel under ThreadSanitizer; with the argument ``racy``, one that lacks a barrier."""
    flags = [*COMMON, "-O1", "-g1", "-fsanitize=thread"]
    sources = dict.fromkeys([*kernels(), HERE / "kernel_check.cpp"], flags)
    sources[HERE / "emulator.cpp"] = [*COMMON, "-O2", "-DRACECHECK"]  # its own bookkeeping is not what is checked
    return _build("racecheck", sources, ["-fsanitize=thread"])
