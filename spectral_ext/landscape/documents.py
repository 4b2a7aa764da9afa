"""Landscapes on disk: one JSON file with a versioned schema and a checksum."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spectral_ext.landscape.files import write_atomically
from spectral_ext.landscape.row import LayerLandscape

SCHEMA = "spectral-ext/landscape"
VERSION = 1
FILE = "landscape.json"
MAX_DEPTH = 20
"""How deep the metadata may be nested."""
REMEDY = "it was edited or written by another version of spectral-ext; measure again, or read it with that version"


class LandscapeFileError(ValueError):
    """The file is no landscape of this version, or it is truncated, edited or inconsistent."""


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

    A field of a dataclass that is missing takes its default, so that a file from before the field was added loads.

    Raises:
        LandscapeFileError: the value does not fit the type, a field without a default is missing, a field is unknown,
            or the fields do not fit together; ``where`` names the place.
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
        _expect(type(value) in (int, float) or value in ("nan", "inf", "-inf"), where, "a number", value)
        try:
            return float(value)
        except OverflowError:
            raise LandscapeFileError(f"{where}: the number is too large: {REMEDY}") from None
    if kind in (int, str, bool):
        _expect(type(value) is kind, where, kind.__name__, value)
        if kind is int:
            _expect(abs(value) < 2**63, where, "a number of at most 64 bits", value)
        if kind is str:
            _expect(_is_text(value), where, "text that can be written as UTF-8", ascii(value))
    return value


def _is_text(value: str) -> bool:
    """Whether the text holds no half of a surrogate pair, which no file and no page can hold."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _decode_dataclass(kind: Any, value: Any, where: str) -> Any:
    _expect(isinstance(value, dict), where, "an object", value)
    hints = typing.get_type_hints(kind)
    fields = dataclasses.fields(kind)
    known = {f.name for f in fields}
    needed = [f.name for f in fields if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    missing, extra = [n for n in needed if n not in value], [n for n in value if n not in known]
    if missing or extra:
        details = [f"lacks {', '.join(missing)}"] if missing else []
        details += [f"has the unknown {', '.join(ascii(n)[1:-1][:40] for n in extra[:5])}"] if extra else []
        raise LandscapeFileError(f"{where} {' and '.join(details)}: it was written by another version; measure again")
    found = kind(**{name: decode(hints[name], item, f"{where}.{name}") for name, item in value.items()})
    problem = found.problem() if hasattr(found, "problem") else ""
    if problem:
        raise LandscapeFileError(f"{where}: {problem}: {REMEDY}")
    return found


def _expect(condition: bool, where: str, what: str, value: Any) -> None:
    if not condition:
        raise LandscapeFileError(f"{where}: expected {what}, found {_shown(value)}: {REMEDY}")


def _shown(value: Any) -> str:
    if isinstance(value, int) and abs(value) >= 10**60:
        return "a number of more than 60 digits"  # Python refuses to write one of more than 4,300
    return str(value)[:60] if isinstance(value, (str, int, float)) or value is None else type(value).__name__


def write_document(path: Path, body: dict[str, Any], schema: str = SCHEMA) -> Path:
    """Write ``body`` with its schema, version and SHA-256, by ``write_atomically``.

    Raises:
        OSError: the file cannot be written; a file that was there is as before.
    """
    document = {
        "schema": schema,
        "version": VERSION,
        "sha256": _digest(body),
        "body": body,
    }
    return write_atomically(path, json.dumps(document, indent=1, allow_nan=False))


def read_document(path: Path, schema: str = SCHEMA) -> dict[str, Any]:
    """The checked body of a file that ``write_document`` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        LandscapeFileError: not JSON (truncated), another schema or version, or the checksum differs (edited).
    """
    if path.exists() and not path.is_file():
        raise LandscapeFileError(f"{path} is not a regular file: give the folder or file that Landscape.save wrote")
    try:
        document = json.loads(
            path.read_text(encoding="utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_without_repeats
        )
    except (ValueError, RecursionError) as error:  # ValueError: also bytes that are no UTF-8, and integers too long
        raise LandscapeFileError(
            f"{path} is not complete JSON (truncated?): {error}: restore it from a copy, or measure again"
        ) from error
    if not isinstance(document, dict) or document.get("schema") != schema:
        found = document.get("schema") if isinstance(document, dict) else type(document).__name__
        raise LandscapeFileError(
            f"{path} has schema {str(found)[:60]!r}, not {schema!r}: it is another kind of file; give the one that "
            "Landscape.save wrote"
        )
    version = document.get("version")
    if type(version) is not int or version != VERSION:
        raise LandscapeFileError(
            f"{path} has version {_shown(version)} and this program reads {VERSION}: measure again, or read "
            "it with the version of spectral-ext that wrote it"
        )
    body = document.get("body")
    if body is None or document.get("sha256") != _digest(body):
        raise LandscapeFileError(f"{path} was changed after it was written (its checksum differs): measure again")
    if not isinstance(body, dict):
        raise LandscapeFileError(f"{path}: the body is {type(body).__name__}, not an object: {REMEDY}")
    return body


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {ascii(repeated)[:60]} stands twice in one object")
    return found


def _digest(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def encode_landscape(landscape: Any) -> dict[str, Any]:
    """Body of the file; floats keep all their digits, so that loading gives the same numbers.

    Raises:
        ValueError: two rows have the same name, or a row is not stored under its name.
    """
    for key, row in landscape.items():
        if key != row.name:
            raise ValueError(
                f"the row {row.name!r} is stored under {key!r}, and a file knows rows by their names: set row.name"
            )
    return {
        "meta": encode(landscape.meta),
        "skipped": landscape.skipped,
        "layers": [encode(row) for row in landscape.values()],
    }


def save_document(body: dict[str, Any], folder: str | Path) -> Path:
    return write_document(Path(folder) / FILE, body)


def load_document(path: str | Path) -> tuple[dict[str, LayerLandscape], dict[str, str], dict[str, Any]]:
    """Rows, skipped modules and metadata of a folder or its file; errors as in ``Landscape.load``."""
    path = Path(path)
    file = path / FILE if path.is_dir() else path
    if not file.exists():
        raise FileNotFoundError(f"no landscape at {file}")
    body = read_document(file)
    unknown = sorted(set(body) - {"meta", "skipped", "layers"})
    if unknown or "layers" not in body:
        problem = f"has the unknown {', '.join(unknown)}" if unknown else "lacks layers"
        raise LandscapeFileError(f"{file} {problem}: {REMEDY}")
    skipped = decode(dict[str, str], body.get("skipped", {}), f"{file}: skipped")
    meta = body.get("meta", {})
    _expect(isinstance(meta, Mapping), f"{file}: meta", "an object", meta)
    _check_metadata(meta, f"{file}: meta")
    decode(list[str], meta.get("notes", []), f"{file}: meta.notes")
    _expect(isinstance(body["layers"], list), f"{file}: layers", "a list", body["layers"])
    rows: dict[str, LayerLandscape] = {}
    for index, one in enumerate(body["layers"]):
        row = decode(LayerLandscape, one, f"{file}: layer {index}")
        if row.name in rows:
            raise LandscapeFileError(f"{file}: layer {index}: the name {row.name!r} stands there twice: {REMEDY}")
        rows[row.name] = row
    return rows, skipped, dict(meta)


def _check_metadata(value: Any, where: str, depth: int = 0) -> None:
    """Metadata is free, but it must be shown and written again: no deep nesting, no text or number that breaks this."""
    _expect(depth <= MAX_DEPTH, where, f"at most {MAX_DEPTH} levels", value)
    if isinstance(value, Mapping):
        for key, item in value.items():
            decode(str, key, where)
            _check_metadata(item, where, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_metadata(item, where, depth + 1)
    elif isinstance(value, (str, int)) and not isinstance(value, bool):
        decode(type(value), value, where)
