"""Appendix G: BIC winners at initialisation and after training."""

from experiments.claims import Claim, Table, layers_of, mean, order_claim, over_seeds
from experiments.paper.figure_4 import LAWS, counts
from experiments.studies import Laboratory

TITLE = "Appendix G: the rank law of σ before and after training"
STUDIES = ("resnet", "vgg", "mlp", "gpt", "vit_10")


def tables(lab: Laboratory) -> list[Table]:
    rows = []
    for study in STUDIES:
        for stage in ("init", "end"):
            won = counts([one for record in lab.records(study, stage) for one in layers_of(record)])
            rows.append((lab.studies[study].title, stage, *(str(won[law]) for law in LAWS)))
    return [Table(f"{TITLE}: layers of all seeds won by each law", ("network", "stage", *LAWS), rows)]


def claims(lab: Laboratory) -> list[Claim]:
    def share(stage: str) -> list[float]:
        return [
            mean(float(one["rank_model"] == "exponential") for one in layers_of(record))
            for record in lab.records("resnet", stage)
        ]

    rise = over_seeds(b - a for a, b in zip(share("init"), share("end"), strict=True))
    return [
        order_claim(
            "App. G",
            "exponential wins increase during training",
            "6 → 15 of 54 layers",
            rise,
            note="share at the end − at initialisation",
        )
    ]
