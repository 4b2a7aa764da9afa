"""Appendix J: what the proofs assume of LayerNorm (condition number, ρ^A) and of softmax (rank of the errors)."""

from experiments.claims import Claim, Table, layers_of, mean, middle, number, number_claim, over_seeds, resolved_share
from experiments.studies import Laboratory

TITLE = "Appendix J: LayerNorm and softmax, as the proofs assume them"


def _behind(record: dict) -> list[dict]:
    return [one for one in layers_of(record) if one.get("behind_norm")]


def tables(lab: Laboratory) -> list[Table]:
    rows = []
    for study in ("gpt", "vit_10", "vit_100"):
        layers = [one for record in lab.records(study) for one in _behind(record)]
        condition, slope = (middle(number(one, key) for one in layers) for key in ("norm_condition", "rho_A_slope"))
        rows.append((lab.studies[study].title, str(len(layers)), f"{condition:.3g}", f"{slope:.2f}"))
    heads = []
    for study in ("resnet", "vgg", "mlp", "vit_10", "gpt"):
        found = [one["softmax"] for r in lab.records(study) for one in layers_of(r, ("head",)) if one.get("softmax")]
        if found:
            outside = middle(v[3] / v[2] for v in found if v[3] and v[2])
            drop = f"{outside:.2g}" if outside == outside else "no direction beyond the rank"
            heads.append((lab.studies[study].title, str(found[0][0]), str(max(v[1] for v in found)), drop))
    header = ("network", "layers behind a LayerNorm", "median κ(Ĉ)", "median d log ρ^A/d log σ")
    return [
        Table(TITLE, header, rows),
        Table(
            "Rank of C_δ of softmax heads", ("network", "classes", "rank of C_δ", "ρ^δ beyond the rank / inside"), heads
        ),
    ]


def claims(lab: Laboratory) -> list[Claim]:
    records = lab.records("gpt")
    share = resolved_share(records)
    condition = over_seeds(middle(number(one, "norm_condition") for one in _behind(record)) for record in records)
    slope = over_seeds(mean(number(one, "rho_A_slope") for one in _behind(record)) for record in records)
    return [
        number_claim(
            "Theorem 3",
            "behind LayerNorm Ĉ is nearly isotropic: κ = 1 + O(√(n/B))",
            "≈ 1",
            1.0,
            3.0,
            condition,
            digits=0,
            note="median κ; trained activations are far from isotropic",
        ),
        number_claim(
            "Theorem 3",
            "behind LayerNorm ρ^A does not depend on σ",
            "≈ 0",
            -0.15,
            0.15,
            slope,
            resolved=share,
            note="mean d log ρ^A/d log σ",
        ),
    ]
