"""setup.py: each missing piece is named with its remedy. setup.py runs in a subprocess with a faked environment."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs the source tree")

FAKE_TORCH = """
__version__ = "{version}"
class version: cuda = {cuda!r}
class cuda:
    def is_available(): return False
"""
FAKE_EXTENSION = """
import os
from setuptools import Extension
from setuptools.command.build_ext import build_ext as BuildExtension
CUDA_HOME = os.environ.get("CUDA_HOME")
def CppExtension(name, sources, **_): raise SystemExit("would build for the CPU")
def CUDAExtension(name, sources, **_): raise SystemExit("would build with CUDA of " + os.environ["CUDA_HOME"])
"""


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return path


def fake_torch(folder: Path, version: str = "2.13.0", cuda: str | None = None, text: str | None = None) -> Path:
    """A folder for PYTHONPATH whose torch stands before the installed one."""
    package = folder / "torch"
    (package / "utils").mkdir(parents=True)
    (package / "__init__.py").write_text(FAKE_TORCH.format(version=version, cuda=cuda) if text is None else text)
    (package / "utils" / "__init__.py").write_text("")
    (package / "utils" / "cpp_extension.py").write_text(FAKE_EXTENSION)
    return folder


def build(path: Path, **environment: str) -> str:
    """What setup.py prints, with ``path`` as PYTHONPATH and no CUDA settings but those given."""
    kept = {k: v for k, v in os.environ.items() if k not in ("CUDA_HOME", "CUDA_PATH", "SPECTRAL_EXT_CUDA", "CXX")}
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext"],
        cwd=ROOT,
        env={**kept, "PYTHONPATH": str(path), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0, done.stdout
    assert "Traceback" not in done.stderr, done.stderr
    return " ".join((done.stdout + done.stderr).split())


NO_MODULE = "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')"


def test_no_torch(tmp_path):
    said = build(fake_torch(tmp_path, text=NO_MODULE))
    assert f"torch is not installed for {sys.executable}" in said
    assert "pip install 'torch>=2.11'" in said
    assert "isolated" not in said.replace("--no-build-isolation", "")


def test_isolated_build_of_pip(tmp_path):
    """pip puts the folder of its isolated environment on the path; the user's torch is not visible from there."""
    said = build(fake_torch(tmp_path / "pip-build-env-x7k2" / "overlay" / "site-packages", text=NO_MODULE))
    assert "the isolated build environment hides that torch" in said
    assert "pip install --no-build-isolation ." in said


@pytest.mark.parametrize(
    "error",
    ["ImportError('libc10.so: cannot open shared object file')", "OSError('undefined symbol: iJIT_NotifyEvent')"],
)
def test_torch_that_fails_to_import(tmp_path, error):
    said = build(fake_torch(tmp_path, text=f"raise {error}"))
    assert "torch is installed, but importing it failed" in said
    kind, text = error[:-2].split("('")
    assert f"{kind}: {text}" in said
    assert "pip install" not in said


def test_torch_that_lacks_a_module(tmp_path):
    said = build(fake_torch(tmp_path, text="import typing_extensions_that_is_not_there"))
    assert "a module that it needs is not: No module named 'typing_extensions_that_is_not_there'" in said


@pytest.mark.parametrize("version", ["2.10.1+cpu", "1.13.0"])
def test_old_torch(tmp_path, version):
    said = build(fake_torch(tmp_path, version=version))
    assert f"torch {version} is too old" in said
    assert "torch>=2.11" in said


def test_old_setuptools(tmp_path):
    (tmp_path / "setuptools").mkdir()
    (tmp_path / "setuptools" / "__init__.py").write_text("__version__ = '65.5.0'\nsetup = Extension = None\n")
    assert "setuptools 65.5.0 is too old: run `pip install 'setuptools>=77'" in build(tmp_path)


def test_no_compiler(tmp_path):
    said = build(fake_torch(tmp_path), CXX="c++-of-nobody -O2")
    assert "no C++ compiler: `c++-of-nobody` was not found (CXX names it)" in said
    assert "apt install g++" in said
    bare = tmp_path / "bin"
    bare.mkdir()
    assert "no C++ compiler: `c++` was not found (CXX is not set)" in build(tmp_path, PATH=str(bare))


