"""``spectral-ext landscape | compare | audit | bench | env | completion``."""

from __future__ import annotations

import site
import sys
import sysconfig
import traceback
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from spectral_ext.cli.arguments import parser

__all__ = ["REFUSALS", "describe", "main", "parser"]

REFUSALS = (ValueError, TypeError, KeyError, OSError, ImportError, NotImplementedError)
"""What the commands raise for input that they cannot use; the exit code is 2, and 1 for every other exception."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 when it is done, 2 where the input or an option cannot be used, 1 for
    an unexpected error, 130 when interrupted. An error is one line; ``--traceback`` shows all of it.
    """
    args = parser().parse_args(argv)
    console = Console()
    from spectral_ext.cli import (
        commands,  # torch and matplotlib take seconds to import: --help should not wait for them
    )

    try:
        getattr(commands, args.command)(args, console)
    except KeyboardInterrupt:
        again = "; --resume keeps finished layers" if args.command == "landscape" and not args.resume else ""
        print(f"spectral-ext: interrupted{again}", file=sys.stderr)
        return 130
    except Exception as error:
        if args.traceback:
            raise
        print(f"spectral-ext: {describe(error)} (--traceback before the command shows where)", file=sys.stderr)
        return 2 if isinstance(error, REFUSALS) else 1
    return 0


def describe(error: BaseException) -> str:
    """The error in one line: our own message as it is, another's with its type and the line of the user's code."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    text = " ".join(text.split())[:1000]
    frames = traceback.extract_tb(error.__traceback__)
    if text and frames and _is_ours(frames[-1].filename):
        return text
    theirs = [frame for frame in frames if not _is_ours(frame.filename) and not _is_installed(frame.filename)]
    where = f" in {theirs[-1].filename}, line {theirs[-1].lineno} ({theirs[-1].name})" if theirs else ""
    return f"{type(error).__name__}{': ' if text else ''}{text}{where}"


def _is_ours(file: str) -> bool:
    return Path(file).resolve().is_relative_to(Path(__file__).resolve().parents[1])


def _is_installed(file: str) -> bool:
    """Whether the file belongs to Python or to an installed package, which the user did not write."""
    folders = [sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), *site.getsitepackages()]
    return file.startswith("<") or any(Path(file).resolve().is_relative_to(Path(f).resolve()) for f in folders)
