"""Figure 4: rank profiles of σ and the models that BIC selects."""

from matplotlib.figure import Figure

from experiments.claims import Claim, Table, layers_of, mean, number_claim, over_seeds
from experiments.drawing import panels
from experiments.studies import Laboratory

TITLE = "Figure 4: the rank law of σ"
LAWS = ("power_law", "exponential", "lognormal")


def counts(layers: list[dict]) -> dict[str, int]:
    """How many layers each law wins."""
    return {law: sum(one.get("rank_model") == law for one in layers) for law in LAWS}


def draw(lab: Laboratory) -> Figure:
    layers = [one for one in layers_of(lab.records("resnet")[0]) if "sigma" in one]
    figure, axes = panels(3)
    for ax, one in zip(axes, (layers[0], layers[len(layers) // 2], layers[-1]), strict=True):
        ax.loglog(range(1, len(one["sigma"]) + 1), one["sigma"], "o", markersize=4)
        ax.set_title(f"{one['type']}: {one['rank_model']}")
        ax.set_xlabel("k")
        ax.set_ylabel("σ")
    return figure


def tables(lab: Laboratory) -> list[Table]:
    rows = []
    for study in ("resnet", "vgg", "mlp", "gpt", "vit_10"):
        won = counts([one for record in lab.records(study) for one in layers_of(record)])
        rows.append((lab.studies[study].title, *(str(won[law]) for law in LAWS)))
    return [Table(TITLE + ": layers of all seeds won by each law (BIC)", ("network", *LAWS), rows)]


def claims(lab: Laboratory) -> list[Claim]:
    def share(record: dict) -> float:
        return mean(float(one["rank_model"] == "lognormal") for one in layers_of(record))

    found = over_seeds(map(share, lab.records("resnet")))
    return [
        number_claim(
            "Fig. 4, App. G",
            "BIC favours log-normal in most layers of ResNet-18",
            "21 of 24 layers",
            0.5,
            1.0,
            found,
            note="share of layers",
        )
    ]
