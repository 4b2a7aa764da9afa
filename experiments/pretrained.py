"""The options that the measurements of pretrained networks share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch


def options_of(argv: Sequence[str] | None, description: str | None, defaults: dict[str, int]) -> argparse.Namespace:
    """The options of a command line, ``--threads``, ``--data`` and ``--journal`` among them; sets torch's threads.

    Args:
        defaults: option (without dashes) → its value where it is not given.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {**defaults, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--data", help="folder of the data")
    parser.add_argument("--journal", type=Path)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    return options
