"""`make bench`: every op against its plain reference and its peers, as ratios. `--full` for the whole grids."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.harness import Row, as_json, machine


def table(name: str, rows: list[Row]) -> Table:
    shown = Table(title=name, caption="ratio: the case's peer / this method, above 1 is faster", title_justify="left")
    for column in ("case", "method"):
        shown.add_column(column)
    for column in ("ms", "ratio", "error", "extra MiB"):
        shown.add_column(column, justify="right")
    for row in rows:
        error = "" if row.error is None else f"{row.error:.1e}"
        memory = "" if row.peak_mebibytes is None else f"{row.peak_mebibytes:.1f}"
        shown.add_row(row.case, row.method, f"{row.milliseconds:.2f}", f"{row.ratio:.2f}", error, memory)
    return shown


def main() -> None:
    here = Path(__file__).parent
    known = sorted(path.stem.removeprefix("bench_") for path in here.glob("bench_*.py"))
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"which benchmarks (all: {', '.join(known)})")
    parser.add_argument("--full", action="store_true", help="the whole grid instead of the quick one")
    parser.add_argument("--json", type=Path, metavar="FOLDER", help="also write one JSON file a benchmark here")
    options = parser.parse_args()
    for name in options.names:
        if name not in known:
            parser.error(f"no benchmark {name!r}; there are {', '.join(known)}")
    console = Console()
    console.print(" · ".join(f"{key} {value}" for key, value in machine().items()))
    for name in options.names or known:
        rows = importlib.import_module(f"benchmarks.bench_{name}").bench(quick=not options.full)
        console.print(table(name, rows))
        if options.json:
            options.json.mkdir(parents=True, exist_ok=True)
            (options.json / f"{name}.json").write_text(json.dumps(as_json(rows), indent=1))


if __name__ == "__main__":
    main()
