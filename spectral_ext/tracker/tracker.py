"""``LandscapeTracker``: measure every n steps or epochs of any training loop."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from spectral_ext.landscape.measure import measure
from spectral_ext.landscape.table import Landscape, summary
from spectral_ext.measurement.batches import Batch, LossFunction, as_batches
from spectral_ext.measurement.environment import unwrapped
from spectral_ext.measurement.preserve import preserved
from spectral_ext.tracker.track import PREFIX, Track

SCALARS = ("alpha", "gamma", "s", "alpha_gamma", "transfer_error", "pr_curvature", "negative")


class LandscapeTracker:
    """Measures a model on fixed data while it trains, and keeps α, γ, s, the BIC winners and all else over time.

    In a plain loop::

        tracker = LandscapeTracker(model, loss_fn, batches, every=1, unit="epoch", folder="run")
        tracker.start()                       # the landscape at initialisation
        for epoch in range(epochs):
            for batch in loader:
                ...
                tracker.step()
            tracker.end_epoch()
        tracker.track.series("alpha")

    With Lightning or the Hugging Face Trainer pass ``tracker.lightning_callback()`` or
    ``tracker.transformers_callback()``.

    Args:
        model: the model that trains (the module itself, not a wrapper that changes names).
        loss_fn, batches: as for ``measure``; the batches are kept, so that every measurement sees the same data.
        every: how many units between measurements.
        unit: ``"epoch"`` or ``"step"``.
        folder: where each landscape is saved (``step_00000012/landscape.json``); None keeps them in memory only.
            Landscapes already there are loaded, so that a resumed training goes on with its track.
        mode: ``"eval"`` measures in evaluation mode (dropout off, running statistics), ``"as is"`` in the mode at hand.
            Either way the model's modes are restored.
        tensorboard: a writer with ``add_scalar``; True makes one in ``folder/tensorboard``; None does so if TensorBoard
            is installed and there is a folder; False writes nothing.
        on_error: ``"warn"`` lets training go on when a measurement fails, ``"raise"`` does not.
        options: further arguments of ``measure`` (``top_k``, ``layers``, …).

    Raises:
        ValueError: an option is out of range.
        ImportError: ``tensorboard=True`` and TensorBoard is not installed.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        batches: Iterable[Batch],
        *,
        every: int = 1,
        unit: str = "epoch",
        folder: str | Path | None = None,
        mode: str = "eval",
        tensorboard: Any = None,
        on_error: str = "warn",
        **options: Any,
    ) -> None:
        for name, value, allowed in (
            ("unit", unit, ("epoch", "step")),
            ("mode", mode, ("eval", "as is")),
            ("on_error", on_error, ("warn", "raise")),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be {' or '.join(map(repr, allowed))}, not {value!r}")
        if every < 1:
            raise ValueError(f"every must be at least 1, not {every}")
        if tensorboard is True and folder is None:
            raise ValueError("tensorboard=True needs a folder to write to")
        self.model, self.loss_fn, self.batches = (
            model,
            loss_fn,
            as_batches(batches, unwrapped(model), batch_size=options.get("batch_size")),
        )
        self.every, self.unit, self.mode, self.on_error = every, unit, mode, on_error
        self.folder = Path(folder) if folder is not None else None
        self.options = {"progress": False, **options}
        self.steps, self.epochs = 0, 0
        written = self.folder is not None and any(self.folder.glob(PREFIX + "*"))
        self.track = Track.load(self.folder) if written and self.folder is not None else Track()
        self.writer = _writer(tensorboard, self.folder)

    def start(self) -> Landscape | None:
        """Measure now, unless the track already holds this step."""
        return self.measure() if self.steps not in self.track.steps else None

    def step(self) -> Landscape | None:
        """Count an optimizer step; the landscape if one was due."""
        self.steps += 1
        return self.measure() if self.unit == "step" and self.steps % self.every == 0 else None

    def end_epoch(self) -> Landscape | None:
        """Count an epoch; the landscape if one was due."""
        self.epochs += 1
        return self.measure() if self.unit == "epoch" and self.epochs % self.every == 0 else None

    def measure(self) -> Landscape | None:
        """Measure now, save and log; None if it failed and ``on_error`` is ``"warn"``."""
        try:
            with preserved(self.model):
                if self.mode == "eval":
                    self.model.eval()
                landscape = measure(self.model, self.loss_fn, self.batches, **self.options)
        except Exception as error:
            if self.on_error == "raise":
                raise
            warnings.warn(f"no landscape at step {self.steps}: {error}", RuntimeWarning, stacklevel=3)
            return None
        landscape.meta["track"] = {"step": self.steps, "epoch": self.epochs}
        self.track.add(landscape)
        if self.folder is not None:
            landscape.save(self.folder / f"{PREFIX}{self.steps:08d}")
        if self.writer is not None:
            _log(self.writer, landscape, self.steps, self.track.winners()[self.track.steps.index(self.steps)])
        return landscape

    def state_dict(self) -> dict[str, int]:
        return {"steps": self.steps, "epochs": self.epochs}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.steps, self.epochs = state["steps"], state["epochs"]

    def lightning_callback(self) -> Any:
        """A Lightning ``Callback`` that drives this tracker.

        Raises:
            ImportError: Lightning is not installed.
        """
        from spectral_ext.tracker.callbacks import lightning_callback

        return lightning_callback(self)

    def transformers_callback(self) -> Any:
        """A Hugging Face ``TrainerCallback`` that drives this tracker.

        Raises:
            ImportError: transformers is not installed.
        """
        from spectral_ext.tracker.callbacks import transformers_callback

        return transformers_callback(self)


def _writer(tensorboard: Any, folder: Path | None) -> Any:
    if tensorboard is False or (tensorboard is None and folder is None):
        return None
    if tensorboard not in (None, True):
        return tensorboard
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        if tensorboard is True:
            raise ImportError("tensorboard=True needs TensorBoard: pip install tensorboard") from error
        return None
    assert folder is not None
    return SummaryWriter(str(folder / "tensorboard"))


def _log(writer: Any, landscape: Landscape, step: int, winners: dict[str, int]) -> None:
    for name, row in landscape.items():
        flat = summary(row)
        for key in SCALARS:
            if math.isfinite(flat[key]):
                writer.add_scalar(f"{key}/{name}", flat[key], step)
    for model, count in winners.items():
        writer.add_scalar(f"rank model wins/{model}", count, step)
    if hasattr(writer, "flush"):
        writer.flush()
