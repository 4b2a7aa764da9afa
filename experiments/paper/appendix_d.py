"""Appendix D and §6.4: concentration ratio, and χ = h/h_Kron in both conventions of the error."""

from experiments.claims import Claim, Table, layers_of, middle, number, number_claim, over_seeds, resolved_share
from experiments.studies import Laboratory

TITLE = "Appendix D: concentration ratio and χ"


def tables(lab: Laboratory) -> list[Table]:
    rows = []
    for study, kinds in (
        ("resnet", ("conv",)),
        ("resnet", ("head",)),
        ("vgg", ("conv",)),
        ("gpt", ("qkv", "proj")),
        ("gpt", ("up", "down")),
        ("vit_10", ("qkv", "proj")),
        ("vit_10", ("up", "down")),
    ):
        layers = [one for record in lab.records(study) for one in layers_of(record, kinds)]
        values = [
            middle(number(one, key) for one in layers) for key in ("concentration", "chi", "chi_hook", "chi_slope")
        ]
        cells = (f"{values[0]:.2f}", f"{values[1]:.3g}", f"{values[2]:.2g}", f"{values[3]:.2f}")
        rows.append((lab.studies[study].title, ", ".join(kinds), *cells))
    note = (
        "δ per sample: d is B times what a hook on a mean loss sees. δ of a hook: not rescaled, χ is B² times larger, "
        "as the paper's 10³ to 10⁷ must have been; only its slope enters α."
    )
    header = ("network", "layers", "concentration ratio", "χ, δ per sample", "χ, δ of a hook", "d log χ/d log σ")
    return [Table(f"{TITLE}, medians", header, rows, note)]


def claims(lab: Laboratory) -> list[Claim]:
    records = lab.records("resnet")
    share = resolved_share(records, ("conv",))

    def over(key: str) -> list[float]:
        return [middle(number(one, key) for one in layers_of(record, ("conv",))) for record in records]

    return [
        number_claim(
            "§6.4",
            "convolutions have a concentration ratio near 1",
            "0.59–0.98",
            0.5,
            1.5,
            over_seeds(over("concentration")),
            resolved=share,
        ),
        number_claim(
            "App. D",
            "χ of convolutions is 10³ to 10⁷",
            "10³–10⁷",
            1e3,
            1e7,
            over_seeds(over("chi_hook")),
            resolved=share,
            digits=0,
            note="δ of a hook; with δ per sample B² times smaller",
        ),
        number_claim(
            "§6.4",
            "χ of convolutions does not depend on σ",
            "≈ 0",
            -0.15,
            0.15,
            over_seeds(over("chi_slope")),
            resolved=share,
            note="d log χ/d log σ, median",
        ),
    ]
