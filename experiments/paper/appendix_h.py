"""Appendix H: γ, α, s and αγ of every layer."""

from experiments.claims import Claim, Table, layers_of, mean, number, number_claim, over_seeds, resolved_share
from experiments.studies import Laboratory

TITLE = "Appendix H: the alpha triangle, layer by layer (seed 0)"


def tables(lab: Laboratory) -> list[Table]:
    made = []
    for study in ("resnet", "vgg", "gpt"):
        rows = []
        for name, layer in lab.records(study)[0]["layers"].items():
            if "empty" in layer:
                continue
            fits = (f"{number(layer, key):.2f}" for key in ("gamma", "alpha", "s", "alpha_gamma"))
            held = number(layer, "held_out")
            resolved = "{} of {}".format(*layer["resolved"]) if "resolved" in layer else "–"
            error = f"{100 * number(layer, 'transfer'):.1f} %"
            rows.append((name, *fits, error, f"{held:.2f}" if held == held else "–", resolved))
        header = ("layer", "γ", "α", "s", "αγ", "|s − αγ|/s", "α held out", "resolved")
        made.append(Table(f"{TITLE}: {lab.studies[study].title}", header, rows))
    return made


def claims(lab: Laboratory) -> list[Claim]:
    records = lab.records("resnet")
    found = over_seeds(mean(float(number(one, "transfer") <= 0.1) for one in layers_of(r)) for r in records)
    return [
        number_claim(
            "App. H",
            "the error of s = αγ is below 10 % in 19 of 20 layers",
            "19 of 20",
            0.95,
            1.0,
            found,
            resolved=resolved_share(records),
            note="share of layers",
        )
    ]
