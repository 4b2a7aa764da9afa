"""The journal: one JSON line per finished run, with all that decides its numbers. A run that is there is not repeated.

A line holds a key, the settings and their digest, the seed, every substitution, and the result; environments and data
are lines of their own, to which the runs refer. A result of other settings, of another version or of another machine is
never taken silently: ``StaleResultError`` says what differs and what to do.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from spectral_ext.collect_env import collect

RESULTS = Path(__file__).parent / "results"
JOURNAL = RESULTS / "journal.jsonl"
MACHINE = ("processor", "SIMD in use", "threads", "GPU", "torch", "spectral-ext")
"""A run on another of these may have other digits, and is not reused."""
ALSO = ("Python", "numpy", "scipy", "platform")


class JournalError(RuntimeError):
    """The file is no journal, or a line of it is damaged; the message names the line and the remedy."""


class StaleResultError(RuntimeError):
    """The journal holds this run with other settings, of another version or machine."""


def digest(value: Any) -> str:
    """Twelve hexadecimal digits of a value that JSON can hold; the order of keys does not count."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def environment() -> dict[str, str]:
    """Machine, threads, SIMD and versions of this process."""
    found = collect()
    here = {name: found[name] for name in (*MACHINE, *ALSO)}
    if importlib.util.find_spec("pytorch_optimizer") is not None:
        here["pytorch_optimizer"] = importlib.metadata.version("pytorch_optimizer")
    return here


def rounded(value: Any, digits: int = 6) -> Any:
    """The value with every float cut to ``digits`` significant digits; NaN and infinities become None."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): rounded(one, digits) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(one, digits) for one in value]
    return value


def journal_here(path: Path, named: Path | None = None) -> Path:
    """Where this machine writes: the file that was named, else ``path``, or where ``path`` holds the runs of another
    machine or version, a file beside it that is named after this one. Runs of others are left alone and not reused."""
    if named is not None or not path.exists():
        return named or path
    here = environment()
    there = Journal(path, here).defined
    if all(value.get(n) == here[n] for i, value in there.items() if i.startswith("environment") for n in MACHINE):
        return path
    return path.with_name(f"{path.stem}-{digest({name: here[name] for name in MACHINE})}{path.suffix}")


class Journal:
    """All runs of one file, read when it is made; runs that another process adds meanwhile are read by ``reload``.

    Args:
        path: the file; it need not exist.
        here: the environment that results must come from; None takes this process's.

    Raises:
        JournalError: a line is damaged. A last line that was cut off by an interruption is left out, with a warning.
    """

    def __init__(self, path: str | Path, here: Mapping[str, str] | None = None) -> None:
        self.path = Path(path)
        self.here = dict(here or environment())
        self.reload()

    def reload(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.defined: dict[str, dict[str, Any]] = {}
        if not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8").split("\n")
        for number, line in enumerate(lines, 1):
            if not line:
                continue
            try:
                record = json.loads(line)
                if "define" in record:
                    self.defined[record["id"]] = record["value"]
                else:
                    self.runs[record["key"]] = record
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                if number == len(lines):
                    warnings.warn(
                        f"{self.path}: the last line was cut off by an interruption; its run is repeated", stacklevel=2
                    )
                    return
                raise JournalError(
                    f"{self.path}, line {number} is damaged ({error}): delete this line, its run is then repeated"
                ) from error

    def _append(self, records: list[dict[str, Any]]) -> None:
        """All records or none, after whatever another process has added; a last line that was cut off is removed."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            content = file.read()
            if content and not content.endswith(b"\n"):
                file.truncate(content.rfind(b"\n") + 1)
            file.write("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode())

    def get(self, key: str, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """The record of a run, None if it is not there.

        Raises:
            StaleResultError: it is there, but with other settings, or of another version or machine.
        """
        record = self.runs.get(key)
        if record is None:
            return None
        wanted = json.loads(json.dumps(settings))
        if record["digest"] != digest(wanted):
            old = record["settings"]
            names = sorted(set(old) | set(wanted))
            what = ", ".join(f"{n}: {old.get(n)!r} → {wanted.get(n)!r}" for n in names if old.get(n) != wanted.get(n))
            raise StaleResultError(self._remedy(key, f"was run with other settings ({what})"))
        there = self.defined.get(record["environment"], {})
        other = [name for name in MACHINE if there.get(name) != self.here.get(name)]
        if other:
            what = ", ".join(f"{name}: {there.get(name)!r} there, {self.here.get(name)!r} here" for name in other)
            raise StaleResultError(self._remedy(key, f"was run on another machine or version ({what})"))
        return record

    def _remedy(self, key: str, why: str) -> str:
        return (
            f"{self.path} holds {key!r}, which {why}. To keep both, write to another file (--journal FILE); to run it "
            f"again, take it out: python -m experiments forget {key!r} --journal {self.path}"
        )

    def add(
        self,
        key: str,
        settings: Mapping[str, Any],
        result: Mapping[str, Any],
        *,
        seed: int | None,
        data: Mapping[str, Any],
        substitutions: tuple[str, ...] = (),
    ) -> dict[str, Any]:
        """Append a finished run, and return its record as it will be read again."""
        new: list[dict[str, Any]] = []
        ids = []
        for what, value in (("environment", self.here), ("data", dict(data))):
            ids.append(f"{what}-{digest(value)}")
            if ids[-1] not in self.defined:
                new.append({"define": what, "id": ids[-1], "value": value})
                self.defined[ids[-1]] = value
        settings = json.loads(json.dumps(settings))
        record = {"key": key, "seed": seed, "digest": digest(settings), "environment": ids[0], "data": ids[1]}
        record |= {"substitutions": list(substitutions), "settings": settings, "result": rounded(result)}
        self._append([*new, record])
        self.runs[key] = json.loads(json.dumps(record))
        return self.runs[key]

    def forget(self, pattern: str) -> list[str]:
        """Take out the runs whose key fits a shell pattern; the keys that were taken out."""
        import fnmatch

        gone = [key for key in self.runs if fnmatch.fnmatchcase(key, pattern)]
        kept = [{"define": id_.split("-")[0], "id": id_, "value": value} for id_, value in self.defined.items()]
        kept += [record for key, record in self.runs.items() if key not in gone]
        part = self.path.with_suffix(".part")
        part.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in kept), encoding="utf-8")
        part.replace(self.path)
        self.reload()
        return gone

    def select(self, prefix: str) -> Iterator[dict[str, Any]]:
        """The records whose key begins so, in the order of the file."""
        return (record for key, record in self.runs.items() if key.startswith(prefix))
