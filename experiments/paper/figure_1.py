"""Figure 1: h against σ in representative layers, the basic law h ∝ σ^α."""

import math

from matplotlib.figure import Figure

from experiments.claims import Claim, Table, layers_of, middle, number_claim, per_seed, resolved_share
from experiments.drawing import panels
from experiments.studies import Laboratory

TITLE = "Figure 1: directional curvature h against σ"
PANELS = (
    ("resnet", "conv", "convolution"),
    ("vgg", "head", "FC head"),
    ("mlp", "fc", "dense"),
    ("gpt", "up", "GPT MLP"),
)


def draw(lab: Laboratory) -> Figure:
    figure, axes = panels(len(PANELS))
    for ax, (study, kind, label) in zip(axes, PANELS, strict=True):
        chosen = [one for one in layers_of(lab.records(study)[0], (kind,)) if "sigma" in one]
        if chosen:
            one = chosen[len(chosen) // 2]
            pairs = [(s, h) for s, h in zip(one["sigma"], one["h"], strict=True) if h is not None and h > 0]
            ax.loglog(*zip(*pairs, strict=True), "o", markersize=4)
            ax.set_title(f"{label}: α = {one['alpha'][0]:.2f}")
        ax.set_xlabel("σ")
        ax.set_ylabel("h")
    return figure


def _r2(lab: Laboratory, study: str, kind: str) -> str:
    values = [one["alpha"][3] or math.nan for record in lab.records(study) for one in layers_of(record, (kind,))]
    return f"{middle(values):.2f}"


def tables(lab: Laboratory) -> list[Table]:
    rows = [(lab.studies[study].title, label, _r2(lab, study, kind)) for study, kind, label in PANELS]
    return [Table(TITLE, ("network", "layers", "median R² of the fit"), rows)]


def claims(lab: Laboratory) -> list[Claim]:
    records = lab.records("resnet")
    r2 = per_seed(records, lambda own: middle(one["alpha"][3] or math.nan for one in own))
    share = resolved_share(records)
    return [
        number_claim(
            "§3, Fig. 1", "the median R² of h ∝ σ^α over ResNet-18 is about 0.98", "0.98", 0.97, 1.0, r2, resolved=share
        )
    ]
