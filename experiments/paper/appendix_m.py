"""Appendix M: Adam with a learning rate per layer from s = αγ, the paper's negative control."""

import torch

from experiments.claims import Claim, Table, number_claim, over_seeds
from experiments.studies import Laboratory
from experiments.training import evaluate, train
from spectral_ext import ScalarSpectralAdam

TITLE = "Appendix M: per-layer learning rates from s"
BETAS = (-1.0, 0.0, 0.5, 1.0, 1.5)


def _accuracy(lab: Laboratory, beta: float, seed: int) -> float:
    """Test accuracy of the ResNet study's network; s is measured early in training, with the same seed."""
    study = lab.studies["resnet"]
    layers = lab.records("resnet", "early")[lab.seeds.index(seed)]["layers"]
    s = {name: one["alpha_gamma"] for name, one in layers.items() if one.get("alpha_gamma")}
    settings = study.settings("resnet", lab.scale) | {"beta": beta}

    def run() -> dict:
        data = study.load(lab.folder)
        torch.manual_seed(seed)
        model = study.network(data).to(lab.device)
        data = data.to(lab.device)
        fixed = {"weight_decay": 0.01, "decoupled_weight_decay": True}
        optimizer = ScalarSpectralAdam(model, s, study.lr, beta, **fixed)
        train(model, [optimizer], data, steps=study.steps, batch=study.batch, seed=seed, flip=study.flip)
        return {"accuracy": evaluate(model, data.test)[1]}

    return lab.kept(f"scalar/{lab.scale}/beta={beta:g} seed={seed}", settings, seed, study, run)["accuracy"]


def _all(lab: Laboratory) -> dict[float, list[float]]:
    return {beta: [_accuracy(lab, beta, seed) for seed in lab.seeds] for beta in BETAS}


def tables(lab: Laboratory) -> list[Table]:
    rows = [(f"{beta:g}" if beta else "0 (Adam)", str(over_seeds(values))) for beta, values in _all(lab).items()]
    return [Table(TITLE, ("exponent β of s/s̄", "test accuracy, %, over seeds"), rows)]


def claims(lab: Laboratory) -> list[Claim]:
    found = _all(lab)
    made = []
    for beta in (1.0, 1.5):
        gain = over_seeds(a - b for a, b in zip(found[beta], found[0.0], strict=True))
        made.append(
            number_claim(
                "App. M",
                f"rates from s with β = {beta:g} change nothing",
                "within 0.2 points",
                -0.2,
                0.2,
                gain,
                note="points over Adam, paired by seed",
            )
        )
    return made
