"""Weights of 16 bits whose small updates are not lost: stochastic rounding, or a compensation term (Kahan).

A bfloat16 weight near 1 moves in steps of 2⁻⁷: rounded to nearest, updates below half of that leave it where it is.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from spectral_ext.optim.dtensor import is_sharded, local

LOW_PRECISION = (None, "stochastic_rounding", "compensated")


def rounding_generator(parameter: Tensor, seed: int, step: int, index: tuple[int, int]) -> torch.Generator:
    """Noise that depends on the seed, the step and the parameter's place (group, position) alone, so that a run from a
    checkpoint rounds as one that was not stopped. Replicas draw the same noise, shards noise of their own."""
    place: tuple[int, ...] = ()
    if is_sharded(parameter):
        coordinates = parameter.device_mesh.get_coordinate()  # type: ignore[attr-defined]
        place = tuple(c for c, p in zip(coordinates, parameter.placements) if not p.is_replicate())  # type: ignore[attr-defined]
    digest = hashlib.blake2b(repr((seed, step, index, place)).encode(), digest_size=7).digest()
    return torch.Generator(local(parameter).device).manual_seed(int.from_bytes(digest, "big"))


def round_stochastically(values: Tensor, dtype: torch.dtype, generator: torch.Generator | None = None) -> Tensor:
    """float32 values as bfloat16 or float16, rounded up or down so that the expected result is the value itself."""
    info = torch.finfo(dtype)
    # The distance between neighbours of ``dtype`` at each value: ε·2^⌊log₂|x|⌋, at least that of the smallest normal.
    exponent = torch.frexp(values).exponent - 1
    unit = torch.ldexp(torch.full_like(values, info.eps), exponent).clamp(min=info.tiny * info.eps)
    noise = torch.empty_like(values).uniform_(generator=generator)
    return torch.where(values.isfinite(), (values / unit + noise).floor() * unit, values).to(dtype)


def exact_weight(weight: Tensor, state: dict[str, Any]) -> Tensor:
    """A 16-bit weight in float32, with its compensation."""
    exact = weight.float()
    return exact.add_(local(state["compensation"])) if "compensation" in state else exact


def store(
    exact: Tensor,
    weight: Tensor,
    state: dict[str, Any],
    found_inf: Tensor | None,
    generator: torch.Generator | None = None,
) -> None:
    """Write a float32 weight to the 16-bit one, in place, unless ``found_inf`` is 1: with ``generator`` stochastically,
    else rounded to nearest, the rest kept in ``compensation`` where the state has one."""
    rounded = exact.to(weight.dtype) if generator is None else round_stochastically(exact, weight.dtype, generator)
    if "compensation" in state:
        compensation = local(state["compensation"])
        rest = (exact - rounded.float()).to(weight.dtype)
        compensation.copy_(rest if found_inf is None else torch.where(found_inf > 0, compensation, rest))
    weight.copy_(rounded if found_inf is None else torch.where(found_inf > 0, weight, rounded))
