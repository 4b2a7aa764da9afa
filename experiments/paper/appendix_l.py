"""Appendix L: what the Kronecker factors say about the gradient's spectrum."""

from experiments.claims import Claim, Table, layers_of, mean, middle, number, number_claim, over_seeds, resolved_share
from experiments.studies import Laboratory

TITLE = "Appendix L: factors and the gradient's spectrum"
STUDIES = ("resnet", "vgg", "mlp", "gpt", "vit_10")


def _matched(layers: list[dict]) -> float:
    """Share of the layers of which a factor follows the gradient's rank law."""
    return mean(float(one["factor_match"] != "neither") for one in layers if one["factor_match"])


def _predicted(layers: list[dict]) -> float:
    """Share of the layers whose law is the one that the effective ranks predict."""
    known = [one for one in layers if one["predicted"] and one["rank_model"]]
    return mean(float(one["predicted"].replace("_", "") == one["rank_model"].replace("_", "")) for one in known)


def tables(lab: Laboratory) -> list[Table]:
    rows = []
    for study in STUDIES:
        layers = [one for record in lab.records(study) for one in layers_of(record)]
        correlation = middle(number(one, "log_correlation") for one in layers)
        matches = [one["factor_match"] for one in layers if one["factor_match"]]
        by = " / ".join(str(matches.count(name)) for name in ("A", "delta", "both", "neither"))
        rows.append(
            (
                lab.studies[study].title,
                f"{correlation:.3f}",
                f"{100 * _matched(layers):.0f} %",
                by,
                f"{100 * _predicted(layers):.0f} %",
            )
        )
    header = (
        "network",
        "median r(log h_Kron, log σ²)",
        "a factor has the gradient's law",
        "C_A / C_δ / both / neither",
        "law as the effective ranks predict",
    )
    return [Table(TITLE, header, rows)]


def claims(lab: Laboratory) -> list[Claim]:
    records = lab.records("resnet")
    share = resolved_share(records)
    correlation = over_seeds(middle(number(one, "log_correlation") for one in layers_of(record)) for record in records)
    matched = over_seeds(_matched(layers_of(record)) for record in records)
    predicted = over_seeds(_predicted(layers_of(record)) for record in records)
    return [
        number_claim(
            "App. L",
            "log h_Kron and log σ² correlate at 0.97",
            "0.974 (0.921 … 0.988)",
            0.92,
            1.0,
            correlation,
            resolved=share,
            digits=3,
        ),
        number_claim(
            "App. L",
            "a factor has the gradient's BIC law in 87 % of layers",
            "13 of 15",
            0.75,
            1.0,
            matched,
            note="share of layers; C_A or C_δ, so that chance is high",
        ),
        number_claim(
            "App. L",
            "an effective rank below 10 makes the spectrum exponential, else log-normal",
            "all 15",
            0.8,
            1.0,
            predicted,
            note="share of layers",
        ),
    ]
