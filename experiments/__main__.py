"""``python -m experiments``: list, run, report, forget.

run      trains and measures what the journal does not hold yet, experiment by experiment, then writes the report;
         an interrupted run goes on from the last finished piece
report   writes RESULTS.md and the figures from the journal alone
forget   takes runs out of a journal, so that they are run again
"""

from __future__ import annotations

import argparse
import importlib
import resource
import sys
import time
from pathlib import Path

import torch
from rich.console import Console

from experiments.data import DataError
from experiments.journal import JOURNAL, Journal, JournalError, StaleResultError, journal_here
from experiments.paper import EXPERIMENTS
from experiments.report import write_report
from experiments.studies import SCALES, SEEDS, Laboratory
from experiments.sweep import FILE as SWEEP_FILE


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m experiments", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("job", choices=("list", "run", "report", "forget"))
    parser.add_argument("names", nargs="*", help="experiments (all if none); for forget, shell patterns of keys")
    parser.add_argument("--scale", choices=tuple(SCALES), default="small", help="small: two CPU cores; full: one GPU")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help=f"seeds of each study (default {len(SEEDS)})")
    parser.add_argument("--data", help="folder of the data")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch; part of the machine (default 1)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--journal", type=Path, help="file of the runs; without it the one of this machine in results/")
    parser.add_argument("--sweep-journal", type=Path, help="the same of the optimizers' runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of RESULTS.md")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    options = _arguments(argv)
    console = Console(soft_wrap=True)
    try:
        if options.job == "list":
            for name in EXPERIMENTS:
                console.print(f"{name:17}", importlib.import_module(f"experiments.paper.{name}").TITLE, highlight=False)
            return 0
        if options.job == "forget":
            path = journal_here(JOURNAL, options.journal)
            gone = [key for pattern in options.names for key in Journal(path).forget(pattern)]
            console.print(f"{len(gone)} runs taken out of {path}")
            return 0
        return _run(options, console)
    except (DataError, JournalError, StaleResultError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace, console: Console) -> int:
    unknown = [name for name in options.names if name not in EXPERIMENTS]
    if unknown:
        print(f"error: no experiment {', '.join(unknown)}: python -m experiments list", file=sys.stderr)
        return 2
    torch.set_num_threads(options.threads)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("error: torch sees no CUDA device: leave out --device", file=sys.stderr)
        return 2
    start = time.monotonic()

    def progress(text: str) -> None:
        console.print(f"{time.monotonic() - start:6.0f} s  {text}", highlight=False)

    lab = Laboratory(
        options.scale,
        Journal(journal_here(JOURNAL, options.journal)),
        Journal(journal_here(SWEEP_FILE, options.sweep_journal)),
        folder=options.data,
        seeds=range(options.seeds),
        device=options.device,
        read_only=options.job == "report",
        progress=progress,
    )
    for name in (options.names or EXPERIMENTS) if options.job == "run" else ():
        module = importlib.import_module(f"experiments.paper.{name}")
        progress(module.TITLE)
        for table in module.tables(lab):
            console.print(table.rich())
        module.claims(lab)
    path = write_report(lab, options.out)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    progress(f"wrote {path}; peak memory {peak:.0f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
