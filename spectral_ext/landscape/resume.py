"""Rows kept on disk while a measurement runs, so that an interrupted one can go on."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spectral_ext._version import __version__
from spectral_ext.landscape.row import LayerLandscape
from spectral_ext.landscape.storage import FILE, LandscapeFileError, decode, encode, read_document, write_document
from spectral_ext.layers import Layer
from spectral_ext.measurement.batches import Batch, LossFunction, batch_loss, tensors
from spectral_ext.measurement.digest import digest, state_digest

RUN_SCHEMA, ROW_SCHEMA = "spectral-ext/run", "spectral-ext/row"
TOLERANCE = {torch.float64: 1e-10}
SINGLE_TOLERANCE = 1e-5
"""Two runs of the same task may differ by rounding, for example with another number of threads."""


class RowStore:
    """``folder/run.json`` says which run it is; ``folder/rows/*.json`` are its finished layers.

    Raises:
        ValueError: the folder holds a run, finished or not, of another model, loss, data or options; the message names
            what differs.
        LandscapeFileError: its files are truncated or edited.
    """

    def __init__(self, folder: str | Path, identity: dict[str, Any]) -> None:
        self.folder = Path(folder)
        file = self.folder / "run.json"
        identity = encode(identity)
        if file.exists():
            held = read_document(file, RUN_SCHEMA)
            changed = [key for key in identity if not _same(held.get(key), identity[key], identity["tolerance"])]
            if {"model", "data"} & set(changed):  # then these differ as a consequence
                changed = [key for key in changed if key not in ("loss", "output", "gradients")]
            if changed:
                raise ValueError(
                    f"resume: {self.folder} holds another run ({', '.join(changed)} differ): choose an empty folder, "
                    "or delete it"
                )
        elif (self.folder / FILE).exists():
            raise ValueError(
                f"resume: {self.folder} holds a finished landscape ({FILE}) and no run to go on with: choose an empty "
                "folder"
            )
        else:
            write_document(file, identity, RUN_SCHEMA)

    def load(self) -> dict[str, LayerLandscape]:
        """The finished rows by layer.

        Raises:
            LandscapeFileError: a row's file is truncated or edited; once it is deleted, its layer is measured again.
        """
        rows = {}
        for file in sorted((self.folder / "rows").glob("*.json")):
            try:
                row = decode(LayerLandscape, read_document(file, ROW_SCHEMA), str(file))
            except LandscapeFileError as error:
                raise LandscapeFileError(f"{error}; delete {file}, and its layer is measured again") from error
            rows[row.name] = row
        return rows

    def save(self, row: LayerLandscape) -> None:
        write_document(self.folder / "rows" / row_file(row), encode(row), ROW_SCHEMA)


def row_file(row: LayerLandscape) -> str:
    """A file name for any layer name: its last 60 harmless characters and a digest of the whole."""
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in row.name)[-60:]
    return f"{row.depth:04d}_{safe}_{hashlib.sha256(row.name.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}.json"


def fingerprint(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: list[Batch],
    layers: dict[str, Layer],
    options: dict[str, Any],
) -> dict[str, Any]:
    """What makes two runs the same: versions, options, layers, digests of the model's state, its mode and the data, and
    numbers that tell the loss function and the forward pass: loss, output and gradients of the first batch.
    """
    outputs: list[Tensor] = []
    handle = model.register_forward_hook(lambda module, args, output: outputs.extend(tensors(output)))
    try:
        loss = batch_loss(model, loss_fn, batches[0])
    finally:
        handle.remove()
    gradients = torch.autograd.grad(loss, [layer.weight for layer in layers.values()], allow_unused=True)
    dtype = next(iter(layers.values())).weight.dtype
    return {
        "version": __version__,
        "torch": torch.__version__,
        **options,
        "layers": list(layers),
        "model": state_digest(model),
        "data": digest(batches),
        "loss": loss.item(),
        "output": [number for output in outputs if output.is_floating_point() for number in _moments(output)],
        "gradients": [[] if gradient is None else _moments(gradient) for gradient in gradients],
        "tolerance": TOLERANCE.get(dtype, SINGLE_TOLERANCE),
    }


def _moments(tensor: Tensor) -> list[float]:
    """The norm of a tensor, and its product with a fixed sequence plus the norm, beside which rounding is small."""
    flat = tensor.detach().flatten().double()
    fixed = torch.arange(flat.numel(), device=flat.device, dtype=torch.float64).cos()
    norm = float(flat.norm())
    return [norm, float(flat @ fixed) / max(float(fixed.norm()), 1.0) + norm]


def _same(a: Any, b: Any, tolerance: float) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=tolerance)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_same(x, y, tolerance) for x, y in zip(a, b, strict=True))
    return a == b
