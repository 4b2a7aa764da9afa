"""Appendix B and §7.2: participation ratios of the curvature and of the gradient, and the zeta bound."""

import math

from experiments.claims import Claim, Table, layers_of, mean, middle, number, number_claim, over_seeds, resolved_share
from experiments.studies import Laboratory

TITLE = "Appendix B: participation ratios"
STUDIES = ("resnet", "vgg", "mlp", "gpt", "vit_10")


def _below_bound(layers: list[dict]) -> float:
    """Share of the layers with a finite zeta bound whose ratio respects it."""
    pairs = [(number(one, "pr_curvature"), number(one, "zeta")) for one in layers]
    return mean(float(pr <= bound) for pr, bound in pairs if math.isfinite(pr) and math.isfinite(bound))


def tables(lab: Laboratory) -> list[Table]:
    rows = []
    for study in STUDIES:
        layers = [one for record in lab.records(study) for one in layers_of(record)]
        curvature, gradient = ([number(one, key) for one in layers] for key in ("pr_curvature", "pr_gradient"))
        spans = (f"{middle(v):.2f} ({min(v):.2f} … {max(v):.2f})" for v in (curvature, gradient))
        rows.append((lab.studies[study].title, *spans, f"{100 * _below_bound(layers):.0f} %"))
    return [Table(TITLE, ("network", "PR of h: median (range)", "PR of σ", "within ζ(αγ)²/ζ(2αγ)"), rows)]


def claims(lab: Laboratory) -> list[Claim]:
    records = lab.records("resnet")
    share = resolved_share(records)
    inside = over_seeds(mean(float(number(one, "pr_curvature") <= 1.85) for one in layers_of(r)) for r in records)
    bound = over_seeds(_below_bound(layers_of(record)) for record in records)
    return [
        number_claim(
            "§7.2, App. B",
            "curvature concentrates: PR of h in [1.0, 1.8] in all layers",
            "[1.0, 1.8]",
            0.95,
            1.0,
            inside,
            resolved=share,
            note="share of layers",
        ),
        number_claim(
            "Theorem 9",
            "the participation ratio respects ζ(αγ)²/ζ(2αγ)",
            "a bound",
            0.95,
            1.0,
            bound,
            resolved=share,
            note="share of layers; it bounds exact power laws only",
        ),
    ]
