"""Builds spectral_ext._C: C++ always, CUDA where torch is built for it and nvcc is at hand."""

import os
import platform
import shutil
import sys
from pathlib import Path

from setuptools import setup

try:
    import torch
    from torch.utils import cpp_extension
except ImportError:
    sys.exit(
        "spectral-ext is compiled against the torch that you use, and none is installed: "
        "run `pip install torch`, then `pip install --no-build-isolation .`"
    )

ROOT = Path(__file__).parent
STABLE_ABI_TARGET = "0x020b000000000000"  # torch 2.11: the oldest release that the binary serves


def why_no_cuda() -> str | None:
    """The reason for a CPU-only build, or None where CUDA is built."""
    if os.environ.get("SPECTRAL_EXT_CUDA") == "0":
        return "SPECTRAL_EXT_CUDA=0"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if (
        cpp_extension.CUDA_HOME is None
        or shutil.which("nvcc", path=os.path.join(cpp_extension.CUDA_HOME, "bin")) is None
    ):
        return "nvcc was not found (set CUDA_HOME)"
    return None


def sources(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(pattern))


NO_CUDA = why_no_cuda()
if NO_CUDA is None and not torch.cuda.is_available():
    os.environ.setdefault(
        "TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX"
    )  # no GPU here to ask; an empty list is an error in torch


class BuildExtension(cpp_extension.BuildExtension):
    """Says what is built, and writes it to spectral_ext/_build_info.py beside the binary."""

    def run(self) -> None:
        print(
            f"spectral-ext: building for torch {torch.__version__},",
            "CPU only: " + NO_CUDA if NO_CUDA else f"CUDA {torch.version.cuda}",
        )
        super().run()
        info = {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "stable_abi": "2.11",
            "cuda": None if NO_CUDA else torch.version.cuda,
            "cuda_architectures": None
            if NO_CUDA
            else os.environ.get("TORCH_CUDA_ARCH_LIST", "of the GPU at build time"),
            "why_no_cuda": NO_CUDA,
        }
        text = '"""Written by setup.py: what this binary was built against."""\n\n' + f"BUILD = {info!r}\n"
        Path(self.get_ext_fullpath("spectral_ext._C")).with_name("_build_info.py").write_text(text)


def extension():
    cxx = ["-O3", "-g0", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unused-parameter"]
    cxx += [f"-DTORCH_TARGET_VERSION={STABLE_ABI_TARGET}"]
    host = sources("csrc/ops/*.cpp") + sources("csrc/cpu/*.cpp")
    if NO_CUDA:
        host = [path for path in host if not path.endswith("_cuda.cpp")]
        return cpp_extension.CppExtension(
            "spectral_ext._C", host, include_dirs=[str(ROOT / "csrc")], extra_compile_args=cxx
        )
    nvcc = ["-O3", "--expt-relaxed-constexpr", "-Xptxas=-warn-spills"]
    return cpp_extension.CUDAExtension(
        "spectral_ext._C",
        host + sources("csrc/cuda/*.cu"),
        include_dirs=[str(ROOT / "csrc")],
        extra_compile_args={"cxx": [*cxx, "-DUSE_CUDA"], "nvcc": nvcc},
    )


setup(ext_modules=[extension()], cmdclass={"build_ext": BuildExtension})
