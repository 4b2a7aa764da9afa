"""Options of a measurement, judged before any work is spent."""

from __future__ import annotations

import numbers
import os
from collections.abc import Iterable
from typing import Any


def check_options(**options: Any) -> None:
    """Judge the options that are given, by name: see the functions below for what each must be.

    Raises:
        TypeError, ValueError: the message names the option, its value and what it must be.
    """
    for name, value in options.items():
        _CHECKS[name](name, value)


def pattern_list(layers: Any) -> Any:
    """``layers`` as it can be read several times: any iterable but a string as a list."""
    return list(layers) if isinstance(layers, Iterable) and not isinstance(layers, str) else layers


def check_top_k(top_k: int) -> None:
    """Raises ValueError or TypeError unless ``top_k`` is a positive integer."""
    _positive_integer("top_k", top_k)


def _positive_integer(name: str, value: Any) -> None:
    _integer(name, value)
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")


def _seed(name: str, value: Any) -> None:
    _integer(name, value)
    if value < 0:
        raise ValueError(f"{name} must be at least 0, not {value}")


def _integer(name: str, value: Any) -> None:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, not {value!r}")


def _level(name: str, value: Any) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number between 0 and 1, not {value!r}")
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie between 0 and 1, not {value}")


def _flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}")


def _memory_budget(name: str, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number of bytes or None, not {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1 byte, or None for no limit, not {value}")


def _patterns(name: str, value: Any) -> None:
    if value is None or isinstance(value, str):
        return
    if not isinstance(value, Iterable) or not all(isinstance(pattern, str) for pattern in value):
        raise TypeError(f"{name} must be a name, a shell pattern or a list of them, not {value!r}")


def _folder(name: str, value: Any) -> None:
    if value is not None and not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name} must be a folder's path or None, not {value!r}")


_CHECKS = {
    "top_k": _positive_integer,
    "seed": _seed,
    "draws": _positive_integer,
    "level": _level,
    "split": _flag,
    "progress": _flag,
    "memory_budget": _memory_budget,
    "layers": _patterns,
    "residuals": _patterns,
    "resume": _folder,
}
