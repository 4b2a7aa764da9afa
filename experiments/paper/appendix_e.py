"""Appendix E: α at initialisation, early, and at the end of training, and what of it holds on other samples."""

from matplotlib.figure import Figure

from experiments.claims import (
    EXPONENT_HEADER,
    Claim,
    Table,
    exponent,
    exponent_claim,
    exponent_rows,
    layers_of,
    mean,
    number,
    order_claim,
    over_seeds,
    resolved_share,
)
from experiments.drawing import panels
from experiments.studies import Laboratory

TITLE = "Appendix E: α over training"
KINDS = (
    ("resnet", "conv"),
    ("resnet", "head"),
    ("vgg", "conv"),
    ("gpt", "qkv"),
    ("gpt", "up"),
    ("vit_10", "qkv"),
    ("vit_10", "up"),
)


def tables(lab: Laboratory) -> list[Table]:
    entries = [
        (f"{lab.studies[study].title}, {kind}", lab.records(study, stage), stage, (kind,))
        for study, kind in KINDS
        for stage in lab.studies[study].stages
    ]
    header = (EXPONENT_HEADER[0], "stage", *EXPONENT_HEADER[2:])
    return [Table(TITLE, header, exponent_rows(entries))]


def draw(lab: Laboratory) -> Figure:
    figure, axes = panels(2)
    for study, kind in KINDS:
        stages = list(lab.studies[study].stages)
        found = [exponent(lab.records(study, stage), (kind,)) for stage in stages]
        for ax, values in zip(axes, ([f.own.value for f in found], [100 * f.resolved for f in found]), strict=True):
            ax.plot([("init", "early", "end").index(s) for s in stages], values, "o-", label=f"{study} {kind}")
    for ax, label in zip(axes, ("α, own batch", "directions resolved, %"), strict=True):
        ax.set_xticks(range(3), ("init", "early", "end"))
        ax.set_ylabel(label)
    axes[0].legend(fontsize=6)
    return figure


def claims(lab: Laboratory) -> list[Claim]:
    first, last = lab.records("resnet", "init"), lab.records("resnet")
    means = [[mean(number(one, "alpha") for one in layers_of(r, ("conv",))) for r in part] for part in (first, last)]
    heads = [[mean(number(one, "alpha") for one in layers_of(r, ("head",))) for r in part] for part in (first, last)]
    return [
        exponent_claim("§3, App. E", "convolutions begin with α ≈ 1.5", "~1.5", 1.3, 1.7, exponent(first, ("conv",))),
        order_claim(
            "App. E",
            "α of convolutions rises while they train",
            "1.45 → 1.81 … 2.12",
            over_seeds(b - a for a, b in zip(*means, strict=True)),
            resolved=resolved_share(last, ("conv",)),
            note="end − init",
        ),
        order_claim(
            "App. E",
            "α of the head falls while it trains",
            "1.99 → 1.57",
            over_seeds(a - b for a, b in zip(*heads, strict=True)),
            resolved=resolved_share(last, ("head",)),
            note="init − end",
        ),
    ]
