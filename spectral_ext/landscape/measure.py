"""``measure``: the whole landscape of a model in one call."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from spectral_ext._version import __version__
from spectral_ext.capture import Capture, capture_factors, capture_quotients
from spectral_ext.curvature import directional_curvature
from spectral_ext.curvature.choose import METHODS
from spectral_ext.landscape.build import build_row, empty_row
from spectral_ext.landscape.resume import RowStore, fingerprint
from spectral_ext.landscape.row import LayerLandscape
from spectral_ext.landscape.table import Landscape
from spectral_ext.layers import Layer, find_layers, why_no_layer
from spectral_ext.measurement.batches import Batch, BatchSize, LossFunction, as_batches
from spectral_ext.measurement.checks import REDUCTION_NOTES, batch_norm_mode, check_task
from spectral_ext.measurement.environment import measurement, unwrapped
from spectral_ext.measurement.options import check_options
from spectral_ext.measurement.singular_directions import SingularDirections, singular_directions

GROUP = 8
"""Layers a curvature call takes when rows are kept for a resumed run."""


def measure(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Iterable[Batch],
    *,
    top_k: int = 20,
    layers: str | Iterable[str] | None = None,
    method: str = "auto",
    split: bool = True,
    seed: int = 0,
    level: float = 0.95,
    memory_budget: int | None = None,
    progress: bool = True,
    batch_size: BatchSize | None = None,
    resume: str | Path | None = None,
) -> Landscape:
    """Measure every layer: G = UΣVᵀ, h_k along u_k v_kᵀ, C_A, C_δ, and all that the paper derives from them.

    Two forward-backward passes over the data (factors, then second moments along the directions) and one call of
    ``directional_curvature``. The model is measured in the mode it is in: under train-mode batch norm h is the
    curvature of the batch-coupled loss and d includes the coupling (``meta["batch_norm"]`` says so); running
    statistics do not move. Model, gradients, hooks, buffers, RNG and flags are as before afterwards, also after an
    error.

    Args:
        model: the module; ``loss_fn`` and ``batches`` as in ``spectral_ext.measurement.batches``. All batches together
            are the data: the loss is the mean over all samples. Smaller batches take less memory; under train-mode
            batch norm they are part of the definition.
        top_k: singular directions a layer; fewer where the gradient has lower rank (the row's notes say so).
        layers: names or shell patterns; None for all.
        method, split, memory_budget: as in ``directional_curvature``; ``split`` asks for Gauss–Newton and residual
        parts.
        seed: of the bootstrap.
        level: coverage of all intervals.
        progress: show progress bars.
        resume: a folder that keeps each finished layer; an interrupted run goes on from there when called again
        with the
            same model, data and options.

    Returns:
        The landscape. A layer with nothing to measure has a row with ``empty_reason``; modules that cannot be
        measured are in
        ``.skipped``.

    Raises:
        TypeError, ValueError: batches or loss are unusable (not finite, no scalar, a sum over samples, random), an
        option is
            out of range, or ``resume`` holds another run; the message names the batch or layer and the remedy.
        KeyError: a pattern in ``layers`` matches nothing.
    """
    layers = layers if layers is None or isinstance(layers, str) else list(layers)
    check_options(
        top_k=top_k, layers=layers, split=split, seed=seed, level=level, memory_budget=memory_budget,
        progress=progress, resume=resume,
    )  # fmt: skip
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    model = unwrapped(model)
    chosen, skipped = find_layers(model, layers)
    if not chosen:
        raise ValueError(why_no_layer(skipped))
    device = next(iter(chosen.values())).weight.device
    data = as_batches(batches, model, batch_size=batch_size, device=device)
    options = dict(top_k=top_k, method=method, split=split, seed=seed, level=level)
    store = RowStore(resume, fingerprint(model, data, list(chosen), options)) if resume is not None else None
    rows: dict[str, LayerLandscape] = store.load() if store else {}
    todo = {name: layer for name, layer in chosen.items() if name not in rows}
    clock = _Clock()
    meta: dict[str, Any] = {"version": __version__, "torch": torch.__version__}
    meta |= {"model": type(model).__name__, "device": str(device)}
    meta |= {
        "dtype": str(next(iter(chosen.values())).weight.dtype).removeprefix("torch."),
        "batches": len(data),
        **options,
    }
    meta |= {"mode": "train" if model.training else "eval", "batch_norm": batch_norm_mode(model), "scale": "expand"}
    notes: list[str] = []
    with measurement(model):
        reduction = check_task(model, loss_fn, data)
        if reduction != "mean":
            notes.append(REDUCTION_NOTES[reduction])
        if todo:
            with clock("factors"), _bar("factors", len(data), progress) as bar:
                capture = capture_factors(model, loss_fn, data, todo, on_batch=bar.update)
            skipped |= capture.missing
            if not capture.layers and not rows:
                raise ValueError(why_no_layer(skipped))
            meta |= {"loss": capture.loss, "samples": capture.samples}
            with clock("directions"):
                found = {name: singular_directions(f.gradient, top_k) for name, f in capture.layers.items()}
            directions = {name: d for name, d in found.items() if d is not None}
            depth = {name: index for index, name in enumerate(chosen)}
            for name in found.keys() - directions.keys():
                rows[name] = empty_row(chosen[name], depth[name], "its gradient is zero", capture.samples)
            for row in _rows(
                model,
                loss_fn,
                data,
                todo,
                depth,
                capture,
                directions,
                options,
                memory_budget,
                progress,
                clock,
                bool(store),
            ):
                rows[row.name] = row
                if store:
                    store.save(row)
    if batch_norm_mode(model) in ("train", "mixed"):
        notes.append(
            "batch norm uses batch statistics: h and d are those of the batch-coupled loss, not of the eval-mode one"
        )
    meta |= {"samples": sum(batch.samples for batch in data), "seconds": clock.seconds, "notes": notes}
    return Landscape({name: rows[name] for name in chosen if name in rows}, skipped, meta)


def _rows(
    model: nn.Module,
    loss_fn: LossFunction,
    data: list[Batch],
    layers: dict[str, Layer],
    depth: dict[str, int],
    capture: Capture,
    directions: dict[str, SingularDirections],
    options: dict[str, Any],
    memory_budget: int | None,
    progress: bool,
    clock: _Clock,
    in_groups: bool,
) -> Iterator[LayerLandscape]:
    pairs: dict[str, tuple[Tensor, Tensor]] = {
        name: (d.U.to(layers[name].weight), d.V.to(layers[name].weight)) for name, d in directions.items()
    }
    measured = {name: layers[name] for name in pairs}
    if not measured:
        return
    with clock("quotients"), _bar("alignment", len(data), progress) as bar:
        quotients = capture_quotients(model, loss_fn, data, measured, pairs, on_batch=bar.update)
    names = list(pairs)
    size = GROUP if in_groups else len(names)
    for start in range(0, len(names), size):
        group = names[start : start + size]
        with clock("curvature"):
            curvature = directional_curvature(
                model,
                loss_fn,
                data,
                directions={name: pairs[name] for name in group},
                layers=[_literal(name) for name in group],
                top_k=options["top_k"],
                method=options["method"],
                split=options["split"],
                memory_budget=memory_budget,
                progress=progress,
            )
        with _bar("spectra", len(group), progress) as bar:
            for name in group:
                if name not in curvature:
                    yield empty_row(layers[name], depth[name], curvature.skipped[name], capture.samples)
                    continue
                with clock("spectra"):
                    row = build_row(
                        layers[name], depth[name], capture.layers[name], directions[name], quotients[name],
                        curvature[name], level=options["level"], seed=options["seed"],
                    )  # fmt: skip
                yield row
                bar.update()


class _Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


def _bar(name: str, total: int, progress: bool) -> Any:
    return tqdm(total=total, desc=name, disable=not progress, leave=False)


def _literal(name: str) -> str:
    """A shell pattern that matches this name alone."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
