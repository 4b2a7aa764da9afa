"""What was built, against what, and what is here: ``python -m spectral_ext.collect_env``. Every probe is guarded."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spectral_ext._version import __version__


def _probe(name: str, probe: Callable[[], Any], into: dict[str, str]) -> None:
    try:
        into[name] = str(probe())
    except Exception as error:
        into[name] = f"unknown ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"


def _processor() -> str:
    with open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _compiler(command: str, line: int) -> str:
    path = shutil.which(command)
    if path is None:
        return "not found"
    return subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20).stdout.splitlines()[line]


def _package(name: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def collect() -> dict[str, str]:
    """The environment as an ordered mapping of plain strings."""
    found: dict[str, str] = {}
    _probe("spectral-ext", lambda: __version__, found)
    _probe("location", lambda: Path(__file__).parent, found)

    def build(key: str) -> Callable[[], Any]:
        def read() -> Any:
            from spectral_ext._build_info import BUILD

            return BUILD[key]

        return read

    for key in ("torch", "python", "stable_abi", "cuda", "cuda_architectures", "why_no_cuda"):
        _probe(f"built: {key}", build(key), found)

    def ops() -> str:
        import torch

        from spectral_ext._extension import compiled

        names = sorted(name for name in torch._C._dispatch_get_all_op_names() if name.startswith("spectral_ext::"))
        return f"loaded, {'with' if compiled.compiled_with_cuda() else 'without'} CUDA: {', '.join(names)}"

    def capability() -> str:
        from spectral_ext._extension import compiled

        return compiled.cpu_capability()

    _probe("ops", ops, found)
    _probe("SIMD in use", capability, found)
    _probe("torch", lambda: __import__("torch").__version__, found)
    _probe("torch CUDA", lambda: __import__("torch").version.cuda, found)
    _probe("GPU", lambda: _gpus(), found)
    _probe("threads", lambda: __import__("torch").get_num_threads(), found)
    _probe("Python", platform.python_version, found)
    _probe("platform", platform.platform, found)
    _probe("processor", _processor, found)
    _probe("C++ compiler", lambda: _compiler("c++", 0), found)
    _probe("nvcc", lambda: _compiler("nvcc", -1), found)
    for name in ("numpy", "scipy", "pandas", "matplotlib", "curvlinops-for-pytorch"):
        _probe(name, lambda name=name: _package(name), found)  # type: ignore[misc]
    return found


def _gpus() -> str:
    import torch

    if not torch.cuda.is_available():
        return "none"
    return ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))


def main() -> None:
    found = collect()
    width = max(map(len, found))
    for name, value in found.items():
        print(f"{name:<{width}}  {value}")


if __name__ == "__main__":
    main()
