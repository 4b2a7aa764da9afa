"""``LandscapeTracker``: measure every n steps or epochs of any training loop."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spectral_ext.landscape.columns import TRACKED
from spectral_ext.landscape.measure import measure
from spectral_ext.landscape.table import Landscape
from spectral_ext.measurement.batches import Batch, LossFunction, as_batches
from spectral_ext.measurement.environment import unwrapped
from spectral_ext.measurement.preserve import preserved
from spectral_ext.ops.spectral_newton import MAX_ALPHA
from spectral_ext.tracker.following import OPTIONS, along_momentum
from spectral_ext.tracker.track import PREFIX, Track


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

    With ``optimizer``, a :class:`~spectral_ext.SpectralNewton`, the optimizer follows the landscape::

        tracker = LandscapeTracker(model, loss_fn, batches, every=100, unit="step", optimizer=optimizer)

    Then a landscape that is due is a short one, of σ, h and α alone: along the singular directions of the momentum, to
    which T(σ; α) is applied, by ``sampled_gauss_newton``. It is handed to the optimizer. What that changed is in
    ``meta["track"]["handed"]``, and the state of the optimizer carries it: a training that goes on from a checkpoint
    has the same α. ``start`` and ``measure`` still measure the whole landscape, of the gradient, and hand nothing over.

    Args:
        model: the model that trains (the module itself, not a wrapper that changes names).
        loss_fn, batches: as for ``measure``; the batches are kept, so that every measurement sees the same data.
        every: how many units between measurements.
        unit: ``"epoch"`` or ``"step"``.
        folder: where each landscape is saved (``step_00000012/landscape.json``); None keeps them in memory only.
            Landscapes already there are loaded, so that a resumed training goes on with its track; one that cannot
            be read is left out with a warning.
        mode: ``"eval"`` measures in evaluation mode (dropout off, running statistics), ``"as is"`` in the mode at hand.
            Either way the model's modes are restored.
        tensorboard: a writer with ``add_scalar``; True makes one in ``folder/tensorboard``; None does so if TensorBoard
            is installed and there is a folder; False writes nothing.
        wandb: a run of Weights & Biases (anything with ``log``), which gets the same scalars under ``landscape/``;
            True takes the run that ``wandb.init`` has started.
        on_error: ``"warn"`` lets training go on when measuring, saving or logging fails (a full disk, a loss that is
            not finite), ``"raise"`` does not. A landscape that could not be saved stays in ``track``.
        optimizer: the optimizer that follows, or None.
        adapt: what the optimizer takes from a landscape. ``"alpha"``: each row's ``recommendation.alpha``. Or a
            function of the landscape that returns a mapping with any of ``"alpha"`` and ``"damping"``, mappings from
            layer to value, and ``"transfer"``, a map of the singular values for all matrices. Rows without a fit, and
            with α outside (0, 6], change nothing.
        hysteresis: a matrix keeps its α where the new one differs by this or less, and its damping where the natural
            logarithm does.
        options: further arguments of ``measure`` (``top_k``, ``layers``, ``process_group``, …); with ``optimizer`` also
            ``draws``, the labels drawn for each sample, 8 if not given. With
            ``process_group`` every rank measures and the first rank of the group alone saves and logs.

    Raises:
        TypeError: ``options`` holds a name that ``measure`` does not know.
        ValueError: an option is out of range.
        ImportError: ``tensorboard=True`` or ``wandb=True``, and that package is not installed.
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
        wandb: Any = None,
        on_error: str = "warn",
        optimizer: Any = None,
        adapt: str | Callable[[Landscape], Mapping[str, Any]] = "alpha",
        hysteresis: float = 0.25,
        **options: Any,
    ) -> None:
        for name, value, allowed in (
            ("unit", unit, ("epoch", "step")),
            ("mode", mode, ("eval", "as is")),
            ("on_error", on_error, ("warn", "raise")),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be {' or '.join(map(repr, allowed))}, not {value!r}")
        known = [name for name, one in inspect.signature(measure).parameters.items() if one.kind is one.KEYWORD_ONLY]
        known += ["draws"] if optimizer is not None else []
        for name in options:
            if name not in known:
                raise TypeError(f"LandscapeTracker: measure has no option {name!r}; it has {', '.join(known)}")
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"every must be a whole number of at least 1, not {every!r}")
        if optimizer is not None and not hasattr(optimizer, "set_exponents"):
            raise TypeError(
                f"optimizer must be a SpectralNewton, which takes exponents, not {type(optimizer).__name__}"
            )
        if adapt != "alpha" and not callable(adapt):
            raise ValueError(f"adapt must be 'alpha' or a function of the landscape, not {adapt!r}")
        if not isinstance(hysteresis, (int, float)) or not 0 <= hysteresis < math.inf:
            raise ValueError(f"hysteresis must be at least 0 and finite, not {hysteresis!r}")
        if optimizer is not None and not options.keys().isdisjoint(("directions", "folds")):
            raise ValueError("with optimizer= the directions are those of its momentum: leave out directions and folds")
        if tensorboard is True and folder is None:
            raise ValueError("tensorboard=True needs a folder to write to")
        self.model, self.loss_fn, self.batches = (
            model,
            loss_fn,
            as_batches(
                batches,
                unwrapped(model),
                batch_size=options.get("batch_size"),
                count=options.get("count"),
                mask=options.get("mask"),
            ),
        )
        self.every, self.unit, self.mode, self.on_error = every, unit, mode, on_error
        self.folder = Path(folder) if folder is not None else None
        self.optimizer, self.adapt, self.hysteresis = optimizer, adapt, hysteresis
        self.options = {"progress": False, **options}
        self.steps, self.epochs = 0, 0
        self.track = Track.resume(self.folder) if self.folder is not None else Track()
        self.writes = _is_first(options.get("process_group"))
        self.writer = _writer(tensorboard, self.folder) if self.writes else None
        self.run = _run(wandb) if self.writes else None

    def start(self) -> Landscape | None:
        """Measure now, unless the track already holds this step."""
        return self.measure() if self.steps not in self.track.steps else None

    def step(self) -> Landscape | None:
        """Count an optimizer step; the landscape if one was due."""
        self.steps += 1
        return self._due() if self.unit == "step" and self.steps % self.every == 0 else None

    def end_epoch(self) -> Landscape | None:
        """Count an epoch; the landscape if one was due."""
        self.epochs += 1
        return self._due() if self.unit == "epoch" and self.epochs % self.every == 0 else None

    def _due(self) -> Landscape | None:
        """Measure, and hand what was measured to the optimizer."""
        if self.optimizer is None:
            return self.measure()
        options = {key: value for key, value in self.options.items() if key in OPTIONS}
        landscape = self._measured(
            lambda model, loss_fn, batches: along_momentum(model, loss_fn, batches, self.optimizer, **options)
        )
        if landscape is None:
            return None
        try:
            landscape.meta["track"]["handed"] = self._hand(landscape)
        except Exception as error:
            self._failed("the optimizer keeps its settings", error)
        self._keep(landscape)
        return landscape

    def _hand(self, landscape: Landscape) -> dict[str, Any]:
        """Give the optimizer what ``adapt`` takes from a landscape: setting → what changed."""
        if callable(self.adapt):
            settings = dict(self.adapt(landscape))
        else:
            advised = {name: row.recommendation.alpha for name, row in landscape.items() if row.recommendation}
            settings = {"alpha": {name: alpha for name, alpha in advised.items() if 0 < alpha <= MAX_ALPHA}}
        if not settings.keys() <= {"alpha", "damping", "transfer"}:
            raise ValueError(f"adapt returned {', '.join(settings)}: it may return alpha, damping and transfer")
        handed: dict[str, Any] = {}
        if "alpha" in settings:
            handed["alpha"] = self.optimizer.set_exponents(settings["alpha"], hysteresis=self.hysteresis)
        if "damping" in settings:
            handed["damping"] = self.optimizer.set_dampings(settings["damping"], hysteresis=self.hysteresis)
        if "transfer" in settings:
            handed["transfer"] = self.optimizer.set_transfer(settings["transfer"])
        return {
            key: {name: list(pair) for name, pair in change.items()} if isinstance(change, dict) else change
            for key, change in handed.items()
        }

    def measure(self) -> Landscape | None:
        """Measure the whole landscape now, save and log; None if the measurement failed and ``on_error`` is ``"warn"``.
        Nothing is handed to the optimizer."""
        options = {key: value for key, value in self.options.items() if key != "draws"}
        landscape = self._measured(lambda *data: measure(*data, **options))
        if landscape is not None:
            self._keep(landscape)
        return landscape

    def _measured(self, take: Callable[..., Landscape]) -> Landscape | None:
        """The landscape that ``take`` measures of model, loss and batches, in the mode that was asked for."""
        try:
            with preserved(self.model):
                if self.mode == "eval":
                    self.model.eval()
                landscape = take(self.model, self.loss_fn, self.batches)
        except Exception as error:
            self._failed("no landscape", error)
            return None
        landscape.meta["track"] = {"step": self.steps, "epoch": self.epochs}
        return landscape

    def _keep(self, landscape: Landscape) -> None:
        """Add a landscape to the track, save and log it."""
        self.track.add(landscape)
        if self.folder is not None and self.writes:
            try:
                landscape.save(self.folder / f"{PREFIX}{self.steps:08d}")
            except Exception as error:
                self._failed("the landscape is not saved", error)
        if self.writer is not None or self.run is not None:
            winners = self.track.winners()[self.track.steps.index(self.steps)]
            try:
                _log(self.writer, self.run, landscape, self.steps, winners)
            except Exception as error:
                self._failed("the landscape is not logged", error)

    def _failed(self, what: str, error: Exception) -> None:
        """Warn, or raise ``error`` where the user asked for it; called while ``error`` is handled."""
        if self.on_error == "raise":
            raise error
        warnings.warn(f"{what} at step {self.steps}: {error or type(error).__name__}", RuntimeWarning, stacklevel=4)

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


def _is_first(process_group: Any) -> bool:
    """Whether this process writes files: with a process group only its first rank does."""
    return process_group is None or torch.distributed.get_rank(process_group) == 0


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


def _run(wandb: Any) -> Any:
    if wandb in (None, False):
        return None
    if wandb is not True:
        if not callable(getattr(wandb, "log", None)):
            raise TypeError(f"wandb must be a run with log(), True or None, not {type(wandb).__name__}")
        return wandb
    try:
        import wandb as package
    except ImportError as error:
        raise ImportError("wandb=True needs Weights & Biases: pip install wandb") from error
    if package.run is None:
        raise ValueError("wandb=True takes the run that wandb.init() has started, and none is: call it first")
    return package.run


def _log(writer: Any, run: Any, landscape: Landscape, step: int, winners: dict[str, int]) -> None:
    scalars: dict[str, float] = {f"rank model wins/{model}": count for model, count in winners.items()}
    for name, row in landscape.items():
        for column in TRACKED:
            value = column.value(row)
            if isinstance(value, (int, float)) and math.isfinite(value):
                scalars[f"{column.key}/{name}"] = value
    if writer is not None:
        for key, value in scalars.items():
            writer.add_scalar(key, value, step)
        if hasattr(writer, "flush"):
            writer.flush()
    if run is not None:  # with a step of its own: the run's own counter belongs to the training
        run.log({"landscape/step": step, **{f"landscape/{key}": value for key, value in scalars.items()}})
