"""Writes the README's tables of speed, reach and truth from the committed results.

    python tools/readme_tables.py [--check]

``--check`` writes nothing and exits with 1 where the README says something else than the results.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def load(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def cell(name: str, case: str, method: str) -> dict[str, Any]:
    """The row of one case and method. Raises LookupError where the results do not hold it."""
    for row in load(name)["rows"]:
        if row["case"] == case and row["method"] == method:
            return row
    raise LookupError(f"{name}.json has no {method!r} on {case!r}")


def ratio(name: str, case: str, method: str, peer: str | None = None) -> float:
    """How many times faster ``method`` is than the case's own peer, or than ``peer``."""
    ours = cell(name, case, method)["ratio"]
    return ours / cell(name, case, peer)["ratio"] if peer else ours


def spread(values: list[float]) -> str:
    digits = 0 if min(values) >= 10 else 1
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return low if low == high else f"{low}–{high}"


def speed() -> list[str]:
    convolutions = [f"3×3 {size} B=128" for size in ("64@32", "128@16", "256@8", "512@4")]
    others = [f"{size} B=128" for size in ("5×5 64@16", "3×3 s2 64@32", "1×1 64@32")]
    quotients = ["B=32 64@32 k=3 s=1 → 64, K=20", "B=64 128@16 k=3 s=1 → 128, K=20", "B=64 256@8 k=3 s=1 → 256, K=20"]
    resnet, gpt = "ResNet-18 width 16, B=64, eval", "GPT 4 layers, d=128, T=64, B=8"
    modes = [f"ResNet-18, d=0.1 {mode}, 1 thread" for mode in ("absolute", "spectral", "mean")]
    alphas = ("0.5", "0.84", "1", "1.3", "1.5", "3", "4", "4.5")
    unfold = "F.unfold + matmul"
    lines = [
        ("`input_factor`, 3×3, batch 128", f"`{unfold}`",
         spread([ratio("input_factor", case, "input_factor") for case in convolutions])),
        ("… 5×5 / 3×3 stride 2 / 1×1", "same",
         " / ".join(spread([ratio("input_factor", case, "input_factor")]) for case in others)),
        ("`rayleigh_quotients`, 3×3, K = 20, all four outputs", "same",
         spread([ratio("rayleigh_quotients", case, "rayleigh_quotients") for case in quotients])),
        ("`directional_curvature`, ResNet-18 (width 16), top 20: `auto`", "double backward per direction",
         spread([ratio("directional_curvature", resnet, "auto")])),
        ("… 4-layer GPT: `auto`", "same", spread([ratio("directional_curvature", gpt, "auto")])),
        ("… the ResNet: `auto`", "curvlinops, batched matvec",
         spread([ratio("directional_curvature", resnet, "auto", "curvlinops, batched matvec")])),
        ("`SpectralNewton.step()`, ResNet-18, defaults", "`torch.optim.Muon` + AdamW",
         spread([ratio("optimizer_step", "ResNet-18", "SpectralNewton")])),
        ("… the same step", "AdamW alone",
         spread([ratio("optimizer_step", "ResNet-18", "SpectralNewton", "AdamW")])),
        ("… with damping by the mean and α = 1.5", "`torch.optim.Muon` + AdamW",
         spread([ratio("optimizer_step", "ResNet-18", "SpectralNewton, mean damping, alpha=1.5")])),
        ("`spectral_newton`, ResNet-18's matrices, α = 2", "Muon's five steps in bfloat16",
         spread([ratio("spectral_newton", case, "spectral_newton α=2") for case in modes])),
        ("… eight other α from 0.5 to 4.5", "same",
         spread([ratio("spectral_newton", case, f"spectral_newton α={alpha}") for case in modes for alpha in alphas])),
        ("… 1024×1024, α = 2 / 1 / 3", "same",
         " / ".join(spread([ratio("spectral_newton", "1024×1024, d=0.1 absolute, 1 thread", f"spectral_newton α={a}")])
                    for a in "213")),
    ]  # fmt: skip
    return ["| what | against | times faster |", "|---|---|---|", *(f"| {a} | {b} | {c} |" for a, b, c in lines)]


def reach() -> list[str]:
    lines = ["| model | matrices with a row | largest error of h |", "|---|---|---|"]
    for row in load("reach")["rows"]:
        lines.append(f"| {row['model']} | {100 * row['coverage']:.0f} % ({row['rows']} rows) | {row['error']:.0e} |")
    return lines


def truth() -> list[str]:
    exact, single, slope = (
        "float64, k = 1 and K, against double backward", "float32 against float64 at the last k",
        "|Δα| of float32 against float64",
    )  # fmt: skip
    cases = [f"{model}, trained 60 steps: accuracy" for model in ("ResNet-18 width 16", "GPT 4 layers")]

    def worst(method: str) -> str:
        return f"{max(cell('directional_curvature', case, method)['error'] for case in cases):.0e}"

    factor = cell("input_factor", "3×3 64@32 B=128", "input_factor")["error"]
    unfold = cell("input_factor", "3×3 64@32 B=128", "F.unfold + matmul")["error"]
    lines = [
        ("h_k in float64, against a double backward per direction", worst(exact)),
        ("h_k in float32, against float64, the weakest direction", worst(single)),
        ("α in float32, against float64", worst(slope)),
        ("`input_factor` in float32, against float64 (`F.unfold` + matmul: " + f"{unfold:.0e})", f"{factor:.0e}"),
    ]
    return ["| what | largest relative error |", "|---|---|", *(f"| {a} | {b} |" for a, b in lines)]


def filled(text: str) -> str:
    for name, table in (("speed", speed), ("reach", reach), ("truth", truth)):
        block = f"<!-- {name}: tools/readme_tables.py -->\n" + "\n".join(table()) + f"\n<!-- end of {name} -->"
        text, found = re.subn(rf"<!-- {name}: .*?<!-- end of {name} -->", lambda _, b=block: b, text, flags=re.DOTALL)
        if found != 1:
            raise LookupError(f"README.md has {found} places for the table of {name}, and needs one")
    return text


def main() -> int:
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    new = filled(text)
    if "--check" in sys.argv:
        if new != text:
            print("README.md does not say what the results say: run python tools/readme_tables.py")
        return int(new != text)
    readme.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
