"""One command on a CUDA machine: builds, tests, sanitizes, measures and times, and keeps whatever was finished.

    python tools/gpu_check.py --out results                     everything, in the order below
    python tools/gpu_check.py --out results --only build,tests  some of it: later calls add to the same folder
    python tools/gpu_check.py --out results --device cpu        a rehearsal, with small sizes and without CUDA

Uses the Python that runs it and the torch it finds (2.11 with CUDA or newer); needs nvcc and no network. A call ends
within ``--seconds`` (540): a step that has no time left is stopped or not begun, and the next call takes it with
``--only``. ``results/<step>.log`` grows while a step runs; ``results/report.json`` is written after every step, and the
tables of the measuring steps after every row.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import toolchain
from toolchain import ROOT

PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--maxfail=20"]
CUDA_TESTS = ["python_tests/test_cuda_ops.py", "python_tests/test_optim_cuda.py"]
TAIL = 4000


@dataclass
class Call:
    """One run of this command: where results go, which device, and when it must end."""

    out: Path
    device: str
    deadline: float

    def run(self, name: str, command: Sequence[str], limit: float = 600) -> dict[str, Any]:
        """Runs it in the repository root, its output in ``<name>.log`` as it comes."""
        left = min(limit, self.deadline - time.monotonic())
        if left < 5:
            return {"ok": False, "status": "no time left in this call"}
        started, log = time.monotonic(), self.out / f"{name}.log"
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        with log.open("w") as output:
            process = subprocess.Popen(
                list(command), cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
            )
            try:
                status: Any = process.wait(left)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                status = f"stopped after {left:.0f} s"
        text = log.read_text(errors="replace")
        return {
            "ok": status == 0,
            "status": status,
            "seconds": round(time.monotonic() - started, 1),
            "end": text[-TAIL:],
        }


def machine(call: Call) -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {
        "ok": call.device == "cpu" or torch.cuda.is_available(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "platform": platform.platform(),
        "device": call.device,
    }
    if not found["ok"]:
        found["status"] = "torch sees no CUDA device"
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_GiB": round(properties.total_memory / 2**30, 1),
            "L2_MiB": round(properties.L2_cache_size / 2**20, 1),
            "cudnn": torch.backends.cudnn.version(),
        }
        call.run("nvidia-smi", ["nvidia-smi"], 30)
    return found


def build(call: Call) -> dict[str, Any]:
    return call.run("build", [sys.executable, "setup.py", "build_ext", "--inplace"])


def tests(call: Call) -> dict[str, Any]:
    files = CUDA_TESTS if call.device == "cuda" else ["python_tests/test_output_factor.py", *CUDA_TESTS]
    return call.run("tests", [*PYTEST, *files])


def kernel_program(call: Call) -> dict[str, Any]:
    """Every kernel in a program without torch (cuDNN is not ours to check), compiled once for all sanitizers."""
    home = toolchain.cuda_home()
    if home is None:
        return {"ok": False, "status": "nvcc was not found: set CUDA_HOME"}
    kernels = [str(path) for path in sorted((ROOT / "csrc" / "cuda").glob("*.cu"))]
    source = str(ROOT / "python_tests" / "cuda_emulator" / "kernel_check.cpp")
    flags = ["-std=c++17", "-O3", "-lineinfo", "--expt-relaxed-constexpr", f"-I{ROOT / 'csrc'}", "--threads", "0"]
    flags += ["-arch=native" if call.device == "cuda" else "-arch=sm_90"]
    program = ["-x", "cu", source, *kernels, "-o", str(call.out / "kernel_check")]
    return call.run("kernel_check", [str(home / "bin" / "nvcc"), *flags, *program])


def sanitizer(tool: str) -> Callable[[Call], dict[str, Any]]:
    def run(call: Call) -> dict[str, Any]:
        if call.device != "cuda":
            return {"ok": True, "status": "needs a GPU: the emulator's race check stands for it in the tests"}
        program, home = call.out / "kernel_check", toolchain.cuda_home()
        if not program.is_file() or home is None:
            return {"ok": False, "status": f"{program} was not built: see kernel_check.log"}
        command = [str(home / "bin" / "compute-sanitizer"), "--tool", tool, "--error-exitcode", "9", str(program)]
        return call.run(tool, command, 180)

    return run


def script(name: str) -> Callable[[Call], dict[str, Any]]:
    def run(call: Call) -> dict[str, Any]:
        table = call.out / f"{name}.json"
        command = [sys.executable, f"tools/gpu_{name}.py", "--device", call.device, "--out", str(table)]
        done = call.run(name, command)
        if table.is_file():
            done["table"] = json.loads(table.read_text())
        return done

    return run


GROUPS: dict[str, dict[str, Callable[[Call], dict[str, Any]]]] = {
    "build": {"build": build},
    "tests": {"tests": tests},
    "sanitize": {
        "kernel_check": kernel_program,
        "memcheck": sanitizer("memcheck"),
        "racecheck": sanitizer("racecheck"),
        "synccheck": sanitizer("synccheck"),
    },
    "measure": {"measure": script("measure")},
    "bench": {"bench": script("bench")},
}


def write(path: Path, value: Any) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1) + "\n")
    partial.replace(path)


def names(text: str) -> list[str]:
    chosen = text.split(",")
    if unknown := sorted(set(chosen) - GROUPS.keys()):
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; there are {', '.join(GROUPS)}")
    return chosen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder of the results; it may hold earlier ones")
    parser.add_argument("--only", type=names, default=list(GROUPS), help=f"of {','.join(GROUPS)}, comma-separated")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=540, help="this call ends within them")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    call = Call(out, arguments.device, time.monotonic() + arguments.seconds)
    path = out / "report.json"
    report: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    steps = {"machine": machine}
    for group in arguments.only:
        steps |= GROUPS[group]
    good = True
    for name, step in steps.items():
        print(f"{name} …", end=" ", flush=True)
        started = time.monotonic()
        try:
            report[name] = step(call)
        except Exception as problem:
            report[name] = {"ok": False, "status": f"{type(problem).__name__}: {problem}"}
        report[name].setdefault("seconds", round(time.monotonic() - started, 1))
        good &= report[name]["ok"]
        state = "ok" if report[name]["ok"] else f"failed ({report[name].get('status')})"
        print(f"{state}, {report[name]['seconds']} s", flush=True)
        write(path, report)
    print(f"wrote {path}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
