"""Adam with one learning rate a layer from s = αγ: the paper's negative control (appendix M)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from spectral_ext.optim.landscape import keyed, number_of, row_of
from spectral_ext.optim.names import layers_in, names_in


def _decay_exponent(row: Any, name: str) -> float:
    """s: the row itself if a number, else α·γ of its fits."""
    s = number_of(row.alpha) * number_of(row.gamma) if hasattr(row, "alpha") else float(row)
    if not 0 < s < math.inf:
        raise ValueError(f"s of {name!r} must be positive and finite, not {s!r}; leave the layer out to keep its rate")
    return s


class ScalarSpectralAdam(torch.optim.Adam):
    """Adam with learning rate η_l = lr·(s_l/s̄)^β in layer l, s_l = α_l·γ_l, s̄ the mean of s over the layers used.

    The decay exponent of the curvature as a scalar a layer, with no direction: in the paper it is within seed variance
    of Adam, which shows that T(σ; α) acts by its directions. β < 0 is the paper's inverse scaling.

    Args:
        model: any module. Parameters of a layer, bias included, share its rate; layers without s keep ``lr``.
        s: layer name → s_l: numbers, or rows with fits ``.alpha`` and ``.gamma``, such as a Landscape.
        lr: η.
        beta: the power β; 0 is Adam.
        adam_settings: the other settings of ``torch.optim.Adam``.

    Raises:
        KeyError: ``s`` names no layer of the model that has a trainable parameter.
        ValueError: ``s`` names what the model has not; an s_l that is not positive and finite; β not finite.
    """

    def __init__(
        self, model: nn.Module, s: Mapping[str, Any], lr: float = 1e-3, beta: float = 1.0, **adam_settings: Any
    ) -> None:
        if not math.isfinite(beta):
            raise ValueError(f"beta must be finite, not {beta!r}")
        layers: dict[str, list[tuple[str, nn.Parameter]]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                layers.setdefault(name.rpartition(".")[0], []).append((name, parameter))
        known = keyed(s, [*layers_in(model), *names_in(model)], "s")
        rows = {layer: row_of(known, members[0][0]) for layer, members in layers.items()}
        exponents = {layer: _decay_exponent(row, layer) for layer, row in rows.items() if row is not None}
        if not exponents:
            raise KeyError(f"s names no trainable layer of the model; there are {', '.join(list(layers)[:8])}, …")
        mean = sum(exponents.values()) / len(exponents)
        groups = [
            {"params": members, "lr": lr * (exponents.get(layer, mean) / mean) ** beta, "layer": layer}
            for layer, members in layers.items()
        ]
        super().__init__(groups, lr=lr, **adam_settings)
