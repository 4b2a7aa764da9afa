"""The studies: networks trained with several seeds and measured at several stages, which tables and figures read.

A study trains with AdamW, and measures own-batch and cross-fitted landscapes of one fixed set of training samples, in
eval mode, before the first step, early, and at the end. A record is a line of the journal per seed and stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import nn

from experiments.data import Data, images, text
from experiments.journal import Journal
from experiments.networks import GPT, MLP, VGG, ViT, cross_entropy, resnet18, resnet50
from experiments.summary import landscape_record, spectral_drift
from experiments.training import train
from spectral_ext import fit_rank_models, measure
from spectral_ext.layers import find_layers
from spectral_ext.spectra.regression import FitError

SEEDS = (0, 1, 2)
STAGES = {"init": 0.0, "early": 0.1, "end": 1.0}
"""Share of the steps."""


@dataclass(frozen=True)
class Study:
    """One network on one data set."""

    title: str
    network: Callable[[Data], nn.Module]
    data: Callable[..., Data]
    sizes: tuple[int, int, int]
    options: dict[str, Any]
    steps: int
    batch: int = 64
    lr: float = 2e-3
    flip: bool = False
    samples: int = 256
    measured_batch: int = 64
    folds: int = 8
    top_k: int = 16
    stages: dict[str, float] = field(default_factory=lambda: dict(STAGES))
    gradients_only: bool = False
    """Record the rank law of σ_k alone, over ``top_k`` singular values, without curvature."""

    def load(self, folder: str | None) -> Data:
        return self.data(**self.options, **dict(zip(("train", "validation", "test"), self.sizes)), folder=folder)

    def settings(self, name: str, scale: str) -> dict[str, Any]:
        """What decides the numbers, beside the seed."""
        own = {key: value for key, value in asdict(self).items() if key not in ("network", "data", "title")}
        return {"study": name, "scale": scale, **own}


CIFAR = {"name": "cifar10", "side": 16}
TINY = {"name": "tiny-imagenet"}
VIT_STAGES = {"init": 0.0, "end": 1.0}


def _small() -> dict[str, Study]:
    conv = {"data": images, "sizes": (2000, 1000, 2000), "options": CIFAR, "flip": True}
    vit = {"data": images, "sizes": (2500, 500, 1000), "steps": 720, "stages": VIT_STAGES, "flip": True, "top_k": 12}
    gpt = {"data": text, "sizes": (8000, 256, 512), "options": {"length": 32}, "steps": 1200, "batch": 32,
           "samples": 64, "measured_batch": 8, "top_k": 12}  # fmt: skip
    return {
        "resnet": Study("ResNet-18, width 8, CIFAR-10", lambda d: resnet18(8, d.classes), steps=900, **conv),
        "resnet_large": Study("ResNet-18, width 8, CIFAR-10", lambda d: resnet18(8, d.classes), steps=900,
                              **(conv | {"samples": 1024, "stages": {"end": 1.0}})),
        "vgg": Study("VGG-11, width 8, CIFAR-10", lambda d: VGG(11, 8, d.classes, 16), steps=900, **conv),
        "mlp": Study("MLP, 3 × 128, CIFAR-10", lambda d: MLP(768, 128, 3, d.classes), steps=900, **conv),
        "resnet_200": Study("ResNet-18, width 8, 200 classes", lambda d: resnet18(8, d.classes),
                            **(conv | {"options": {**TINY, "side": 16}}), steps=900, stages={"end": 1.0}),
        "gpt": Study("GPT, 2 layers of 48", lambda d: GPT(d.details["vocabulary"], 48, 32, 2, 4), **gpt),
        "gpt_classes": Study("GPT, 2 layers of 48, two classes",
                             lambda d: GPT(d.details["vocabulary"], 48, 32, 2, 4, d.classes),
                             **(gpt | {"options": {"length": 32, "classify": True}, "stages": {"end": 1.0}})),
        "gpt_no_norm": Study("GPT, 2 layers of 48, without LayerNorm",
                             lambda d: GPT(d.details["vocabulary"], 48, 32, 2, 4, norm=False),
                             **(gpt | {"stages": {"end": 1.0}})),
        "vit_10": Study("ViT, 3 layers of 48, 10 classes", lambda d: ViT(32, 8, 48, 3, 4, d.classes),
                        options={**TINY, "classes": 10}, **vit),
        "vit_100": Study("ViT, 3 layers of 48, 100 classes", lambda d: ViT(32, 8, 48, 3, 4, d.classes),
                         options={**TINY, "classes": 100}, **vit),
        "vit_no_norm": Study("ViT, 3 layers of 48, 10 classes, without LayerNorm",
                             lambda d: ViT(32, 8, 48, 3, 4, d.classes, norm=False),
                             options={**TINY, "classes": 10}, **(vit | {"stages": {"end": 1.0}})),
        **{f"width_{n}": Study(f"MLP, 1 × {n}, CIFAR-10", lambda d, n=n: MLP(768, n, 1, d.classes), steps=900,
                               **conv, folds=3, stages={"end": 1.0}) for n in (64, 128, 256, 512)},
        "vgg16": Study("VGG-16, width 16, 200 classes", lambda d: VGG(16, 16, d.classes, 16),
                       **(conv | {"options": {**TINY, "side": 16}}), steps=900, samples=512, top_k=100,
                       stages={f"epoch {e}": e / 5 for e in range(6)}, gradients_only=True),
    }  # fmt: skip


def _full() -> dict[str, Study]:
    """The networks of the paper, for one GPU."""
    conv = {"data": images, "sizes": (45000, 5000, 10000), "options": {"name": "cifar10"}, "flip": True, "batch": 128,
            "samples": 2048, "measured_batch": 128, "top_k": 20}  # fmt: skip
    tiny = conv | {"sizes": (90000, 5000, 10000), "options": TINY}
    vit = {"batch": 128, "stages": VIT_STAGES, "steps": 10500, "samples": 2048, "measured_batch": 64, "top_k": 20,
           "data": images, "sizes": (45000, 5000, 10000), "flip": True, "lr": 1e-3}  # fmt: skip
    gpt = {"data": text, "sizes": (100000, 1000, 4000), "options": {"length": 128}, "steps": 5000, "batch": 64,
           "samples": 2048, "measured_batch": 16, "top_k": 20, "lr": 1e-3}  # fmt: skip
    classify = gpt | {"options": {"length": 128, "classify": True}, "stages": {"end": 1.0}}
    end = {"stages": {"end": 1.0}}
    return {
        "resnet": Study("ResNet-18, CIFAR-10", lambda d: resnet18(64, d.classes), steps=10500, **conv),
        "resnet_large": Study("ResNet-18, CIFAR-10", lambda d: resnet18(64, d.classes), steps=10500,
                              **(conv | {"samples": 8192, "stages": {"end": 1.0}})),
        "vgg": Study("VGG-11, CIFAR-10", lambda d: VGG(11, 64, d.classes), steps=10500, **conv),
        "mlp": Study("MLP, 3 × 512, CIFAR-10", lambda d: MLP(3072, 512, 3, d.classes), steps=7000, **conv),
        "resnet_200": Study("ResNet-50, Tiny-ImageNet", lambda d: resnet50(64, d.classes), steps=17500, **(tiny | end)),
        "gpt": Study("GPT, 6 layers of 384", lambda d: GPT(d.details["vocabulary"], 384, 128, 6, 6), **gpt),
        "gpt_classes": Study("GPT, 6 layers of 384, two classes",
                             lambda d: GPT(d.details["vocabulary"], 384, 128, 6, 6, d.classes), **classify),
        "gpt_no_norm": Study("GPT, 6 layers of 384, without LayerNorm",
                             lambda d: GPT(d.details["vocabulary"], 384, 128, 6, 6, norm=False), **(gpt | end)),
        "vit_10": Study("ViT-Tiny, CIFAR-10", lambda d: ViT(classes=d.classes), options={"name": "cifar10"}, **vit),
        "vit_100": Study("ViT-Tiny, CIFAR-100", lambda d: ViT(classes=d.classes), options={"name": "cifar100"}, **vit),
        "vit_no_norm": Study("ViT-Tiny, CIFAR-10, without LayerNorm", lambda d: ViT(classes=d.classes, norm=False),
                             options={"name": "cifar10"}, **(vit | end)),
        **{f"width_{n}": Study(f"MLP, 1 × {n}, CIFAR-10", lambda d, n=n: MLP(3072, n, 1, d.classes), steps=7000,
                               **conv, folds=3, stages={"end": 1.0}) for n in (64, 128, 256, 512)},
        "vgg16": Study("VGG-16, Tiny-ImageNet", lambda d: VGG(16, 64, d.classes), steps=17500,
                       **(tiny | {"top_k": 100}), stages={f"epoch {5 * e}": e / 5 for e in range(6)},
                       gradients_only=True),
    }  # fmt: skip


def _tiny() -> dict[str, Study]:
    """Seconds in all: every study of the small scale with hardly any training, to test the house."""

    def shrunk(study: Study) -> Study:
        return replace(
            study, sizes=(128, 32, 32), steps=4, batch=16, samples=24, measured_batch=8, folds=3, top_k=6,
            stages={"init": 0.0, "early": 0.5, "end": 1.0} if "early" in study.stages else study.stages,
        )  # fmt: skip

    return {name: shrunk(study) for name, study in _small().items()}


SCALES: dict[str, Callable[[], dict[str, Study]]] = {"small": _small, "full": _full, "tiny": _tiny}


class MissingResultError(RuntimeError):
    """The journal does not hold a run, and no new ones are wanted."""


class Laboratory:
    """The studies of a scale and their records: those in the journal, and new ones.

    Args:
        scale: ``small``, ``full`` or ``tiny``.
        journal: of the studies.
        sweep_journal: of the optimizers, which Table 3 reads.
        folder: of the data, see :mod:`experiments.data`.
        seeds: of every study.
        device: where networks are trained and measured.
        read_only: run nothing; what is missing raises ``MissingResultError``.
        progress: called with a text before each piece of work.
    """

    def __init__(
        self,
        scale: str,
        journal: Journal,
        sweep_journal: Journal | None = None,
        *,
        folder: str | None = None,
        seeds: Iterable[int] = SEEDS,
        device: str = "cpu",
        read_only: bool = False,
        progress: Callable[[str], Any] = lambda text: None,
    ) -> None:
        self.scale, self.journal, self.folder, self.seeds = scale, journal, folder, tuple(seeds)
        self.sweep_journal = sweep_journal or journal
        self.device, self.read_only, self.progress = device, read_only, progress
        self.studies = SCALES[scale]()

    def records(self, name: str, stage: str = "end") -> list[dict[str, Any]]:
        """The results of a study at a stage, one per seed; studies that have not run yet are run first.

        Raises:
            KeyError: the study has no such stage.
            MissingResultError: it has not run, and the laboratory only reads.
        """
        study = self.studies[name]
        if stage not in study.stages:
            raise KeyError(f"the study {name!r} has no stage {stage!r}: it has {', '.join(study.stages)}")
        settings = study.settings(name, self.scale)
        found = []
        for seed in self.seeds:
            key = f"study/{self.scale}/{name}/seed={seed}"
            record = self.journal.get(f"{key}/{stage}", settings)
            if record is None:
                self._refuse(f"{key}/{stage}")
                self._run(name, study, settings, seed, key)
                record = self.journal.runs[f"{key}/{stage}"]
            found.append(record["result"])
        return found

    def kept(
        self, key: str, settings: dict[str, Any], seed: int, study: Study, run: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """The result of any other run from the journal, or of a new one."""
        record = self.journal.get(key, settings)
        if record is None:
            self._refuse(key)
            self.progress(key)
            data = study.load(self.folder)
            record = self.journal.add(
                key, settings, run(), seed=seed, data=data.describe(), substitutions=data.substitutions
            )
        return record["result"]

    def _refuse(self, key: str) -> None:
        if self.read_only:
            raise MissingResultError(
                f"{self.journal.path} has no {key!r}: python -m experiments run --scale {self.scale}"
            )

    def substitutions(self, name: str) -> list[str]:
        """What stands in for what in a study that has run."""
        prefix = f"study/{self.scale}/{name}/"
        return sorted({text for record in self.journal.select(prefix) for text in record["substitutions"]})

    def _run(self, name: str, study: Study, settings: dict[str, Any], seed: int, key: str) -> None:
        """Train with one seed and enter a record per stage; stages that an interrupted run left are entered again."""
        data = study.load(self.folder)
        torch.manual_seed(seed)
        model = study.network(data).to(self.device)
        at = {max(0, round(share * study.steps)): stage for stage, share in study.stages.items()}
        measured: list[Any] = []

        def look(step: int) -> None:
            if step not in at:
                return
            stage = at[step]
            self.progress(f"{name}, seed {seed}, {stage}")
            model.eval()
            result, landscape = self._measured(study, model, data, seed)
            if measured and landscape is not None:
                result["drift"] = spectral_drift(measured[-1], landscape)
            measured.append(landscape)
            model.train()
            if self.journal.get(f"{key}/{stage}", settings) is None:
                self.journal.add(
                    f"{key}/{stage}", settings, {"step": step, **result}, seed=seed, data=data.describe(),
                    substitutions=data.substitutions,
                )  # fmt: skip

        look(0)
        optimizer = torch.optim.AdamW(model.parameters(), study.lr, weight_decay=0.01)
        self.progress(f"{name}, seed {seed}, training")
        train(
            model, [optimizer], data.to(self.device), steps=study.steps, batch=study.batch, seed=seed, flip=study.flip,
            on_step=look,
        )  # fmt: skip

    def _measured(self, study: Study, model: nn.Module, data: Data, seed: int) -> tuple[dict[str, Any], Any]:
        x, y = (t[: study.samples].to(self.device) for t in data.train)
        batches = list(zip(x.split(study.measured_batch), y.split(study.measured_batch), strict=True))
        if study.gradients_only:
            return {"layers": rank_laws(model, batches, study.top_k)}, None
        landscape = measure(model, cross_entropy, batches, top_k=study.top_k, folds=study.folds, progress=False, seed=0)
        return landscape_record(model, landscape, arrays=seed == 0), landscape


def rank_laws(model: nn.Module, batches: list[Any], top_k: int) -> dict[str, dict[str, Any]]:
    """Layer → the BIC winner over its first ``top_k`` singular values, and γ's window."""
    layers, _ = find_layers(model)
    model.zero_grad()
    count = sum(len(x) for x, _ in batches)
    for x, y in batches:
        (cross_entropy(model(x), y) * (len(x) / count)).backward()
    found = {}
    for name, layer in layers.items():
        sigma = torch.linalg.svdvals(layer.matrix(layer.weight.grad).double()).cpu().numpy()[:top_k]
        sigma = sigma[sigma > 1e-7 * sigma.max(initial=0.0)]
        try:
            best = fit_rank_models(sigma).best
        except FitError as error:
            found[name] = {"empty": str(error)}
            continue
        found[name] = {"rank_model": best, "directions": len(sigma)}
    model.zero_grad()
    return found
