"""A spectral map in place of T(σ; α, d), as a setting of a group that a state dict can hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from spectral_ext.ops.spectral_newton import SpectralMap

Transfer = SpectralMap | str | Callable[[Any], Any] | None


def transfer_setting(transfer: Any, callables: dict[str, SpectralMap]) -> Any:
    """What a group holds of a map: name, parameters and unit; of a callable its name alone, with parameters None, while
    the map itself goes into ``callables``, which are not saved.

    Raises:
        ValueError: there is another callable of this name.
    """
    if transfer is None or isinstance(transfer, Mapping):
        return transfer
    if isinstance(transfer, str):
        transfer = SpectralMap.named(transfer)
    elif not isinstance(transfer, SpectralMap) and callable(transfer):
        transfer = SpectralMap(getattr(transfer, "__qualname__", type(transfer).__name__), function=transfer)
    if not isinstance(transfer, SpectralMap):
        raise TypeError(f"transfer must be a SpectralMap, the name of one or a callable, not {transfer!r}")
    if transfer.function is None:
        return transfer.to_dict()
    if callables.setdefault(transfer.name, transfer) != transfer:
        raise ValueError(f"transfer: two callables are named {transfer.name!r}; name them with SpectralMap(name, …)")
    return {"name": transfer.name, "parameters": None, "unit": transfer.unit}


def check_transfer(setting: Any, name: str) -> None:
    """Raise ValueError or TypeError, naming the parameter ``name``, if a group's setting is no map."""
    if setting is None:
        return
    if not isinstance(setting, Mapping) or setting.keys() != {"name", "parameters", "unit"}:
        raise TypeError(f"transfer of {name!r} must be None or what SpectralMap.to_dict() gives, not {setting!r}")
    if setting["parameters"] is not None:
        try:
            SpectralMap.from_dict(setting)
        except ValueError as error:
            raise ValueError(f"transfer of {name!r}: {error}") from None


def map_of(setting: Any, callables: Mapping[str, SpectralMap]) -> SpectralMap | None:
    """The map of a group's setting; ValueError for a callable that this optimizer was not given."""
    if setting is None:
        return None
    if setting["parameters"] is not None:
        return SpectralMap.from_dict(setting)
    if setting["name"] not in callables:
        raise ValueError(
            f"the transfer {setting['name']!r} is a callable, which copies and states do not hold: make the optimizer "
            "with transfer= again"
        )
    return callables[setting["name"]]
