"""Open question 3: do rank laws change where the factors' spectra drift?"""

from itertools import pairwise

from experiments.claims import Claim, Table, mean, middle, number_claim, over_seeds
from experiments.studies import Laboratory

TITLE = "Phase transition against the drift of C_δ and C_A"
STUDIES = ("resnet", "vgg", "mlp", "gpt", "vit_10")


def _steps(lab: Laboratory, study: str) -> list[list[tuple[bool, float, float]]]:
    """Per seed: (law changed, drift of C_δ, drift of C_A) of every layer and every step between stages."""
    stages = list(lab.studies[study].stages)
    found: list[list[tuple[bool, float, float]]] = [[] for _ in lab.seeds]
    for before, after in pairwise(stages):
        for seed, (a, b) in enumerate(zip(lab.records(study, before), lab.records(study, after), strict=True)):
            for name, (delta, A) in b.get("drift", {}).items():
                old, new = a["layers"].get(name, {}), b["layers"].get(name, {})
                if delta is not None and A is not None and old.get("rank_model") and new.get("rank_model"):
                    found[seed].append((old["rank_model"] != new["rank_model"], delta, A))
    return found


def tables(lab: Laboratory) -> list[Table]:
    rows = []
    for study in STUDIES:
        steps = [one for own in _steps(lab, study) for one in own]
        cells = []
        for changed in (True, False):
            part = [one for one in steps if one[0] is changed]
            cells += [str(len(part)), f"{middle(one[1] for one in part):.2f}", f"{middle(one[2] for one in part):.2f}"]
        rows.append((lab.studies[study].title, *cells))
    header = (
        "network",
        "law changed: n",
        "drift of C_δ",
        "drift of C_A",
        "law kept: n",
        "drift of C_δ",
        "drift of C_A",
    )
    note = (
        "Drift: ½ Σ|p_i − q_i| of the normalised eigenvalues between two stages; medians over layers, steps and seeds."
    )
    return [Table(TITLE, header, rows, note)]


def claims(lab: Laboratory) -> list[Claim]:
    def gap(index: int) -> list[float]:
        per_seed = []
        for seed in range(len(lab.seeds)):
            steps = [one for study in STUDIES for one in _steps(lab, study)[seed]]
            changed, kept = ([one[index] for one in steps if one[0] is which] for which in (True, False))
            per_seed.append(mean(changed) - mean(kept))
        return per_seed

    return [
        number_claim(
            "§8, question 3",
            f"layers whose rank law changes have the larger drift of {what}",
            "an open question",
            0.05,
            1.0,
            over_seeds(gap(index)),
            note="drift, changed − kept",
        )
        for index, what in ((1, "C_δ"), (2, "C_A"))
    ]
