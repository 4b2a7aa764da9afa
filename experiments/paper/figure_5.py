"""Figure 5: quality of the Kronecker factorisation against |α − 2|."""

from matplotlib.figure import Figure

from experiments.claims import (
    Claim,
    Table,
    correlation,
    layers_of,
    middle,
    number,
    number_claim,
    over_seeds,
    resolved_share,
)
from experiments.drawing import panels
from experiments.studies import Laboratory

TITLE = "Figure 5: concentration ratio against |α − 2|"


def _points(record: dict) -> tuple[list[float], list[float]]:
    layers = layers_of(record, ("conv", "head"))
    distance = [abs(number(one, "alpha") - 2) for one in layers]
    return distance, [abs(number(one, "concentration") - 1) for one in layers]


def draw(lab: Laboratory) -> Figure:
    figure, (ax,) = panels(1)
    for record in lab.records("resnet"):
        ax.plot(*_points(record), "o", markersize=3)
    ax.set_xlabel("|α − 2|")
    ax.set_ylabel("|concentration ratio − 1|")
    return figure


def tables(lab: Laboratory) -> list[Table]:
    rows = []
    for study in ("resnet", "vgg", "gpt", "vit_10"):
        layers = [one for record in lab.records(study) for one in layers_of(record)]
        near = [one for one in layers if abs(number(one, "alpha") - 2) <= 0.3]
        far = [one for one in layers if abs(number(one, "alpha") - 2) > 0.3]
        middles = (
            f"{middle(number(one, 'concentration') for one in part):.2f} (n = {len(part)})" for part in (near, far)
        )
        rows.append((lab.studies[study].title, *middles))
    return [Table(TITLE, ("network", "median ratio, |α − 2| ≤ 0.3", "median ratio, |α − 2| > 0.3"), rows)]


def claims(lab: Laboratory) -> list[Claim]:
    records = lab.records("resnet")
    found = over_seeds(correlation(*_points(record)) for record in records)
    return [
        number_claim(
            "Fig. 5, §7.3",
            "layers near α = 2 have a concentration ratio nearer to 1",
            "Figure 5",
            0.3,
            1.0,
            found,
            resolved=resolved_share(records),
            note="Spearman correlation over layers",
        )
    ]
