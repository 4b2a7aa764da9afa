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
    def largest_move(record: dict) -> float:
        """Median over the layers of the largest |shift| of a part beyond Gauss–Newton; 0 where there is none."""
        moves = []
        for layer in layers_of(record):
            parts = {name: one for name, one in (layer.get("mechanisms") or {}).items() if name != "gauss_newton"}
            moves.append(max((abs(shift) for shift, _ in parts.values() if shift is not None), default=0.0))
        return middle(moves)

    return [
        number_claim(
            "§5, Theorem 1",
            f"{lab.studies[study].title}: what Gauss–Newton leaves out does not move α",
            "h ≈ h_GN",
            0.0,
            0.1,
            over_seeds(map(largest_move, lab.records(study))),
            resolved=resolved_share(lab.records(study)),
            note="median over layers of the largest |shift| of a part",
        )
        for study in ("resnet", "gpt", "vit_10")
    ]
