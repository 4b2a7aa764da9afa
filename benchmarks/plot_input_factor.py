"""From benchmarks/results/input_factor.json to a table (Markdown, printed) and a bar chart (SVG beside the JSON)."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / "results" / "input_factor.json"
OURS, REORDERED = "input_factor", "input_factor, channels_last order"
PEERS = ("F.unfold + matmul", "chunked unfold", "curvlinops", "kfac-pytorch")


def main() -> None:
    held = json.loads(RESULTS.read_text())
    cases: dict[str, dict[str, dict]] = {}
    for row in held["rows"]:
        cases.setdefault(row["case"], {})[row["method"]] = row
    cases = {case: found for case, found in cases.items() if OURS in found}

    columns = (
        "F.unfold + matmul, ms",
        *PEERS[1:],
        "**ours**",
        "ours, channels_last order",
        "error",
        "peer, MiB",
        "ours, MiB",
    )
    machine = held["machine"]
    print(f"{machine['processor']}, one thread, float32, torch {machine['torch']}; speed-up over {PEERS[0]}\n")
    print("| case | " + " | ".join(columns) + " |")
    print("|---|" + "---|" * len(columns))
    for case, found in cases.items():
        peer, ours = found[PEERS[0]], found[OURS]
        ratios = [f"{found[name]['ratio']:.2f}×" if name in found else "" for name in (*PEERS[1:], OURS, REORDERED)]
        ratios[3] = f"**{ratios[3]}**"
        memory = [f"{row['peak_mebibytes']:.0f}" for row in (peer, ours)]
        cells = (f"{peer['milliseconds']:.1f}", *ratios, f"{ours['error']:.0e}", *memory)
        print(f"| {case} | " + " | ".join(cells) + " |")

    names = list(cases)[::-1]
    figure, axes = plt.subplots(figsize=(8, 0.32 * len(names) + 1))
    axes.barh(names, [cases[name][OURS]["ratio"] for name in names], color="#2a6f97")
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("speed-up over F.unfold + matmul (one thread, float32)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(RESULTS.with_suffix(".svg"))


if __name__ == "__main__":
    main()
