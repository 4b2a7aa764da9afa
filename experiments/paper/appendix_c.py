"""Appendix C and §6.5: α with more classes (ViT), and with a binary label instead of a language model (GPT)."""

from experiments.claims import (
    EXPONENT_HEADER,
    Claim,
    Interval,
    Table,
    exponent_rows,
    layers_of,
    mean,
    number,
    number_claim,
    over_seeds,
    resolved_share,
)
from experiments.studies import Laboratory

TITLE = "Appendix C: number of classes, and the task"
PAIRS = (
    ("ViT", "qkv", "vit_10", "vit_100", -0.51),
    ("ViT", "up", "vit_10", "vit_100", -0.50),
    ("GPT", "up", "gpt", "gpt_classes", 0.86),
    ("GPT", "down", "gpt", "gpt_classes", 0.69),
)


def change(lab: Laboratory, kind: str, before: str, after: str, key: str = "alpha") -> Interval:
    """α of the second study minus that of the first, paired by seed."""
    means = [
        [mean(number(one, key) for one in layers_of(record, (kind,))) for record in lab.records(study)]
        for study in (before, after)
    ]
    return over_seeds(b - a for a, b in zip(*means, strict=True))


def tables(lab: Laboratory) -> list[Table]:
    studies = ("vit_10", "vit_100", "gpt", "gpt_classes")
    kinds = ("qkv", "proj", "up", "down")
    rows = exponent_rows((lab.studies[s].title, lab.records(s), kind, (kind,)) for s in studies for kind in kinds)
    return [Table(TITLE, EXPONENT_HEADER, rows)]


def claims(lab: Laboratory) -> list[Claim]:
    made = []
    for network, kind, before, after, published in PAIRS:
        share = min(resolved_share(lab.records(study), (kind,)) for study in (before, after))
        low, high = (-2.0, -0.2) if published < 0 else (0.2, 2.0)
        what = "more classes lower α" if network == "ViT" else "a binary label instead of a language model raises α"
        held = change(lab, kind, before, after, "held_out")
        note = f"change of the mean; held out {held}" if held.ok else "change of the mean"
        made.append(
            number_claim(
                "App. C",
                f"{network} {kind}: {what}",
                f"{published:+.2f}",
                low,
                high,
                change(lab, kind, before, after),
                resolved=share,
                note=note,
            )
        )
    return made
