"""Participation ratios: Theorem 9, Appendices B and I."""

from __future__ import annotations

from spectral_ext.audit.frozen import Frozen
from spectral_ext.audit.verdict import Check, Claim, number_check, range_check, rounds_to
from spectral_ext.spectra import zeta_bound

FILE = "intrinsic_dim"
CURVATURE, GRADIENT = "eff_rank_curvature_pr", "eff_rank_gradient_pr"
APPENDIX_B = (  # experiment, layer, n, curvature PR, gradient PR
    ("intrinsic_dim_resnet", "conv1", 27, "1.7", "4.6"),
    ("intrinsic_dim_resnet", "layer3.0.conv1", 256, "1.2", "37.4"),
    ("intrinsic_dim_gpt2", "block5.mlp.0", 384, "1.0", "2.6"),
)


def _bound(frozen: Frozen) -> list[Check]:
    rows = [row for row in frozen.dimension() if row["alpha_gamma_product"] > 1]
    obeys = {row["name"]: row[CURVATURE] <= zeta_bound(row["alpha_gamma_product"]) for row in rows}
    broken = [f"{row['name']} {row[CURVATURE]:.2f} > {zeta_bound(row['alpha_gamma_product']):.2f}" for row in rows
              if not obeys[row["name"]]]  # fmt: skip
    gpt = [row for row in rows if row["experiment"] == "intrinsic_dim_gpt2"]
    held = all(obeys[row["name"]] for row in gpt)
    return [
        Check(f"the {len(rows)} layers with αγ > 1", f"broken by {len(broken)}: {'; '.join(broken)}", not broken),
        Check(f"the {len(gpt)} GPT-2 layers among them", "obeyed by all" if held else "broken", held),
    ]


def _two(frozen: Frozen) -> list[Check]:
    return [number_check("ζ(2)²/ζ(4)", zeta_bound(2.0), "2.5")]


def _range(key: str, low: str, high: str) -> Claim:
    def check(frozen: Frozen) -> list[Check]:
        rows = frozen.dimension()
        networks = [row for row in rows if row["experiment"] != "scaling_test"]
        without = [row for row in networks if not row["name"].startswith("block0")]
        resnet = [row for row in networks if row["experiment"] == "intrinsic_dim_resnet"]
        return [
            range_check(
                f"all {len(networks)} layers of ResNet-18 and GPT-2", [row[key] for row in networks], low, high
            ),
            range_check("the same without GPT-2's block 0 (not stated)", [row[key] for row in without], low, high),
            range_check("ResNet-18 alone (not stated)", [row[key] for row in resnet], low, high),
        ]

    what = "curvature" if key == CURVATURE else "gradient"
    return Claim("§7.2", f"participation ratio of the {what}", f"{low}–{high}", (FILE,), check)


def _row(experiment: str, name: str, n: int, curvature: str, gradient: str) -> Claim:
    def check(frozen: Frozen) -> list[Check]:
        row = next(one for one in frozen.dimension(experiment) if one["name"] == name)
        good = rounds_to(row[CURVATURE], curvature) and rounds_to(row[GRADIENT], gradient)
        text = f"{row['n_total_directions']}, {row[CURVATURE]:.2f}, {row[GRADIENT]:.2f}"
        return [Check("the stored ratios", text, good and row["n_total_directions"] == n)]

    return Claim("App. B", f"{name}: n, curvature PR, gradient PR", f"{n}, {curvature}, {gradient}", (FILE,), check)


def _width(width: int, published: str) -> Claim:
    def check(frozen: Frozen) -> list[Check]:
        values = {row["width"]: row[CURVATURE] for row in frozen.dimension("scaling_test")}
        all_of_them = ", ".join(f"{w}: {v:.2f}" for w, v in values.items())
        return [number_check(f"width {width} (by width: {all_of_them})", values[width], published)]

    return Claim("App. I", f"curvature PR at width {width}", published, (FILE,), check)


def _change(frozen: Frozen) -> list[Check]:
    values = {row["width"]: row[CURVATURE] for row in frozen.dimension("scaling_test")}
    return [number_check("width 512 minus width 64", values[512] - values[64], "0.7")]


CLAIMS = (
    Claim("Theorem 9", "PR_h ≤ ζ(αγ)²/ζ(2αγ) where αγ > 1", "bound", (FILE,), _bound,
          "The theorem assumes exact power laws; fitted exponents do not give a bound on measured layers"),
    Claim("Theorem 9", "the bound at αγ = 2", "2.5", (), _two),
    _range(CURVATURE, "1.0", "1.8"),
    _range(GRADIENT, "1.8", "58"),
    *(_row(*row) for row in APPENDIX_B),
    _width(64, "2.5"),
    _width(512, "3.3"),
    Claim("§7.2", "width 64 to 512 changes the participation ratio by", "0.7", (FILE,), _change),
)  # fmt: skip
