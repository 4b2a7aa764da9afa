"""Which directions hold on other samples, by layer type and stage: what the paper's own-batch α is an estimate of."""

from experiments.claims import Claim, Table, layers_of, mean, middle, number, number_claim, over_seeds, resolved_share
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
    made = []
    for study in ("resnet", "vgg"):
        gap = over_seeds(
            mean(abs(number(one, "alpha") - number(one, "held_out")) for one in layers_of(record))
            for record in lab.records(study, "early")
        )
        end = lab.records(study)
        title = lab.studies[study].title
        made += [
            number_claim(
                "§2", f"{title}, early: α of other samples is that of the batch", "one batch", 0.0, 0.15, gap,
                note="mean |own − held out| over the layers that have both",
            ),
            number_claim(
                "§3", f"{title}, trained: the singular directions hold on other samples", "assumed", 0.5, 1.0,
                over_seeds(resolved_share([record]) for record in end), note="share of directions",
            ),
            number_claim(
                "§5", f"{title}, trained: α of noise alone, 2/γ, is another than α", "assumed", 0.3, 5.0,
                over_seeds(
                    abs(
                        middle(number(one, "alpha") for one in layers_of(record))
                        - middle(number(one, "noise_alpha") for one in layers_of(record))
                    )
                    for record in end
                ),
                note="difference of the medians over layers",
            ),
        ]  # fmt: skip
    return made
