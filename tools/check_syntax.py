"""Compiles every C++ file without producing anything: each compiler, with and without CUDA, any warning is an error.

    python tools/check_syntax.py                        the installed torch, $CXX or c++
    python tools/check_syntax.py --compiler clang++     another compiler
    python tools/check_syntax.py --torch 2.11.0         the headers of that release, downloaded once into build/

The headers are taken from the macOS wheel: it is the smallest, and what the stable ABI uses is the same in all. Without
nvcc the CUDA bindings are compiled against the runtime's declarations in python_tests/cuda_emulator.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import toolchain
from toolchain import ROOT

HEADER_WHEEL = ["--platform", "macosx_11_0_arm64", "--platform", "macosx_14_0_arm64", "--python-version", "3.11"]
HEADER_WHEEL += ["--only-binary=:all:", "--no-deps"]


def headers_of(release: str) -> Path:
    """The include folder of that torch, from build/ or from the package index."""
    folder = ROOT / "build" / f"torch-{release}-headers"
    if not folder.is_dir():
        download = ROOT / "build" / f"torch-{release}-download"
        command = [sys.executable, "-m", "pip", "download", "-q", *HEADER_WHEEL, f"torch=={release}"]
        if subprocess.run([*command, "-d", str(download)]).returncode:
            sys.exit(f"check_syntax: the wheel of torch {release} could not be downloaded")
        (wheel,) = download.glob("*.whl")
        partial = folder.with_suffix(".partial")
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.startswith("torch/include/")]
            archive.extractall(partial, names)
        shutil.rmtree(download)
        partial.rename(folder)
    return folder / "torch" / "include"


def installed_headers() -> Path:
    import torch

    return Path(torch.__file__).parent / "include"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", metavar="RELEASE", help="compile against the headers of this release of torch")
    parser.add_argument("--compiler", default=None, help="default: $CXX or c++")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    if arguments.compiler:
        os.environ["CXX"] = arguments.compiler
    try:
        toolchain.check_compiler()
        home = toolchain.cuda_home()
    except toolchain.ToolchainError as problem:
        sys.exit(f"check_syntax: {problem}")
    headers = headers_of(arguments.torch) if arguments.torch else installed_headers()
    cuda = home / "include" if home else ROOT / "python_tests" / "cuda_emulator"
    system = [headers, headers / "torch" / "csrc" / "api" / "include", cuda, Path(sysconfig.get_paths()["include"])]
    command = [*toolchain.cxx(), "-std=c++17", "-O1", "-fsyntax-only", "-Werror", *toolchain.CXX_FLAGS]
    command += [f"-I{ROOT / 'csrc'}", *(f"-isystem{path}" for path in system)]

    ops, cpu = sorted(ROOT.glob("csrc/ops/*.cpp")), sorted(ROOT.glob("csrc/cpu/*.cpp"))
    runs = [(source, ["-DUSE_CUDA"]) for source in ops]
    runs += [(source, []) for source in [*ops, *cpu] if not source.name.endswith("_cuda.cpp")]

    def complaint(run: tuple[Path, list[str]]) -> str:
        done = subprocess.run([*command, *run[1], str(run[0])], capture_output=True, text=True)
        return f"{run[0].relative_to(ROOT)} {' '.join(run[1])}:\n{done.stderr}" if done.returncode else ""

    with ThreadPoolExecutor(arguments.jobs) as pool:
        complaints = [text for text in pool.map(complaint, runs) if text]
    what = f"torch {arguments.torch or 'installed'}, {' '.join(toolchain.cxx())}"
    if complaints:
        sys.exit(
            "\n".join([*complaints, f"check_syntax: {len(complaints)} of {len(runs)} compilations failed ({what})"])
        )
    print(f"{len(runs)} compilations of {len(ops) + len(cpu)} C++ files pass ({what})")


if __name__ == "__main__":
    main()