def test_compiler_that_cannot_compile(tmp_path):
    broken = script(tmp_path / "bin" / "broken++", 'echo "fatal error: vector: No such file" >&2; exit 1\n')
    said = build(fake_torch(tmp_path), CXX=str(broken))
    assert f"the C++ compiler `{broken}` cannot compile C++17: fatal error: vector: No such file" in said


def toolkit(home: Path, headers: bool = True) -> Path:
    script(home / "bin" / "nvcc", f"echo '#$ TOP={home}/bin/..' >&2\n")
    if headers:
        (home / "include").mkdir()
        (home / "include" / "cuda_runtime.h").touch()
    return home


@pytest.fixture
def cuda_torch(tmp_path):
    return fake_torch(tmp_path / "python", cuda="13.0")


def test_nvcc_that_is_a_script_leads_to_its_toolkit(tmp_path, cuda_torch):
    """torch takes the folder above nvcc's, here the wrapper's, which holds no headers."""
    home = toolkit(tmp_path / "cuda-13.0")
    wrapper = script(tmp_path / "local" / "bin" / "nvcc", f'exec {home}/bin/nvcc "$@"\n')
    path = f"{wrapper.parent}:{os.environ['PATH']}"
    assert f"would build with CUDA of {home}" in build(cuda_torch, PATH=path)
    assert "would build for the CPU" in build(cuda_torch, PATH=path, SPECTRAL_EXT_CUDA="0")


def test_toolkit_without_headers(tmp_path, cuda_torch):
    home = toolkit(tmp_path / "cuda", headers=False)
    path = f"{home / 'bin'}:{os.environ['PATH']}"
    for said in (build(cuda_torch, PATH=path), build(cuda_torch, CUDA_HOME=str(home))):
        assert f"there is no {home / 'include' / 'cuda_runtime.h'}" in said
        assert "SPECTRAL_EXT_CUDA=0" in said


def test_nvcc_that_says_nothing(tmp_path, cuda_torch):
    silent = script(tmp_path / "bin" / "nvcc", "exit 3\n")
    said = build(cuda_torch, PATH=f"{silent.parent}:{os.environ['PATH']}")
    assert f"`{silent}` does not say where its toolkit lies" in said


@pytest.mark.parametrize(
    ("named", "old"), [("7.5;8.0", "7.5"), ("6.1 7.0+PTX", "6.1, 7.0"), ("Turing;Ampere", "Turing")]
)
def test_architectures_that_are_too_old(tmp_path, cuda_torch, named, old):
    home = toolkit(tmp_path / "cuda")
    said = build(cuda_torch, CUDA_HOME=str(home), TORCH_CUDA_ARCH_LIST=named)
    assert f"TORCH_CUDA_ARCH_LIST names {old}, and 8.0 (Ampere) or newer is needed" in said
    assert "SPECTRAL_EXT_CUDA=0" in said
    assert "would build with CUDA" in build(cuda_torch, CUDA_HOME=str(home), TORCH_CUDA_ARCH_LIST="8.0;9.0a;10.0+PTX")


def test_a_prebuilt_tree_compiles_nothing(tmp_path):
    """How `make demo` installs the command without compiling a second time."""
    environment = {**os.environ, "PYTHONPATH": str(fake_torch(tmp_path, text=NO_MODULE)), "SPECTRAL_EXT_PREBUILT": "1"}
    done = subprocess.run(
        [sys.executable, "setup.py", "--name"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split()[-1] == "spectral-ext", done.stderr


def test_cpu_torch_does_not_ask_for_a_toolkit(tmp_path):
    silent = script(tmp_path / "bin" / "nvcc", "exit 3\n")
    said = build(fake_torch(tmp_path / "python"), PATH=f"{silent.parent}:{os.environ['PATH']}")
    assert "would build for the CPU" in said


def test_source_distribution_needs_no_torch_and_holds_every_file(tmp_path):
    """In a copy, because setuptools writes its egg-info beside setup.py."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    files = [name for name in tracked.stdout.splitlines() if (ROOT / name).is_file()]
    copy = tmp_path / "copy"
    for name in files:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    fake_torch(tmp_path, text=NO_MODULE)
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "sdist", "--formats=tar", "-d", str(tmp_path)],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    import tarfile

    (archive,) = tmp_path.glob("*.tar")
    with tarfile.open(archive) as members:
        held = {name.partition("/")[2] for name in members.getnames()}
    assert {name for name in files if not name.startswith((".git", ".pre-commit"))} <= held
