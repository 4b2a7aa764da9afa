"""Participation ratios: Theorem 9, Appendices B and I."""

from __future__ import annotations

from spectral_ext.audit.frozen import Frozen, is_boundary
from spectral_ext.audit.verdict import Check, Claim, number_check, range_check, rounds_to
from spectral_ext.spectra import zeta_bound

FILE = "intrinsic_dim"
CURVATURE, GRADIENT = "eff_rank_curvature_pr", "eff_rank_gradient_pr"
APPENDIX_B = (  # experiment, layer, n, curvature PR, gradient PR
    ("intrinsic_dim_resnet", "conv1", 27, "1.7", "4.6"),
    ("intrinsic_dim_resnet", "layer3.0.conv1", 256, "1.2", "37.4"),
    ("intrinsic_dim_gpt2", "block5.mlp.0", 384, "1.0", "2.6"),
)


def _theorem(frozen: Frozen) -> list[Check]:
    exponents, counts = (1.1, 1.5, 2.0, 4.0), (1, 2, 10, 1000)
    worst = max(zeta_bound(s, n) / zeta_bound(s) for s in exponents for n in counts)
    text = f"PR_h / bound at most {worst:.3f}"
    return [Check("exact power laws, αγ of 1.1 to 4 and up to 1000 directions", text, worst <= 1)]


def _bound(frozen: Frozen) -> list[Check]:
    rows = [row for row in frozen.dimension() if row["alpha_gamma_product"] > 1]
    broken = [
        f"{row['name']} {row[CURVATURE]:.2f} > {zeta_bound(row['alpha_gamma_product']):.2f}"
        for row in rows
        if row[CURVATURE] > zeta_bound(row["alpha_gamma_product"])
    ]
    return [Check(f"the {len(rows)} layers with αγ > 1", f"broken by {len(broken)}: {'; '.join(broken)}", not broken)]


def _two(frozen: Frozen) -> list[Check]:
    return [number_check("ζ(2)²/ζ(4)", zeta_bound(2.0), "2.5")]


def _range(key: str, low: str, high: str) -> Claim:
    def check(frozen: Frozen) -> list[Check]:
        rows = frozen.dimension()
        networks = [row for row in rows if row["experiment"] != "scaling_test"]
        interior = [row for row in networks if not is_boundary(row["name"])]
        resnet = [row for row in networks if row["experiment"] == "intrinsic_dim_resnet"]
        return [
            range_check(
                f"all {len(networks)} layers of ResNet-18 and GPT-2", [row[key] for row in networks], low, high
            ),
            range_check(
                "the interior ones, neither first block nor head (not stated)",
                [row[key] for row in interior],
                low,
                high,
            ),
            range_check("ResNet-18 alone (not stated)", [row[key] for row in resnet], low, high),
        ]

    what = "curvature" if key == CURVATURE else "gradient"
    requires = f"the participation ratio of every layer, rounded as printed, lies in {low}–{high}"
    return Claim("§7.2", f"participation ratio of the {what}", f"{low}–{high}", (FILE,), requires, check)


def _row(experiment: str, name: str, n: int, curvature: str, gradient: str) -> Claim:
    def check(frozen: Frozen) -> list[Check]:
        row = next(one for one in frozen.dimension(experiment) if one["name"] == name)
        good = rounds_to(row[CURVATURE], curvature) and rounds_to(row[GRADIENT], gradient)
        text = f"{row['n_total_directions']}, {row[CURVATURE]:.2f}, {row[GRADIENT]:.2f}"
        return [Check("the stored ratios", text, good and row["n_total_directions"] == n)]

    requires = "the stored count and both ratios round to the printed ones"
    return Claim(
        "App. B", f"{name}: n, curvature PR, gradient PR", f"{n}, {curvature}, {gradient}", (FILE,), requires, check
    )


def _width(width: int, published: str) -> Claim:
    def check(frozen: Frozen) -> list[Check]:
        values = {row["width"]: row[CURVATURE] for row in frozen.dimension("scaling_test")}
        all_of_them = ", ".join(f"{w}: {v:.2f}" for w, v in values.items())
        return [number_check(f"width {width} (by width: {all_of_them})", values[width], published)]

    requires = f"the stored ratio at width {width} rounds to {published}"
    return Claim("App. I", f"curvature PR at width {width}", published, (FILE,), requires, check)


def _change(frozen: Frozen) -> list[Check]:
    values = {row["width"]: row[CURVATURE] for row in frozen.dimension("scaling_test")}
    return [number_check("width 512 minus width 64", values[512] - values[64], "0.7")]


CLAIMS = (
    Claim("Theorem 9", "PR_h ≤ ζ(αγ)²/ζ(2αγ) for exact power laws with αγ > 1", "bound", (),
          "the participation ratio of k^(−αγ) never exceeds its limit for infinitely many directions", _theorem,
          "It says nothing about a measured layer", by_construction=True),
    Claim("Abstract, §7.2", "measured layers obey the bound of Theorem 9 with their fitted αγ", "bound", (FILE,),
          "PR_h ≤ ζ(αγ)²/ζ(2αγ) in every layer with αγ > 1", _bound,
          "The theorem assumes exact power laws; fitted exponents do not give a bound on measured layers"),
    Claim("Theorem 9", "the bound at αγ = 2", "2.5", (), "ζ(2)²/ζ(4) = (π⁴/36)/(π⁴/90) = 2.5", _two,
          by_construction=True),
    _range(CURVATURE, "1.0", "1.8"),
    _range(GRADIENT, "1.8", "58"),
    *(_row(*row) for row in APPENDIX_B),
    _width(64, "2.5"),
    _width(512, "3.3"),
    Claim("§7.2", "width 64 to 512 changes the participation ratio by", "0.7", (FILE,),
          "the difference of the two stored ratios rounds to 0.7", _change),
)  # fmt: skip
