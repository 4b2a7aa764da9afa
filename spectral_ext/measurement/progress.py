"""The stages of a measurement: their seconds and their progress bars."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm


class Progress:
    """``shown`` says whether bars are shown; ``seconds`` adds up the time per stage."""

    def __init__(self, shown: bool) -> None:
        self.shown = shown
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the seconds of the block to the stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def bar(self, name: str, total: int) -> Any:
        """A bar that is a context manager and has ``update()``."""
        return tqdm(total=total, desc=name, disable=not self.shown, leave=False)

    def say(self, line: str) -> None:
        """A line beside the bars."""
        if self.shown:
            tqdm.write(line, file=sys.stderr)
