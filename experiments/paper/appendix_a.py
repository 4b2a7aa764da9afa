"""Appendix A: how well h follows σ², the Gauss–Newton part follows σ², and h follows its Gauss–Newton part."""

from experiments.claims import Claim, Table, layers_of, middle, number, number_claim, over_seeds, resolved_share
from experiments.studies import Laboratory

TITLE = "Appendix A: R² of h, its Gauss–Newton part and σ²"
KEYS = {
    "r2_h_sigma2": ("R²(h, σ²)", "0.998"),
    "r2_gn_sigma2": ("R²(h_GN, σ²)", "0.992"),
    "r2_h_gn": ("R²(h, h_GN)", "0.996"),
}


def tables(lab: Laboratory) -> list[Table]:
    rows = []
    for study in ("resnet", "vgg", "mlp", "gpt", "vit_10"):
        layers = [one for record in lab.records(study) for one in layers_of(record)]
        values = (f"{middle(number(one, key) for one in layers):.3f}" for key in KEYS)
        rows.append((lab.studies[study].title, str(len(layers)), *values))
    return [Table(TITLE, ("network", "layers of all seeds", *(label for label, _ in KEYS.values())), rows)]


def claims(lab: Laboratory) -> list[Claim]:
    records = lab.records("resnet")
    share = resolved_share(records)
    made = []
    for key, (label, published) in KEYS.items():
        found = over_seeds(middle(number(one, key) for one in layers_of(record)) for record in records)
        made.append(
            number_claim(
                "App. A",
                f"median {label} over ResNet-18 is about {published}",
                published,
                0.98,
                1.0,
                found,
                resolved=share,
                digits=3,
            )
        )
    return made
