"""Table 2: the layers of a small GPT in detail."""

from experiments.claims import EXPONENT_HEADER, Claim, Table, exponent, exponent_claim, exponent_rows
from experiments.studies import Laboratory

TITLE = "Table 2: α of transformer layers"
PUBLISHED = {
    "qkv": (1.43, 1.21, 1.63),
    "proj": (1.17, 1.07, 1.34),
    "up": (0.84, 0.69, 1.04),
    "down": (1.15, 1.13, 1.19),
}


def tables(lab: Laboratory) -> list[Table]:
    studies = ("gpt", "vit_10")
    rows = exponent_rows((lab.studies[s].title, lab.records(s), kind, (kind,)) for s in studies for kind in PUBLISHED)
    return [Table(TITLE, EXPONENT_HEADER, rows)]


def claims(lab: Laboratory) -> list[Claim]:
    found = {kind: exponent(lab.records("gpt"), (kind,)) for kind in PUBLISHED}
    return [
        exponent_claim(
            "Table 2", f"{kind} of a language model has α ≈ {mean}", f"{mean} [{low}, {high}]", low, high, found[kind]
        )
        for kind, (mean, low, high) in PUBLISHED.items()
    ]
