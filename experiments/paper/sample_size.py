"""The trained ResNet measured on four times as many samples: is it the batch that is too small?"""

from experiments.claims import EXPONENT_HEADER, Claim, Table, exponent, exponent_claim, exponent_rows
from experiments.studies import Laboratory

TITLE = "Sample size: the same networks on four times as many samples"
STUDIES = ("resnet", "resnet_large")


def tables(lab: Laboratory) -> list[Table]:
    entries = [
        (f"{lab.studies[study].title}, B = {lab.studies[study].samples}", lab.records(study), kind, (kind,))
        for study in STUDIES
        for kind in ("conv", "head")
    ]
    note = "Seeds and training are the same, so that the networks are: only the measurement differs."
    return [Table(TITLE, EXPONENT_HEADER, exponent_rows(entries), note)]


def claims(lab: Laboratory) -> list[Claim]:
    samples = lab.studies["resnet_large"].samples
    what = f"convolutions of ResNet-18 have α ≈ 2, measured on {samples:,} samples"
    found = exponent(lab.records("resnet_large"), ("conv",))
    return [exponent_claim("Table 1", what, "1.97–2.17", 1.85, 2.25, found)]
