"""LayerNorm left out: does it move α through ρ^A, as Theorem 3 says, or through χ?"""

from experiments.claims import Claim, Interval, Table, layers_of, mean, number, number_claim, over_seeds, resolved_share
from experiments.studies import Laboratory

TITLE = "LayerNorm left out"
PAIRS = (("gpt", "gpt_no_norm"), ("vit_10", "vit_no_norm"))
KINDS = ("qkv", "up")
"""The layers that read a LayerNorm."""
PARTS = {"alpha": "α", "beta": "β", "phi": "φ", "chi_slope": "d log χ/d log σ", "rho_A_slope": "d log ρ^A/d log σ"}


def _change(lab: Laboratory, study: str, without: str, key: str) -> Interval:
    """The mean with LayerNorm minus the mean without, paired by seed."""
    means = [
        [mean(number(one, key) for one in layers_of(record, KINDS)) for record in lab.records(name)]
        for name in (study, without)
    ]
    return over_seeds(a - b for a, b in zip(*means, strict=True))


def tables(lab: Laboratory) -> list[Table]:
    rows = []
    for pair in PAIRS:
        for name in pair:
            values = (
                str(over_seeds(mean(number(one, key) for one in layers_of(r, KINDS)) for r in lab.records(name)))
                for key in PARTS
            )
            rows.append((lab.studies[name].title, *values))
    note = "Means over qkv and up, the layers that read a LayerNorm. α = β + φ + d log χ/d log σ exactly."
    return [Table(TITLE, ("network", *PARTS.values()), rows, note)]


def claims(lab: Laboratory) -> list[Claim]:
    made = []
    for study, without in PAIRS:
        share = min(resolved_share(lab.records(name), KINDS) for name in (study, without))
        title = "GPT" if study == "gpt" else "ViT"
        alpha, flat = (_change(lab, study, without, key) for key in ("alpha", "rho_A_slope"))
        chi = _change(lab, study, without, "chi_slope")
        made += [
            number_claim(
                "Theorem 3",
                f"{title}: LayerNorm lowers α",
                "2 → 1",
                -3.0,
                -0.2,
                alpha,
                resolved=share,
                note="with − without",
            ),
            number_claim(
                "Theorem 3",
                f"{title}: it does so through ρ^A",
                "ρ^A",
                -3.0,
                -0.1,
                flat,
                resolved=share,
                note=f"change of d log ρ^A/d log σ; of d log χ/d log σ: {chi}",
            ),
        ]
    return made
