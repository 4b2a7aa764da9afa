"""Where a command writes: judged before any work, so that no result is lost and no old one replaced unasked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from spectral_ext.cli.tasks import TaskError
from spectral_ext.landscape import write_atomically

REPORT = ("index.html", "landscape.json", "landscape.csv")
UNFINISHED = "unfinished"
"""Folder inside ``--out`` that keeps finished layers of an interrupted measurement."""


def check_output(folder: Path, files: Sequence[str], *, overwrite: bool) -> None:
    """Whether ``files`` can be written into ``folder`` without replacing any.

    Raises:
        TaskError: the folder is a file, cannot be written to, or holds one of the files and ``overwrite`` is not given.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not existing.is_dir():
        raise TaskError(f"--out {folder}: {existing} is not a folder; choose another")
    there = [name for name in files if (folder / name).exists()]
    if there and not overwrite:
        raise TaskError(
            f"--out {folder} already holds {', '.join(there)}: choose another folder, or pass --overwrite to replace it"
        )
    probe = existing / f".spectral-ext-{os.getpid()}"
    try:
        write_atomically(probe, "")
        probe.unlink()
    except OSError as error:
        raise TaskError(f"--out {folder} cannot be written to ({error.strerror or error}): choose another") from error


def check_unfinished(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """An interrupted measurement in ``folder`` is gone on with or replaced only when the user says so.

    Raises:
        TaskError: it holds one, and neither ``resume`` nor ``overwrite`` is given.
    """
    kept = folder / UNFINISHED
    if kept.exists() and not resume and not overwrite:
        raise TaskError(
            f"{kept} holds the finished layers of an interrupted measurement: pass --resume to go on with it, or "
            "--overwrite to start again"
        )
