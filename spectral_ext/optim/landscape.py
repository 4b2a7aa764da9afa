"""Curvature exponents for an optimizer, from numbers or from the rows of a measured landscape."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from spectral_ext.ops.spectral_newton import check_damping, check_exponent
from spectral_ext.optim.names import aliases, known_as, near
from spectral_ext.optim.settings import number, values_of

_NO_MAPPING = "{} must be a mapping from layer name, not {}; see Landscape.load"


def number_of(value: Any) -> float:
    """A number as it is, or the ``.value`` of a fit."""
    return float(getattr(value, "value", value))


def alpha_of(row: Any) -> float:
    """α of a row: the number itself, else ``row.recommendation.alpha``, else the fit ``row.alpha``."""
    if not hasattr(row, "alpha"):
        return float(row)
    recommendation = getattr(row, "recommendation", None)
    return number_of(row.alpha if recommendation is None else recommendation.alpha)


def measured_alphas(landscape: Mapping[str, Any]) -> dict[str, float]:
    """Layer name → the fitted α as it is, not the recommended one."""
    if not isinstance(landscape, Mapping):
        raise TypeError(_NO_MAPPING.format("the landscape", type(landscape).__name__))
    return {name: number_of(getattr(row, "alpha", row)) for name, row in landscape.items()}


def keyed(rows: Mapping[str, Any], known: Iterable[str] | None, what: str = "the landscape") -> dict[str, Any]:
    """The rows under the names of the model's layers and parameters, ``known``: wrappers (DDP's ``module``,
    compilation's ``_orig_mod``) do not count, on either side. Without ``known``, under every name they could mean.

    Raises:
        ValueError: a row names nothing in the model.
        TypeError: no mapping, or a row that is neither a number nor has an ``alpha``.
    """
    if not isinstance(rows, Mapping):
        raise TypeError(_NO_MAPPING.format(what, type(rows).__name__))
    for key, row in rows.items():
        if not hasattr(row, "alpha"):
            number(row, f"{what}'s value for {key!r}")
    if known is None:
        return {alias: row for key, row in rows.items() for alias in aliases(key)} | dict(rows)
    known = list(known)
    answers = {alias for name in known for alias in aliases(name)}
    result: dict[str, Any] = {}
    for key, row in rows.items():
        name = next((alias for alias in aliases(key) if alias in answers), None)
        if name is None:
            raise ValueError(
                f"{what} names {key!r}, which is no layer of the model; near names: {near(key, known)}. "
                "Is it another model's? Leave out the layers that do not belong to this one"
            )
        result[name] = row
    return result


def row_of(rows: Mapping[str, Any], name: str) -> Any:
    """The row of a parameter, under its own name or its layer's; None if there is none."""
    for key in known_as(name):
        if key in rows:
            return rows[key]
    return None


def alphas_of(
    rows: Mapping[str, Any], names: Sequence[str], default_alpha: float | None, skipped: Mapping[str, str]
) -> list[float]:
    """α of each parameter, from h_k ≈ c·σ_k^α of its layer; ``skipped``: why a layer was not measured.

    Raises:
        KeyError: there is no row for a parameter and no ``default_alpha``.
        ValueError: a measured α is outside (0, 6], where T(σ; α) is not defined, or there is none (NaN) and no
            ``default_alpha``.
    """
    alphas = []
    for name in names:
        row = row_of(rows, name)
        alpha = math.nan if row is None else alpha_of(row)
        if math.isnan(alpha) and default_alpha is not None:
            alpha = default_alpha
        elif row is None:
            why = row_of(skipped, name)
            why = f" ({why})" if why else ""
            raise KeyError(f"the landscape has no layer for {name!r}{why}; measure it, or pass default_alpha=")
        try:
            check_exponent(alpha, f"the landscape's alpha for {name!r}")
        except ValueError as error:
            why = getattr(row, "empty_reason", "")
            raise ValueError(
                f"{error}{f' ({why})' if why else ''}; pass default_alpha= for layers without alpha, or another "
                f"alpha for this one: {{**landscape, {known_as(name)[-1]!r}: 2.0}}"
            ) from None
        alphas.append(alpha)
    return alphas


def new_values(
    key: str,
    groups: Sequence[Mapping[str, Any]],
    names: Sequence[Sequence[str]],
    rows: Mapping[str, Any],
    hysteresis: float,
) -> tuple[list[list[float] | None], dict[str, tuple[float, float]]]:
    """``alpha`` or ``damping`` of each group's parameters after ``rows``, None for AdamW's groups, and what changes,
    name → (before, after).

    A parameter keeps its value where there is no row, where the row has none (NaN), and where the two differ by no more
    than ``hysteresis``: |α − α'|, or |ln(d/d')|.

    Raises:
        ValueError: a new value is out of range, a row names no parameter, or ``hysteresis`` is negative.
    """
    if not 0 <= number(hysteresis, "hysteresis") < math.inf:
        raise ValueError(f"hysteresis must be at least 0 and finite, not {hysteresis!r}")
    check = check_exponent if key == "alpha" else check_damping
    columns: list[list[float] | None] = []
    changes: dict[str, tuple[float, float]] = {}
    for group, own in zip(groups, names):
        if group["use_adamw"]:
            columns.append(None)
            continue
        column = [float(value) for value in values_of(group, key)]
        for i, (name, before) in enumerate(zip(own, column)):
            row = row_of(rows, name)
            after = math.nan if row is None else alpha_of(row) if key == "alpha" else float(row)
            if math.isnan(after):
                continue
            check(after, f"{key} for {name!r}")
            if abs(after - before if key == "alpha" else math.log(after / before)) > hysteresis:
                column[i], changes[name] = after, (before, after)
        columns.append(column)
    return columns, changes
