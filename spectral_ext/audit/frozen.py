"""The authors' frozen results: JSON files in a folder, read once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spectral_ext.spectra import FitError, fit_alpha, fit_gamma, fit_s

HEADS = ("fc", "classifier.3", "output_head", "head")


class MissingResultsError(LookupError):
    """A file with frozen results is absent."""


@dataclass(frozen=True)
class Layer:
    """One layer of a frozen experiment, with the exponents that our own fits give on its raw arrays."""

    experiment: str
    name: str
    sigma: np.ndarray
    h: np.ndarray
    stored: dict[str, Any]

    @property
    def alpha(self) -> float:
        return fit_alpha(self.sigma, self.h).value

    @property
    def gamma(self) -> float:
        return fit_gamma(self.sigma).value

    @property
    def s(self) -> float:
        return fit_s(self.h).value

    @property
    def triangle_error(self) -> float:
        """|s − αγ| / |s|."""
        s = self.s
        return abs(s - self.alpha * self.gamma) / abs(s)

    @property
    def gamma_r2(self) -> float:
        return fit_gamma(self.sigma).r2

    @property
    def is_head(self) -> bool:
        """The layer that gives the logits."""
        return self.name in HEADS

    @property
    def is_boundary(self) -> bool:
        """The first layer or block, or the head: Figure 2 and Remark 2 set these apart from the interior."""
        return is_boundary(self.name)

    @property
    def is_convolution(self) -> bool:
        return len(self.stored["shape"]) == 4 or self.name.startswith(("conv", "features", "layer"))


class Frozen:
    """The folder of frozen results.

    Raises:
        FileNotFoundError: the folder does not exist or holds no ``results_*.json``.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._cache: dict[str, Any] = {}
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{self.folder} is not a folder: pass the folder with the paper's results_*.json")
        if not any(self.folder.glob("results_*.json")):
            raise FileNotFoundError(f"{self.folder} holds no results_*.json: pass the folder with the paper's results")

    def load(self, name: str) -> Any:
        """The content of ``results_<name>.json``.

        Raises:
            MissingResultsError: the file is absent.
            ValueError: it is not JSON.
        """
        if name not in self._cache:
            path = self.folder / f"results_{name}.json"
            if not path.exists():
                raise MissingResultsError(f"{path.name} is not in the folder")
            try:
                self._cache[name] = json.loads(path.read_text())
            except json.JSONDecodeError as error:
                raise ValueError(f"{path} is not valid JSON ({error}): fetch it again") from error
        return self._cache[name]

    def triangle(self, experiment: str = "") -> list[Layer]:
        """The layers of ``alpha_triangle`` whose experiment starts with the given word."""
        return [
            Layer(run["experiment"], layer["name"], *_arrays(layer), layer)
            for run in self.load("alpha_triangle")
            if run["experiment"].startswith(experiment)
            for layer in run["results"]
        ]

    def conv_gap(self) -> list[Layer]:
        """The five convolutions and the head of ``conv_gap_v2``."""
        data = self.load("conv_gap_v2")
        return [
            Layer("conv_gap", one["name"], *_arrays(one), one) for one in [*data["conv_results"], data["fc_result"]]
        ]

    def ablation(self, group: str, setting: str) -> dict[str, Layer]:
        """The layers of one side of an ablation of ``hypothesis``, by name."""
        rows = self.load("hypothesis")[group][setting]
        return {row["name"]: Layer(setting, row["name"], *_arrays(row), row) for row in rows}

    def predictions(self, architecture: str) -> list[Layer]:
        rows = next(run["results"] for run in self.load("predictions") if run["arch"] == architecture)
        return [Layer(architecture, row["name"], *_arrays(row), row) for row in rows]

    def dimension(self, experiment: str = "") -> list[dict[str, Any]]:
        """The rows of ``intrinsic_dim``: participation ratios (only five raw values are kept there)."""
        return [
            {"experiment": run["experiment"], **row}
            for run in self.load("intrinsic_dim")
            if run["experiment"].startswith(experiment)
            for row in run["results"]
        ]


def _arrays(row: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    sigma, h = np.asarray(row["sigma"], dtype=np.float64), np.asarray(row["h_exact"], dtype=np.float64)
    if len(sigma) != len(h):
        raise FitError(f"{row['name']}: {len(sigma)} singular values and {len(h)} curvatures")
    return sigma, h


def is_boundary(name: str) -> bool:
    return name in HEADS or name in ("conv1", "features.0") or name.startswith("block0.")


def median(values: Sequence[float] | np.ndarray) -> float:
    return float(np.median(np.asarray(values)))
