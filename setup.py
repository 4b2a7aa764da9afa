"""Builds spectral_ext._C: C++ always, CUDA where torch is built for it and nvcc is at hand.

Environment: ``SPECTRAL_EXT_CUDA=0`` leaves CUDA out; ``SPECTRAL_EXT_PREBUILT=1`` compiles nothing, for an editable
install of a tree that holds its binary; ``SPECTRAL_EXT_SANITIZE=address,undefined`` instruments the binary (``make
sanitize``); ``CXX``, ``CUDA_HOME``, ``TORCH_CUDA_ARCH_LIST`` and ``MAX_JOBS`` mean what they mean to torch.
"""

import os
import platform
import re
import sys
from pathlib import Path

import setuptools
from setuptools import setup

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))

import toolchain  # noqa: E402

INSTALL = "`pip install --no-build-isolation .`"
OLDEST = ".".join(map(str, toolchain.OLDEST_TORCH))
CUDA_ARCHITECTURES = "8.0;9.0;10.0;12.0+PTX"


def stop(reason: str) -> None:
    sys.exit(f"\nspectral-ext cannot be built: {reason}\n")


def is_isolated() -> bool:
    """Whether pip, build or uv started this in an environment of its own, where the user's torch is out of sight."""
    return any("pip-build-env-" in entry for entry in sys.path) or bool(
        re.search(r"[/\\](build-env-[^/\\]*|builds-v\d+[/\\].*)$", sys.prefix)
    )


def import_torch():
    """torch and torch.utils.cpp_extension; ends the build with the reason where that is impossible."""
    if tuple(map(int, re.findall(r"\d+", setuptools.__version__)[:1])) < (77,):
        stop(f"setuptools {setuptools.__version__} is too old: run `pip install 'setuptools>=77' wheel ninja`.")
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            stop(
                f"torch is installed, but a module that it needs is not: {error}. `python -c 'import torch'` must work."
            )
        if is_isolated():
            stop(
                "it is compiled against the torch that you use, and the isolated build environment hides that torch. "
                f"Run `pip install 'setuptools>=77' wheel ninja`, then {INSTALL}."
            )
        stop(f"torch is not installed for {sys.executable}: run `pip install 'torch>={OLDEST}'`, then {INSTALL}.")
    except Exception as error:
        stop(
            f"torch is installed, but importing it failed:\n  {type(error).__name__}: {error}\n"
            "Mend that first: `python -c 'import torch'` must work."
        )
    if tuple(map(int, re.findall(r"\d+", str(torch.__version__))[:2])) < toolchain.OLDEST_TORCH:
        stop(f"torch {torch.__version__} is too old: run `pip install 'torch>={OLDEST}'`.")
    try:
        if torch.version.cuda is not None and os.environ.get("SPECTRAL_EXT_CUDA") != "0":
            home = toolchain.cuda_home()
            if home is not None:
                os.environ["CUDA_HOME"] = str(home)  # torch would guess it from the folder of nvcc
        toolchain.check_compiler()
    except toolchain.ToolchainError as error:
        stop(str(error))
    from torch.utils import cpp_extension

    if hasattr(
        cpp_extension, "_wrap_compiler"
    ):  # torch 2.13 and later call ccache themselves, and quote CXX as one word
        for name in {"CC", "CXX"} & os.environ.keys():
            os.environ[name] = re.sub(r"^\s*s?ccache\s+", "", os.environ[name])
    return torch, cpp_extension


