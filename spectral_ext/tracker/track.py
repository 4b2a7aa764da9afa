"""What a tracked run leaves behind: landscapes by step, and series of any quantity over time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spectral_ext.landscape.row import LayerLandscape
from spectral_ext.landscape.table import Landscape, summary
from spectral_ext.spectra.rank_models import MODELS

PREFIX = "step_"


class Track:
    """Landscapes in order of step; each holds ``step`` and ``epoch`` in its ``meta["track"]``."""

    def __init__(self, landscapes: list[Landscape] | None = None) -> None:
        self.landscapes = sorted(landscapes or [], key=_step)

    def __len__(self) -> int:
        return len(self.landscapes)

    def __iter__(self) -> Iterator[Landscape]:
        return iter(self.landscapes)

    @property
    def steps(self) -> list[int]:
        return [_step(landscape) for landscape in self.landscapes]

    @property
    def epochs(self) -> list[float]:
        return [landscape.meta["track"]["epoch"] for landscape in self.landscapes]

    def add(self, landscape: Landscape) -> None:
        """Insert a landscape; one of the same step is replaced."""
        step = _step(landscape)
        self.landscapes = sorted([*(old for old in self.landscapes if _step(old) != step), landscape], key=_step)

    def series(self, quantity: str) -> dict[str, tuple[list[int], list[Any]]]:
        """A column of ``summary`` (``alpha``, ``gamma``, ``s``, …) over time: layer → (steps, values).

        Raises:
            KeyError: no such column.
        """
        found: dict[str, tuple[list[int], list[Any]]] = {}
        for landscape in self.landscapes:
            for name, row in landscape.items():
                flat = summary(row)
                if quantity not in flat:
                    raise KeyError(f"no quantity {quantity!r}; there are {', '.join(flat)}")
                steps, values = found.setdefault(name, ([], []))
                steps.append(_step(landscape))
                values.append(flat[quantity])
        return found

    def winners(self) -> list[dict[str, int]]:
        """How many layers each rank model wins by BIC, at every step (App. G and K)."""
        return [_count(landscape.values()) for landscape in self.landscapes]

    def plot(self, folder: str | Path | None = None, *, theme: str = "light") -> dict[str, Any]:
        """α, γ and s over time, and the rank laws' phase transition (App. E, G, K), by epoch where epochs differ.

        Returns:
            Figures by name, or with ``folder`` the paths of the PNG files written there.
        """
        from spectral_ext.plots import plot_track

        unit = "epoch" if len(set(self.epochs)) == len(self) else "step"
        return plot_track(self, folder, unit=unit, theme=theme)

    def to_frame(self) -> Any:
        """A pandas DataFrame with one row a layer and step.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("Track.to_frame needs pandas: pip install pandas") from error
        return pandas.DataFrame(
            [
                {"step": _step(landscape), "epoch": landscape.meta["track"]["epoch"], **summary(row)}
                for landscape in self.landscapes
                for row in landscape.values()
            ]
        )

    @classmethod
    def load(cls, folder: str | Path) -> Track:
        """All landscapes that a tracker wrote below ``folder``.

        Raises:
            FileNotFoundError: there is none.
            LandscapeFileError: one is truncated, edited or of another version.
        """
        folders = sorted(Path(folder).glob(PREFIX + "*"))
        if not folders:
            raise FileNotFoundError(f"no tracked landscape in {folder}")
        return cls([Landscape.load(path) for path in folders])


def _step(landscape: Landscape) -> int:
    return landscape.meta["track"]["step"]


def _count(rows: Any) -> dict[str, int]:
    counts = dict.fromkeys(MODELS, 0)
    row: LayerLandscape
    for row in rows:
        if row.rank_models.ok:
            counts[row.rank_models.best] += 1
    return counts
