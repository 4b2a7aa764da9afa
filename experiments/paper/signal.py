"""Which directions hold on other samples, by layer type and stage: what the paper's own-batch α is an estimate of."""

from experiments.claims import Claim, Table, layers_of, mean, middle, number, number_claim, over_seeds
from experiments.studies import Laboratory

TITLE = "Signal and noise: held-out directions by stage"
STUDIES = ("resnet", "vgg", "mlp", "gpt", "vit_10")


def tables(lab: Laboratory) -> list[Table]:
    rows = []
    for study in STUDIES:
        for stage in lab.studies[study].stages:
            records = lab.records(study, stage)
            layers = [one for record in records for one in layers_of(record)]
            verdicts = [one.get("signal") for one in layers]
            counts = " / ".join(str(verdicts.count(v)) for v in ("signal", "mixed", "noise"))
            loss = f"{mean(record['loss'] for record in records):.3f}"
            own, held, share = (middle(number(one, key) for one in layers) for key in ("alpha", "held_out", "share"))
            noise = middle(number(one, "noise_alpha") for one in layers)
            rows.append(
                (
                    lab.studies[study].title,
                    stage,
                    loss,
                    counts,
                    f"{share:.2f}",
                    f"{own:.2f}",
                    f"{held:.2f}" if held == held else "–",
                    f"{noise:.2f}",
                )
            )
    header = (
        "network",
        "stage",
        "loss",
        "layers: signal / mixed / noise",
        "median σ̃/σ",
        "median α, own batch",
        "median α, held out",
        "median 2/γ, α of noise",
    )
    return [Table(TITLE, header, rows)]


def claims(lab: Laboratory) -> list[Claim]:
    records = lab.records("resnet")
    gap = over_seeds(
        mean(abs(number(one, "alpha") - number(one, "held_out")) for one in layers_of(record)) for record in records
    )
    made = [
        number_claim(
            "§2",
            "one batch is enough: α of other samples is the same",
            "B = 2,048–4,096",
            0.0,
            0.15,
            gap,
            note="mean |own − held out| over the layers that have both",
        )
    ]
    return made
