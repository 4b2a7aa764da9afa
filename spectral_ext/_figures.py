"""The one call that goes up the order of the packages: ``landscape.plot()`` and ``track.plot()`` draw figures.

Neither the landscape nor the tracker imports ``spectral_ext.plots``, which imports both. The package's ``__init__``
registers the drawing functions here, and the two methods call what they find.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_registered: dict[str, Callable[..., Any]] = {}


def register(name: str, function: Callable[..., Any]) -> None:
    """Make ``function`` the one that ``draw(name, …)`` calls."""
    _registered[name] = function


def draw(name: str, *arguments: Any, **options: Any) -> Any:
    """Call the registered function ``name``: ``"landscape"`` or ``"track"``."""
    return _registered[name](*arguments, **options)
