"""Appendix I: the participation ratio of the curvature in single-hidden-layer MLPs of growing width."""

from experiments.claims import Claim, Table, layers_of, mean, number, number_claim, over_seeds, resolved_share
from experiments.studies import Laboratory

TITLE = "Appendix I: participation ratio and width"
WIDTHS = (64, 128, 256, 512)


def _ratios(lab: Laboratory, width: int) -> list[float]:
    return [mean(number(one, "pr_curvature") for one in layers_of(r, ("fc",))) for r in lab.records(f"width_{width}")]


def tables(lab: Laboratory) -> list[Table]:
    rows = [(str(width), str(over_seeds(_ratios(lab, width)))) for width in WIDTHS]
    return [Table(TITLE, ("width", "PR of h, hidden layer, over seeds"), rows)]


def claims(lab: Laboratory) -> list[Claim]:
    growth = over_seeds(b - a for a, b in zip(_ratios(lab, 64), _ratios(lab, 512), strict=True))
    return [
        number_claim(
            "App. I",
            "eight times the width changes PR by less than 0.8",
            "2.5 → 3.3",
            -0.8,
            0.8,
            growth,
            resolved=resolved_share(lab.records("width_512"), ("fc",)),
        )
    ]
