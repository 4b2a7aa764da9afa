"""Processes of the tests, started from a server that has torch loaded already: that saves seconds per process."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path

import torch.multiprocessing as mp

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["torch", "torch.distributed.checkpoint", "torch.distributed.fsdp", "torch.distributed.tensor.parallel"]
)


def run_ranks(worker: Callable, *arguments: object, ranks: int = 2) -> None:
    """``worker(rank, port, *arguments)`` in one process per rank; the first error is raised here, and ends all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(worker, (port, *arguments), nprocs=ranks, start_method="forkserver")


def run_script(script: str, environment: dict[str, str | None], folder: Path) -> tuple[int, str, str]:
    """Exit status, output and errors of Python lines that import spectral_ext anew; None removes a variable."""
    process = CONTEXT.Process(target=_script, args=(script, environment, str(folder)))
    process.start()
    process.join()
    return process.exitcode or 0, (folder / "stdout").read_text(), (folder / "stderr").read_text()


def _script(script: str, environment: dict[str, str | None], folder: str) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    exec(script, {"__name__": "__main__"})