def refuse_old_gpus(torch) -> None:
    """The kernels use tensor-core and copy instructions that compute capability 8.0 brought."""
    if named := os.environ.get("TORCH_CUDA_ARCH_LIST"):
        old = [name for name in re.findall(r"\d+\.\d+", named) if float(name) < 8]
        old += [name for name in ("Kepler", "Maxwell", "Pascal", "Volta", "Turing") if name in named]
        where = "TORCH_CUDA_ARCH_LIST names"
    else:
        found = [torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())]
        old, where = [f"{major}.{minor}" for major, minor in found if major < 8], "here is a GPU of compute capability"
    if old:
        stop(
            f"{where} {', '.join(old)}, and 8.0 (Ampere) or newer is needed. "
            'Set TORCH_CUDA_ARCH_LIST to newer ones, as in "8.0;9.0", or SPECTRAL_EXT_CUDA=0 to build for the CPU only.'
        )


def why_no_cuda(torch) -> str | None:
    """The reason for a CPU-only build, or None where CUDA is built."""
    if os.environ.get("SPECTRAL_EXT_CUDA") == "0":
        return "SPECTRAL_EXT_CUDA=0"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if "CUDA_HOME" not in os.environ:
        return "nvcc was not found (set CUDA_HOME)"
    return None


def sources(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(pattern))


def extension(cpp_extension, with_cuda: bool):
    cxx, link = ["-O3", "-g0", *toolchain.CXX_FLAGS], []
    if sanitizers := os.environ.get("SPECTRAL_EXT_SANITIZE"):
        link = [f"-fsanitize={sanitizers}"]
        cxx += ["-O1", "-g1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all", *link]
    arguments = {"include_dirs": [str(ROOT / "csrc")], "extra_link_args": link}
    host = sources("csrc/ops/*.cpp") + sources("csrc/cpu/*.cpp")
    if not with_cuda:
        host = [path for path in host if not path.endswith("_cuda.cpp")]
        return cpp_extension.CppExtension("spectral_ext._C", host, extra_compile_args=cxx, **arguments)
    nvcc = ["-O3", "--expt-relaxed-constexpr", "-Xptxas=-warn-spills"]
    return cpp_extension.CUDAExtension(
        "spectral_ext._C",
        host + sources("csrc/cuda/*.cu"),
        extra_compile_args={"cxx": [*cxx, "-DUSE_CUDA"], "nvcc": nvcc},
        **arguments,
    )


def build_options() -> dict:
    """What setup() needs beyond pyproject.toml to compile: the extension, and a build_ext that says what it builds."""
    torch, cpp_extension = import_torch()
    no_cuda = why_no_cuda(torch)
    if no_cuda is None:
        if not torch.cuda.is_available():  # no GPU to ask; torch refuses an empty list
            os.environ.setdefault("TORCH_CUDA_ARCH_LIST", CUDA_ARCHITECTURES)
        refuse_old_gpus(torch)

    class BuildExtension(cpp_extension.BuildExtension):
        """Says what is built, and writes it to spectral_ext/_build_info.py beside the binary."""

        def run(self) -> None:
            print(
                f"spectral-ext: building for torch {torch.__version__},",
                "CPU only: " + no_cuda if no_cuda else f"CUDA {torch.version.cuda}",
            )
            super().run()
            info = {
                "torch": str(torch.__version__),
                "python": platform.python_version(),
                "stable_abi": OLDEST,
                "cuda": None if no_cuda else torch.version.cuda,
                "cuda_architectures": None
                if no_cuda
                else os.environ.get("TORCH_CUDA_ARCH_LIST", "of the GPU at build time"),
                "why_no_cuda": no_cuda,
            }
            text = '"""Written by setup.py: what this binary was built against."""\n\n' + f"BUILD = {info!r}\n"
            Path(self.get_ext_fullpath("spectral_ext._C")).with_name("_build_info.py").write_text(text)

    return {"ext_modules": [extension(cpp_extension, no_cuda is None)], "cmdclass": {"build_ext": BuildExtension}}


# Metadata and the source distribution need no torch: MANIFEST.in lists what the latter holds.
compiles = not {"sdist", "egg_info", "dist_info"}.intersection(sys.argv) and not os.environ.get("SPECTRAL_EXT_PREBUILT")
setup(**(build_options() if compiles else {}))
