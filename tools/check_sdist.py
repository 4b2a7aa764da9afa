"""Source distribution → wheel in an empty folder → import and tests in an environment of its own, outside the tree.

Nothing of the checkout is on the path, so a header, template or marker that MANIFEST.in or the package data forgets
shows here. The new environment sees this Python's packages (torch is not downloaded again), except spectral-ext.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from toolchain import ROOT

TESTS = ["test_rayleigh_quotients.py", "test_input_factor_interface.py", "test_output_factor.py"]
PROBE = """
import sys, torch, spectral_ext
from spectral_ext import reference
from spectral_ext._extension import compiled
assert compiled.__file__.startswith(sys.argv[1]), compiled.__file__
x = torch.randn(4, 3, 8, 8)
want = reference.input_factor(x.double(), kernel_size=3, padding=1)
torch.testing.assert_close(spectral_ext.input_factor(x, kernel_size=3, padding=1).double(), want, rtol=1e-5, atol=1e-5)
"""


def run(*command: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"check_sdist: {' '.join(command)}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}")
    return done.stdout


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(sys.executable, "setup.py", "-q", "sdist", "-d", str(folder / "sdist"), cwd=ROOT)
        (archive,) = (folder / "sdist").glob("*.tar.gz")
        with tarfile.open(archive) as members:
            held = {member.name.partition("/")[2] for member in members if member.isfile()}
        pip = [sys.executable, "-m", "pip", "-q", "wheel", "--no-deps", "--no-build-isolation"]
        run(*pip, "-w", str(folder / "wheel"), str(archive), cwd=folder, SPECTRAL_EXT_CUDA="0")
        (wheel,) = (folder / "wheel").glob("*.whl")
        with zipfile.ZipFile(wheel) as contents:
            files = contents.namelist()
            metadata = contents.read(next(f for f in files if f.endswith(".dist-info/METADATA"))).decode()
        for header in ("Author:", "License-Expression: MIT", "Classifier:", "Project-URL:", "Requires-Dist: torch"):
            if f"\n{header}" not in metadata:
                sys.exit(f"check_sdist: the wheel's METADATA has no {header}")
        package = {path for path in held if path.startswith("spectral_ext/") and "." in Path(path).name}
        if missing := package - set(files):
            sys.exit(f"check_sdist: not in the wheel: {', '.join(sorted(missing))}")
        run(sys.executable, "-m", "venv", str(folder / "venv"), "--without-pip", cwd=folder)
        python = str(folder / "venv" / "bin" / "python")
        site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])", cwd=folder).strip())
        with zipfile.ZipFile(wheel) as contents:
            contents.extractall(site)
        # This Python's packages come after the new environment's own, and its .pth files are not read.
        packages = [path for path in sys.path if path.endswith("site-packages")]
        (site / "host.pth").write_text("\n".join(packages) + "\n")
        run(python, "-c", PROBE, str(site), cwd=folder)
        run(python, "-m", "spectral_ext", "--help", cwd=folder)
        with tarfile.open(archive) as members:
            members.extractall(folder / "source", filter="data")
        (source,) = (folder / "source").iterdir()
        shutil.rmtree(source / "spectral_ext")  # only what is installed is left to import
        tests = [str(source / "python_tests" / name) for name in TESTS]
        run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, cwd=folder, OMP_NUM_THREADS="1")
        print(f"{archive.name}: {len(held)} entries; {wheel.name}: {len(files)} files; imported outside the tree")


if __name__ == "__main__":
    main()
