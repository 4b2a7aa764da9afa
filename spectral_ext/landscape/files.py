"""One way to write a file: complete or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path


def write_atomically(path: str | Path, content: str | bytes) -> Path:
    """Write ``content`` to ``path`` so that a reader finds the old file or the new one, never a part.

    The content goes to a new file of a random name in the same folder, is forced to the disk, and then takes the name
    ``path``. Two writers do not disturb each other: the last one wins. A symbolic link at ``path`` is replaced, not
    followed. After an error (a full disk, an interruption) the old file is as it was and the new file is gone.

    Args:
        path: the file; its folder is made if need be.
        content: text (written as UTF-8) or bytes.

    Returns:
        ``path``.

    Raises:
        OSError: the folder cannot be made or written to, or the disk is full; of the kind that the system reports, and
            the message names the path and the remedy.
        ValueError: the path holds a null character.
        UnicodeEncodeError: the text holds half of a surrogate pair.
    """
    path = Path(path)
    if "\0" in str(path):
        raise ValueError(f"the path {str(path)!r} holds a null character, which no path can: choose another one")
    data = content.encode("utf-8") if isinstance(content, str) else content
    try:
        _write(path, data)
    except OSError as error:
        what = f"cannot write {path}: {error.strerror or error}; choose a folder on a disk that can be written to"
        raise type(error)(error.errno, what) from error
    return path


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{secrets.token_hex(8)}.partial"
    # O_EXCL: a name that exists, also as a planted link, is refused. Mode 666 without the umask, as open() has it;
    # tempfile.mkstemp would leave reports that only their owner can read.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Force the new name to the disk; some file systems do not offer it, and the file itself is complete anyway."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
