"""Appendix F: α by quartile of the singular index k."""

from experiments.claims import Claim, Table, layers_of, mean, number_claim, over_seeds, resolved_share
from experiments.studies import Laboratory

TITLE = "Appendix F: α by quartile of k"


def _quartile(record: dict, index: int, kinds: tuple[str, ...]) -> float:
    values = [one["quartiles"] for one in layers_of(record, kinds)]
    return mean(float(v[index]) for v in values if len(v) > index and v[index] is not None)


def tables(lab: Laboratory) -> list[Table]:
    rows = []
    for study, kinds in (("resnet", ("conv",)), ("vgg", ("conv",)), ("mlp", ("fc",))):
        cells = (str(over_seeds(_quartile(r, i, kinds) for r in lab.records(study))) for i in range(4))
        rows.append((lab.studies[study].title, *cells))
    note = "A quartile holds a quarter of the measured directions, 4 of 16 at the small scale: its slope is uncertain."
    return [Table(TITLE, ("network", "top", "second", "third", "bottom"), rows, note)]


def claims(lab: Laboratory) -> list[Claim]:
    records = lab.records("resnet")
    gap = over_seeds(_quartile(r, 3, ("conv",)) - _quartile(r, 0, ("conv",)) for r in records)
    return [
        number_claim(
            "§3, App. F",
            "α does not depend on the quartile of k",
            "2.07 … 2.59",
            -0.5,
            0.5,
            gap,
            resolved=resolved_share(records, ("conv",)),
            note="bottom − top quartile",
        )
    ]
