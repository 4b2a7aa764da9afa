"""Names of parameters: what a parameter answers to, which patterns fit it, and patterns that fit nothing."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable

from torch import nn

WRAPPERS = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}
PARAMETRIZED = re.compile(r"(^|\.)parametrizations\.(\w+)\.original\d*$")


def plain_name(name: str) -> str:
    """The name that a parameter had before ``torch.nn.utils.parametrize`` moved it: ``0.weight`` for
    ``0.parametrizations.weight.original``."""
    return PARAMETRIZED.sub(r"\1\2", name)


def aliases(name: str) -> tuple[str, ...]:
    """A name as it is, without what compilation, wrappers and parametrizations put in, and without DDP's leading
    ``module``."""
    parts = [part for part in plain_name(name).split(".") if part not in WRAPPERS]
    names = [name, ".".join(parts)]
    while len(parts) > 1 and parts[0] == "module":
        parts = parts[1:]
        names.append(".".join(parts))
    return tuple(dict.fromkeys(names))


def known_as(parameter_name: str) -> tuple[str, ...]:
    """The names a parameter answers to: its own and its layer's, also without wrappers.

    ``module._orig_mod.blocks.0.qkv.weight`` answers to ``blocks.0.qkv.weight`` and ``blocks.0.qkv`` as well.
    """
    names = aliases(parameter_name)
    return tuple(dict.fromkeys([*names, *(name.rpartition(".")[0] for name in names)]))


def matches(name: str, pattern: str) -> bool:
    """Whether a shell pattern fits a parameter's name or the name of its layer."""
    return any(fnmatch.fnmatchcase(known, pattern) for known in known_as(name))


def names_in(model: nn.Module) -> list[str]:
    """Every name of every parameter, also of frozen ones and the second names of tied ones."""
    return [name for name, _ in model.named_parameters(remove_duplicate=False)]


def layers_in(model: nn.Module) -> list[str]:
    """The names of all modules."""
    return [name for name, _ in model.named_modules(remove_duplicate=False)]


def near(text: str, names: Iterable[str], count: int = 3) -> str:
    """The names most like a text, quoted: whole, by layer, or by a part between dots."""
    wanted = text.strip("*.")

    def likeness(name: str) -> float:
        parts = {*known_as(name), *name.split(".")}
        return max(difflib.SequenceMatcher(None, wanted, part).ratio() for part in parts)

    unique = dict.fromkeys(filter(None, names))
    return ", ".join(map(repr, sorted(unique, key=likeness, reverse=True)[:count])) or "none"


def is_catch_all(pattern: str) -> bool:
    return pattern != "" and not pattern.strip("*")


def check_patterns(key: str, patterns: Iterable[str], names: Iterable[str]) -> None:
    """Raise ValueError for a pattern that can never apply: it fits no name, or stands after ``*``."""
    names, patterns = list(names), list(patterns)
    for pattern, following in zip(patterns, [*patterns[1:], None]):
        if is_catch_all(pattern):
            if following is not None:
                raise ValueError(f"{key}: {pattern!r} fits every name, so {following!r} never applies: put it first")
        elif not any(matches(name, pattern) for name in names):
            raise ValueError(
                f"{key}: no parameter's or layer's name fits {pattern!r}; near names: {near(pattern, names)}"
            )
