"""Corollary 8: the weight's tail exponent against s, with a minimum of eigenvalues in the tail."""

from experiments.claims import Claim, Table, layers_of, mean, number, number_claim, over_seeds, resolved_share
from experiments.studies import Laboratory

TITLE = "Corollary 8: α_weight against s"
MINIMUM = 10
"""Eigenvalues that a tail must hold for its exponent to count."""
STUDIES = ("resnet", "vgg", "mlp", "gpt", "vit_10")


def _tails(record: dict) -> list[tuple[float, float, float]]:
    """(α_weight, half its interval, s) of the layers whose tail is long enough."""
    layers = [one for one in layers_of(record) if one.get("weight") and (one["weight"][3] or 0) >= MINIMUM]
    return [
        (one["weight"][0], (one["weight"][2] - one["weight"][1]) / 2, number(one, "s"))
        for one in layers
        if one["weight"][0] is not None
    ]


def tables(lab: Laboratory) -> list[Table]:
    rows = []
    for study in STUDIES:
        records = lab.records(study)
        tails = [one for record in records for one in _tails(record)]
        total = sum(len(layers_of(record)) for record in records)
        below = sum(a + half < s for a, half, s in tails)
        above = sum(a - half > s for a, half, s in tails)
        rows.append(
            (
                lab.studies[study].title,
                f"{len(tails)} of {total}",
                str(below),
                str(above),
                str(len(tails) - below - above),
            )
        )
    header = ("network", f"layers with {MINIMUM} eigenvalues in the tail", "α_weight < s", "α_weight > s", "undecided")
    return [Table(TITLE, header, rows)]


def claims(lab: Laboratory) -> list[Claim]:
    per_seed = []
    for seed in range(len(lab.seeds)):
        tails = [one for study in STUDIES for one in _tails(lab.records(study)[seed])]
        per_seed.append(mean(float(a < s) for a, _, s in tails))
    records = [record for study in STUDIES for record in lab.records(study)]
    return [
        number_claim(
            "Corollary 8",
            "α_weight < s consistently",
            "all layers",
            0.95,
            1.0,
            over_seeds(per_seed),
            resolved=resolved_share(records),
            note="share of layers with a tail of 10 or more",
        )
    ]
