"""Compiles every CUDA kernel to cubin and every CUDA binding to an object: needs nvcc, no GPU, any torch.

Fails on any compiler warning in a binding, on local memory that tools/cubin_table.json does not name, and where
registers or shared memory of a kernel differ from the table by more than the tolerance. ``--update`` rewrites the
table; a kernel that spills stands there with its bytes, so that a new spill shows as a change.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import toolchain
from toolchain import ROOT

TABLE = ROOT / "tools" / "cubin_table.json"
ARCHITECTURES = ("80", "90", "100", "103", "120")
REGISTER_TOLERANCE = 8
"""Compilers differ by a few registers from release to release."""

ENTRY = re.compile(r"Compiling entry function '(\S+)'")
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?")


def fail(message: str) -> None:
    sys.exit(f"check_cubin: {message}")


def demangle(names: list[str]) -> list[str]:
    tool = shutil.which("cu++filt") or shutil.which("c++filt")
    if tool is None:
        return names
    text = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    short = []
    for name in text.splitlines():
        name = re.sub(r"\(anonymous namespace\)::|<unnamed>::|spectral_ext::cuda::|_GLOBAL__N_[^:]*::|^void ", "", name)
        # The parameters follow from the template arguments.
        depth = 0
        for i, c in enumerate(name):
            depth += (c == "<") - (c == ">")
            if c == "(" and depth == 0 and i > 0:
                name = name[:i]
                break
        short.append(name)
    return short


def compile_kernels(nvcc: str, source: Path, architecture: str, folder: Path) -> dict[str, dict[str, int]]:
    """Registers, shared memory and spills of each kernel of one file."""
    command = [nvcc, "-std=c++17", "-O3", "--expt-relaxed-constexpr", f"-I{ROOT / 'csrc'}", "-Werror", "all-warnings"]
    command += [f"-gencode=arch=compute_{architecture},code=sm_{architecture}", "-cubin"]
    command += [
        "-Xptxas",
        "-v,-warn-spills,-warn-lmem-usage",
        "-o",
        str(folder / f"{source.stem}.{architecture}.cubin"),
    ]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True)
    output = done.stdout + done.stderr
    # ptxas's own warnings become errors under -Werror: report what they say of spills below, anything else here.
    kernels: dict[str, dict[str, int]] = {}
    names, current = [], None
    for line in output.splitlines():
        if match := ENTRY.search(line):
            current = {}
            names.append(match[1])
            kernels[match[1]] = current
        elif current is not None and (match := FRAME.search(line)):
            current["stack"], current["spill_stores"], current["spill_loads"] = map(int, match.groups())
        elif current is not None and (match := USED.search(line)):
            current["registers"], current["shared"] = int(match[1]), int(match[2] or 0)
    spilled = any(k.get("stack") or k.get("spill_stores") or k.get("spill_loads") for k in kernels.values())
    if done.returncode and not spilled:
        fail(f"{source.name} for sm_{architecture}:\n{output}")
    return {f"{source.stem}: {short}": kernels[name] for name, short in zip(names, demangle(names))}


def compile_binding(source: Path, folder: Path, cuda_include: Path) -> str:
    """The compiler's complaints about one binding, empty if there are none."""
    import sysconfig

    from torch.utils import cpp_extension

    command = [*toolchain.cxx(), "-std=c++17", "-O1", "-c", *toolchain.CXX_FLAGS, "-DUSE_CUDA", f"-I{ROOT / 'csrc'}"]
    command += [f"-isystem{path}" for path in cpp_extension.include_paths()]
    command += [f"-isystem{cuda_include}", f"-isystem{sysconfig.get_paths()['include']}"]
    done = subprocess.run(
        [*command, str(source), "-o", str(folder / f"{source.stem}.o")], capture_output=True, text=True
    )
    return done.stderr


def entry(kernel: dict[str, int]) -> dict[str, int]:
    local = max(kernel["stack"], kernel["spill_stores"], kernel["spill_loads"])
    return {"registers": kernel["registers"], "shared": kernel["shared"], **({"local": local} if local else {})}


def format_table(table: dict) -> str:
    """JSON with a kernel a line, so that a change reads as one."""
    blocks = []
    for arch, kernels in table.items():
        lines = [f"    {json.dumps(name)}: {json.dumps(numbers)}" for name, numbers in kernels.items()]
        blocks.append(f'  "{arch}": {{\n' + ",\n".join(lines) + "\n  }")
    return "{\n" + ",\n".join(blocks) + "\n}\n"


def differences(found: dict, table: dict) -> list[str]:
    lines = []
    for architecture, kernels in found.items():
        known = table.get(architecture, {})
        for name in sorted(kernels.keys() | known.keys()):
            new, old = kernels.get(name), known.get(name)
            if new is None or old is None:
                lines.append(f"{architecture} {name}: {'gone' if new is None else 'new'}")
            elif new.get("local", 0) > old.get("local", 0):
                lines.append(
                    f"{architecture} {name}: spills {new['local']} bytes, of which {old.get('local', 0)} are known"
                )
            elif new["shared"] != old["shared"] or abs(new["registers"] - old["registers"]) > REGISTER_TOLERANCE:
                lines.append(f"{architecture} {name}: {old} → {new}")
    return lines


def release(nvcc: str) -> str:
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"release (\S+),", text)
    return match[1] if match else "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--update", action="store_true", help="write tools/cubin_table.json instead of comparing with it"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    nvcc = shutil.which("nvcc") or fail("nvcc is not on the path")
    sources = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    bindings = sorted((ROOT / "csrc" / "ops").glob("*_cuda.cpp"))
    try:
        include = toolchain.cuda_home() / "include"
    except toolchain.ToolchainError as problem:
        fail(str(problem))
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(arguments.jobs) as pool:
        folder = Path(name)
        runs = [(source, arch) for arch in ARCHITECTURES for source in sources]
        results = list(pool.map(lambda run: compile_kernels(nvcc, run[0], run[1], folder), runs))
        complaints = list(pool.map(lambda b: compile_binding(b, folder, include), bindings))
    found: dict[str, dict] = {f"sm_{arch}": {} for arch in ARCHITECTURES}
    for (_, arch), kernels in zip(runs, results):
        found[f"sm_{arch}"] |= kernels
    if any(complaints):
        fail("the CUDA bindings do not compile cleanly:\n" + "\n".join(filter(None, complaints)))
    table = {arch: {name: entry(k) for name, k in sorted(kernels.items())} for arch, kernels in found.items()}
    known = {} if arguments.update else json.loads(TABLE.read_text())
    if arguments.update:
        TABLE.write_text(format_table({"nvcc": {"release": release(nvcc)}, **table}))
    elif known.pop("nvcc")["release"] != release(nvcc):
        print(f"the table is of another release than nvcc {release(nvcc)}: registers are not compared")
        if spills := [f"{a} {n}: {k}" for a, ks in table.items() for n, k in ks.items() if "local" in k]:
            fail("local memory is used:\n" + "\n".join(spills))
    elif changed := differences(table, known):
        fail("kernels differ from tools/cubin_table.json (--update accepts):\n" + "\n".join(changed))
    count, local = sum(map(len, table.values())), [k for ks in table.values() for k in ks.values() if "local" in k]
    print(
        f"{count} kernels for sm_{', sm_'.join(ARCHITECTURES)}, {len(local)} known spills, "
        f"{len(bindings)} CUDA bindings compiled"
    )


if __name__ == "__main__":
    main()
