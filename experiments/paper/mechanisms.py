"""Which part of the curvature moves α: the slope with each part of h left out in turn."""

from experiments.claims import Claim, Table, layers_of, middle, number_claim, over_seeds, resolved_share
from experiments.studies import Laboratory

TITLE = "Which mechanism moves α"
STUDIES = ("resnet", "vgg", "mlp", "gpt", "vit_10")


def _moves(lab: Laboratory, study: str) -> dict[str, list[tuple[float, float]]]:
    """Mechanism → (shift of α, share of h) of every layer of every seed."""
    found: dict[str, list[tuple[float, float]]] = {}
    for record in lab.records(study):
        for layer in layers_of(record):
            for name, (shift, share) in (layer.get("mechanisms") or {}).items():
                if shift is not None and share is not None:
                    found.setdefault(name, []).append((shift, share))
    return found


def tables(lab: Laboratory) -> list[Table]:
    rows = []
    for study in STUDIES:
        for name, values in sorted(_moves(lab, study).items()):
            shifts, shares = zip(*values, strict=True)
            rows.append(
                (
                    lab.studies[study].title,
                    name,
                    str(len(values)),
                    f"{middle(shares):.2f}",
                    f"{middle(shifts):+.2f}",
                    f"{middle(map(abs, shifts)):.2f}",
                )
            )
    header = ("network", "part of h", "layers", "median share of Σh", "median shift of α", "median |shift|")
    note = "The shift is α minus the slope without the part. The Gauss–Newton part is listed like the others."
    return [Table(TITLE, header, rows, note)]


def claims(lab: Laboratory) -> list[Claim]:
    made = []
    for study in ("resnet", "gpt"):

        def shift(record: dict) -> float:
            return middle(
                abs(parts["gauss_newton"][0] or float("nan"))
                for one in layers_of(record)
                if "gauss_newton" in (parts := one.get("mechanisms") or {})
            )

        found = over_seeds(map(shift, lab.records(study)))
        title = lab.studies[study].title
        made.append(
            number_claim(
                "§5, Theorem 1",
                f"{title}: the Gauss–Newton part alone decides α",
                "GN ≈ H",
                0.0,
                0.2,
                found,
                resolved=resolved_share(lab.records(study)),
                note="median |α − slope of h without it|; small would mean that it does not",
            )
        )
    return made
