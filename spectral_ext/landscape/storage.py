"""Landscapes on disk, as functions: what ``Landscape.save`` and ``Landscape.load`` do, and the file's own parts."""

from __future__ import annotations

from pathlib import Path

from spectral_ext.landscape.documents import (
    FILE,
    SCHEMA,
    VERSION,
    LandscapeFileError,
    _digest,
    decode,
    encode,
    read_document,
    write_document,
)
from spectral_ext.landscape.table import Landscape

__all__ = [
    "FILE",
    "SCHEMA",
    "VERSION",
    "LandscapeFileError",
    "_digest",
    "decode",
    "encode",
    "load",
    "read_document",
    "save",
    "write_document",
]


def save(landscape: Landscape, folder: str | Path) -> Path:
    """``landscape.save(folder)``."""
    return landscape.save(folder)


def load(path: str | Path) -> Landscape:
    """``Landscape.load(path)``."""
    return Landscape.load(path)
