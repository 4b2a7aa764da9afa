"""Callbacks for other people's trainers; each imports its trainer only when asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spectral_ext.tracker.tracker import LandscapeTracker


def lightning_callback(tracker: LandscapeTracker) -> Any:
    """See ``LandscapeTracker.lightning_callback``."""
    base: Any = None
    for package in ("lightning.pytorch", "pytorch_lightning"):
        try:
            base = importlib.import_module(package).Callback
            break
        except ImportError:
            continue
    if base is None:
        raise ImportError("a Lightning callback needs Lightning: pip install lightning")

    class LightningCallback(base):
        def on_train_start(self, trainer: Any, module: Any) -> None:
            tracker.steps, tracker.epochs = trainer.global_step, trainer.current_epoch
            tracker.start()

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            _catch_up(tracker, trainer.global_step)

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            tracker.end_epoch()

        def state_dict(self) -> dict[str, int]:
            return tracker.state_dict()

        def load_state_dict(self, state_dict: dict[str, int]) -> None:
            tracker.load_state_dict(state_dict)

    return LightningCallback()


def transformers_callback(tracker: LandscapeTracker) -> Any:
    """See ``LandscapeTracker.transformers_callback``."""
    try:
        base: Any = importlib.import_module("transformers").TrainerCallback
    except ImportError as error:
        raise ImportError("a Trainer callback needs transformers: pip install transformers") from error

    class TransformersCallback(base):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            tracker.steps, tracker.epochs = state.global_step, int(state.epoch or 0)
            tracker.start()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            _catch_up(tracker, state.global_step)

        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            tracker.end_epoch()

    return TransformersCallback()


def _catch_up(tracker: LandscapeTracker, global_step: int) -> None:
    """One ``step()`` an optimizer step: with gradient accumulation a batch may bring none."""
    while tracker.steps < global_step:
        tracker.step()
