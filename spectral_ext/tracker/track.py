"""What a tracked run leaves behind: landscapes by step, and series of any quantity over time."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spectral_ext._figures import draw
from spectral_ext.landscape.columns import BY_KEY, summary
from spectral_ext.landscape.row import LayerLandscape
from spectral_ext.landscape.storage import LandscapeFileError
from spectral_ext.landscape.table import Landscape
from spectral_ext.spectra.rank_models import MODELS

PREFIX = "step_"
_FOLDER = re.compile(PREFIX + r"\d{8,}")
"""A tracker's own folders; others whose names begin alike are not its business."""


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
        """A column of ``landscape.columns`` (``alpha``, ``gamma``, ``s``, …) over time: layer → (steps, values).

        Raises:
            KeyError: no such column.
        """
        if quantity not in BY_KEY:
            raise KeyError(f"no quantity {quantity!r}; there are {', '.join(BY_KEY)}")
        value = BY_KEY[quantity].value
        found: dict[str, tuple[list[int], list[Any]]] = {}
        for landscape in self.landscapes:
            for name, row in landscape.items():
                steps, values = found.setdefault(name, ([], []))
                steps.append(_step(landscape))
                values.append(value(row))
        return found

    def winners(self) -> list[dict[str, int]]:
        """How many layers each rank model wins by BIC, at every step (App. G and K)."""
        return [_count(landscape.values()) for landscape in self.landscapes]

    def plot(self, folder: str | Path | None = None, *, theme: str = "light") -> dict[str, Any]:
        """α, γ and s over time, and the rank laws' phase transition (App. E, G, K), by epoch where epochs differ.

        Returns:
            Figures by name, or with ``folder`` the paths of the PNG files written there.
        """
        unit = "epoch" if len(set(self.epochs)) == len(self) else "step"
        return draw("track", self, folder, unit=unit, theme=theme)

    def to_frame(self) -> Any:
        """A pandas DataFrame with one row per layer and step.

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

        A step without a file, which a killed training leaves, is left out with a warning that names it.

        Raises:
            FileNotFoundError: there is none.
            LandscapeFileError: one is truncated, edited, of another version, or holds no step.
        """
        track = cls(_read(Path(folder), keep_going=False))
        if not len(track):
            raise FileNotFoundError(f"no tracked landscape in {folder}")
        return track

    @classmethod
    def resume(cls, folder: str | Path) -> Track:
        """As ``load``, for a training that starts again: no landscape is an empty track, and a file that cannot be
        read is left out with a warning.
        """
        return cls(_read(Path(folder), keep_going=True))


def _read(folder: Path, *, keep_going: bool) -> list[Landscape]:
    found = []
    for path in sorted(folder.glob(PREFIX + "*")):
        if not _FOLDER.fullmatch(path.name) or not path.is_dir():
            continue
        try:
            landscape = Landscape.load(path)
            _check(landscape, path)
        except FileNotFoundError:
            warnings.warn(f"{path} holds no landscape: the training was stopped there", RuntimeWarning, stacklevel=3)
        except (LandscapeFileError, OSError) as error:
            if not keep_going:
                raise
            warnings.warn(f"{path} is left out of the track: {error}", RuntimeWarning, stacklevel=3)
        else:
            found.append(landscape)
    return found


def _check(landscape: Landscape, path: Path) -> None:
    place = landscape.meta.get("track")
    step, epoch = (place.get("step"), place.get("epoch")) if isinstance(place, dict) else (None, None)
    if type(step) is not int or type(epoch) not in (int, float):
        raise LandscapeFileError(
            f"{path}: the landscape does not say at which step and epoch it was measured, so no tracker wrote it: "
            "move it elsewhere"
        )


def _step(landscape: Landscape) -> int:
    return landscape.meta["track"]["step"]


def _count(rows: Any) -> dict[str, int]:
    counts = dict.fromkeys(MODELS, 0)
    row: LayerLandscape
    for row in rows:
        if row.rank_models.ok:
            counts[row.rank_models.best] += 1
    return counts
