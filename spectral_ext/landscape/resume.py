"""Rows kept on disk while a measurement runs, so that an interrupted one can go on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spectral_ext.landscape.row import LayerLandscape
from spectral_ext.landscape.storage import decode, encode, read_document, write_document
from spectral_ext.measurement.batches import Batch

RUN_SCHEMA, ROW_SCHEMA = "spectral-ext/run", "spectral-ext/row"


class RowStore:
    """``folder/run.json`` says which run it is; ``folder/rows/*.json`` are its finished layers.

    Raises:
        ValueError: the folder holds a run of another model, data or options; the message names what differs.
        LandscapeFileError: its files are truncated or edited.
    """

    def __init__(self, folder: str | Path, identity: dict[str, Any]) -> None:
        self.folder = Path(folder)
        file = self.folder / "run.json"
        identity = encode(identity)
        if file.exists():
            held = read_document(file, RUN_SCHEMA)
            changed = [key for key in identity if held.get(key) != identity[key]]
            if changed:
                raise ValueError(
                    f"resume: {self.folder} holds another run ({', '.join(changed)} differ): choose an empty "
                    f"folder, or delete it"
                )
        else:
            write_document(file, identity, RUN_SCHEMA)

    def load(self) -> dict[str, LayerLandscape]:
        files = sorted((self.folder / "rows").glob("*.json"))
        rows = [decode(LayerLandscape, read_document(file, ROW_SCHEMA), str(file)) for file in files]
        return {row.name: row for row in rows}

    def save(self, row: LayerLandscape) -> None:
        safe = "".join(c if c.isalnum() or c in "._-" else "_" for c in row.name)
        write_document(self.folder / "rows" / f"{row.depth:04d}_{safe}.json", encode(row), ROW_SCHEMA)


def fingerprint(model: nn.Module, batches: list[Batch], layers: list[str], options: dict[str, Any]) -> dict[str, Any]:
    """What makes two runs the same: options, layers, and digests of the model's state, its mode and the data."""
    return {
        **options,
        "layers": layers,
        "model": _digest([model.state_dict(), [module.training for module in model.modules()]]),
        "data": _digest(batches),
    }


def _digest(tree: Any) -> str:
    sha = hashlib.sha256()

    def feed(item: Any) -> None:
        if isinstance(item, Tensor):
            sha.update(f"{item.dtype}{tuple(item.shape)}".encode())
            sha.update(item.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(item, Mapping):
            for key, value in item.items():
                sha.update(str(key).encode())
                feed(value)
        elif isinstance(item, (list, tuple)):
            for value in item:
                feed(value)
        else:
            sha.update(repr(item).encode())

    feed(tree)
    return sha.hexdigest()
