"""Figure 2: α against depth."""

from matplotlib.figure import Figure

from experiments.claims import (
    Claim,
    Table,
    correlation,
    layers_of,
    mean,
    number,
    number_claim,
    over_seeds,
    resolved_share,
)
from experiments.drawing import panels
from experiments.studies import Laboratory

TITLE = "Figure 2: α against depth"
STUDIES = ("resnet", "vgg", "gpt")


def _by_depth(lab: Laboratory, study: str) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    for record in lab.records(study):
        for layer in layers_of(record):
            found.setdefault(layer["depth"], []).append(number(layer, "alpha"))
    return dict(sorted(found.items()))


def draw(lab: Laboratory) -> Figure:
    figure, axes = panels(len(STUDIES))
    for ax, study in zip(axes, STUDIES, strict=True):
        for depth, values in _by_depth(lab, study).items():
            ax.plot([depth] * len(values), values, "o", markersize=3, color="tab:blue")
        ax.axhspan(1.85, 2.15, alpha=0.15)
        ax.set_title(lab.studies[study].title)
        ax.set_xlabel("depth")
        ax.set_ylabel("α, own batch")
    return figure


def tables(lab: Laboratory) -> list[Table]:
    rows = []
    for study in STUDIES:
        means = {depth: mean(values) for depth, values in _by_depth(lab, study).items()}
        rows.append((lab.studies[study].title, ", ".join(f"{v:.2f}" for v in means.values())))
    return [Table(TITLE, ("network", "mean α over seeds, in order of depth"), rows)]


def claims(lab: Laboratory) -> list[Claim]:
    records = lab.records("resnet")

    def inside(record: dict) -> float:
        interior = layers_of(record, ("conv",))[1:]
        return mean(float(1.85 <= number(one, "alpha") <= 2.15) for one in interior)

    def trend(record: dict) -> float:
        own = layers_of(record, ("conv",))
        return correlation([one["depth"] for one in own], [number(one, "alpha") for one in own])

    share = resolved_share(records, ("conv",))
    return [
        number_claim(
            "Fig. 2",
            "most interior convolutions lie in [1.85, 2.15]",
            "cluster near 2",
            0.5,
            1.0,
            over_seeds(map(inside, records)),
            resolved=share,
            note="share of layers",
        ),
        number_claim(
            "Fig. 2",
            "α of interior convolutions does not depend on depth",
            "band",
            -0.3,
            0.3,
            over_seeds(map(trend, records)),
            resolved=share,
            note="Spearman correlation with depth",
        ),
    ]
