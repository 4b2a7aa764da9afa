"""One command on a CUDA machine: builds in place, tests, sanitizes and times the CUDA kernels, and writes one JSON.

    python tools/gpu_check.py [--out gpu_check.json]

Uses the Python that runs it and the torch it finds (2.11 with CUDA or newer); needs nvcc and no network. Every step is
guarded: a failure is recorded with the end of its output and the next step runs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TESTS = ["python_tests/test_cuda_ops.py", "python_tests/test_cuda_emulation.py"]
TAIL = 20000


def command(*arguments: str, timeout: float = 1800, **environment: str) -> dict[str, Any]:
    """Runs it in the repository root; its exit status, seconds and the end of its output."""
    started = time.monotonic()
    try:
        done = subprocess.run(
            arguments,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout,
        )
        status: Any = done.returncode
        output = done.stdout
    except subprocess.TimeoutExpired as stopped:
        status, output = "timeout", (stopped.stdout or b"").decode(errors="replace")
    seconds = round(time.monotonic() - started, 1)
    return {"ok": status == 0, "status": status, "seconds": seconds, "output": output[-TAIL:]}


def machine() -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {
        "ok": torch.cuda.is_available(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "platform": platform.platform(),
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_GiB": round(properties.total_memory / 2**30, 1),
            "devices": torch.cuda.device_count(),
            "cudnn": torch.backends.cudnn.version(),
        }
    for tool in ("nvcc", "nvidia-smi"):
        if shutil.which(tool):
            query = ["--query-gpu=name,driver_version,clocks.sm,clocks.mem", "--format=csv"]
            arguments = ["--version"] if tool == "nvcc" else query
            found[tool] = command(tool, *arguments, timeout=60)["output"].strip()
    return found


def build() -> dict[str, Any]:
    return command(sys.executable, "setup.py", "build_ext", "--inplace")


def tests() -> dict[str, Any]:
    return command(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS)


def all_tests() -> dict[str, Any]:
    return command(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "python_tests", timeout=2400)


def cuda_tool(name: str) -> str:
    folders = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    for path in (None, *(os.path.join(folder, "bin") for folder in folders)):
        if found := shutil.which(name, path=path):
            return found
    raise FileNotFoundError(f"{name} was not found: set CUDA_HOME")


def sanitizer(tool: str) -> Callable[[], dict[str, Any]]:
    """compute-sanitizer over every kernel of ours, in a program without torch: cuDNN's are not ours to check."""

    def run() -> dict[str, Any]:
        program = ROOT / "build" / "kernel_check"
        program.parent.mkdir(exist_ok=True)
        kernels = [str(path) for path in sorted((ROOT / "csrc" / "cuda").glob("*.cu"))]
        source = str(ROOT / "python_tests" / "cuda_emulator" / "kernel_check.cpp")
        flags = ["-std=c++17", "-O3", "-lineinfo", "--expt-relaxed-constexpr", "-arch=native", f"-I{ROOT / 'csrc'}"]
        built = command(cuda_tool("nvcc"), *flags, "-x", "cu", source, *kernels, "-o", str(program))
        if not built["ok"]:
            return built
        return command(cuda_tool("compute-sanitizer"), "--tool", tool, "--error-exitcode", "9", str(program))

    return run


def kernels() -> dict[str, Any]:
    done = command(sys.executable, "tools/gpu_bench.py")
    if done["ok"]:
        done["table"] = json.loads(done.pop("output").splitlines()[-1])
    return done


def benchmarks() -> dict[str, Any]:
    return command(sys.executable, "-m", "benchmarks", timeout=2400)


STEPS: dict[str, Callable[[], dict[str, Any]]] = {
    "machine": machine,
    "build": build,
    "tests": tests,
    "kernels": kernels,
    "memcheck": sanitizer("memcheck"),
    "racecheck": sanitizer("racecheck"),
    "synccheck": sanitizer("synccheck"),
    "benchmarks": benchmarks,
    "all_tests": all_tests,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "gpu_check.json")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS), help="steps to run")
    arguments = parser.parse_args()
    report: dict[str, Any] = {}
    for name in arguments.only:
        print(f"{name} …", end=" ", flush=True)
        try:
            report[name] = STEPS[name]()
        except Exception as problem:
            report[name] = {"ok": False, "status": f"{type(problem).__name__}: {problem}"}
        print("ok" if report[name].get("ok") else f"failed: {report[name].get('status', 'no CUDA device')}", flush=True)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")  # after every step: a lease may end
    print(f"wrote {arguments.out}")
    sys.exit(0 if all(step.get("ok") for step in report.values()) else 1)


if __name__ == "__main__":
    main()
