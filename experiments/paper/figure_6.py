"""Figure 6 and Appendix K: the rank laws of VGG-16's layers while it trains."""

from matplotlib.figure import Figure

from experiments.claims import Claim, Table, layers_of, mean, number_claim, order_claim, over_seeds
from experiments.drawing import panels
from experiments.paper.figure_4 import LAWS, counts
from experiments.studies import Laboratory

TITLE = "Figure 6: the rank laws of VGG-16 over training"


def _share(lab: Laboratory, stage: str, law: str) -> list[float]:
    return [mean(float(one["rank_model"] == law) for one in layers_of(r)) for r in lab.records("vgg16", stage)]


def draw(lab: Laboratory) -> Figure:
    stages = list(lab.studies["vgg16"].stages)
    figure, (ax,) = panels(1)
    for law in LAWS:
        ax.plot(range(len(stages)), [mean(_share(lab, stage, law)) for stage in stages], "o-", label=law)
    ax.set_xticks(range(len(stages)), stages, fontsize=7)
    ax.set_ylabel("share of layers")
    ax.legend(fontsize=7)
    return figure


def tables(lab: Laboratory) -> list[Table]:
    rows = []
    for stage in lab.studies["vgg16"].stages:
        won = counts([one for record in lab.records("vgg16", stage) for one in layers_of(record)])
        rows.append((stage, *(str(won[law]) for law in LAWS)))
    return [Table(f"{TITLE}: layers of all seeds won by each law", ("stage", *LAWS), rows)]


def claims(lab: Laboratory) -> list[Claim]:
    stages = list(lab.studies["vgg16"].stages)
    first, last = (_share(lab, stage, "lognormal") for stage in (stages[0], stages[-1]))
    fall = over_seeds(a - b for a, b in zip(first, last, strict=True))
    return [
        number_claim(
            "Fig. 6, App. K",
            "log-normal dominates at initialisation",
            "11 of 15 layers",
            0.5,
            1.0,
            over_seeds(first),
            note="share of layers",
        ),
        order_claim(
            "Fig. 6, App. K",
            "training takes layers from log-normal to power law and exponential",
            "11 → 6 of 15",
            fall,
            note="fall of the log-normal share",
        ),
    ]
