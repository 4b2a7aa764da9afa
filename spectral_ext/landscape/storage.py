"""Landscapes on disk: one JSON file with a versioned schema and a checksum."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import types
import typing
from pathlib import Path
from typing import Any

import numpy as np

from spectral_ext.landscape.row import LayerLandscape
from spectral_ext.landscape.table import Landscape

SCHEMA = "spectral-ext/landscape"
VERSION = 1
FILE = "landscape.json"


class LandscapeFileError(ValueError):
    """The file is no landscape of this version, or it is truncated or edited."""


def encode(value: Any) -> Any:
    """Plain JSON of dataclasses, arrays, tuples and floats; non-finite floats become strings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, np.ndarray):
        return [encode(item) for item in value.tolist()]
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def decode(kind: Any, value: Any, where: str) -> Any:
    """The inverse of ``encode`` for a type annotation.

    Raises:
        LandscapeFileError: the value does not fit the type; ``where`` names the place.
    """
    origin = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return decode(next(a for a in arguments if a is not type(None)), value, where)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _decode_dataclass(kind, value, where)
    if kind is np.ndarray:
        _expect(isinstance(value, list), where, "a list of numbers", value)
        return np.array([decode(float, item, where) for item in value], dtype=np.float64)
    if origin in (list, tuple):
        _expect(isinstance(value, list), where, "a list", value)
        if origin is list or arguments[-1] is Ellipsis:
            items = [decode(arguments[0], item, where) for item in value]
        else:
            _expect(len(value) == len(arguments), where, f"{len(arguments)} items", value)
            items = [decode(a, item, where) for a, item in zip(arguments, value, strict=True)]
        return items if origin is list else tuple(items)
    if origin is dict:
        _expect(isinstance(value, dict), where, "an object", value)
        return {key: decode(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is float:
        _expect(
            type(value) in (int, float) or value in ("nan", "inf", "-inf"),
            where,
            "a number",
            value,
        )
        return float(value)
    if kind in (int, str, bool):
        _expect(type(value) is kind, where, kind.__name__, value)
    return value


def _decode_dataclass(kind: Any, value: Any, where: str) -> Any:
    _expect(isinstance(value, dict), where, "an object", value)
    hints = typing.get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind)]
    missing, extra = [n for n in names if n not in value], [n for n in value if n not in names]
    if missing or extra:
        details = [f"lacks {', '.join(missing)}"] if missing else []
        details += [f"has the unknown {', '.join(extra)}"] if extra else []
        raise LandscapeFileError(f"{where} {' and '.join(details)}: it was written by another version; measure again")
    return kind(**{name: decode(hints[name], value[name], f"{where}.{name}") for name in names})


def _expect(condition: bool, where: str, what: str, value: Any) -> None:
    if not condition:
        raise LandscapeFileError(f"{where}: expected {what}, found {str(value)[:60]}")


def write_document(path: Path, body: dict[str, Any], schema: str = SCHEMA) -> Path:
    """Write ``body`` with its schema, version and SHA-256, through a temporary file so that no half file remains."""
    document = {
        "schema": schema,
        "version": VERSION,
        "sha256": _digest(body),
        "body": body,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(json.dumps(document, indent=1, allow_nan=False), encoding="utf-8")
    os.replace(temporary, path)
    return path


def read_document(path: Path, schema: str = SCHEMA) -> dict[str, Any]:
    """The checked body of a file that ``write_document`` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        LandscapeFileError: not JSON (truncated), another schema or version, or the checksum differs (edited).
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise LandscapeFileError(f"{path} is not complete JSON (truncated?): {error}") from error
    if not isinstance(document, dict) or document.get("schema") != schema:
        found = document.get("schema") if isinstance(document, dict) else type(document).__name__
        raise LandscapeFileError(f"{path} has schema {found!r}, not {schema!r}: it is another kind of file")
    if document.get("version") != VERSION:
        raise LandscapeFileError(
            f"{path} has version {document.get('version')!r} and this program reads {VERSION}: measure again, or read "
            "it with the version of spectral-ext that wrote it"
        )
    if "body" not in document or document.get("sha256") != _digest(document["body"]):
        raise LandscapeFileError(f"{path} was changed after it was written (its checksum differs): measure again")
    return document["body"]


def _digest(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def save(landscape: Landscape, folder: str | Path) -> Path:
    """``folder/landscape.json``; floats are written with all their digits, so that loading gives the same numbers."""
    body = {
        "meta": encode(landscape.meta),
        "skipped": landscape.skipped,
        "layers": [encode(row) for row in landscape.values()],
    }
    return write_document(Path(folder) / FILE, body)


def load(path: str | Path) -> Landscape:
    """A landscape from a folder or its file; errors as in ``read_document``."""
    path = Path(path)
    file = path / FILE if path.is_dir() else path
    if not file.exists():
        raise FileNotFoundError(f"no landscape at {file}")
    body = read_document(file)
    layers = [decode(LayerLandscape, row, f"{file}: layer {index}") for index, row in enumerate(body["layers"])]
    return Landscape({row.name: row for row in layers}, body["skipped"], body["meta"])
