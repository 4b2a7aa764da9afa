"""One Spectral Newton step of a group of matrices: momentum, T, scale, weight decay, all batched across parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spectral_ext.ops.spectral_newton import spectral_newton
from spectral_ext.optim import distributed
from spectral_ext.optim.dtensor import is_sharded, local
from spectral_ext.optim.layout import Layout
from spectral_ext.optim.settings import check, layouts_of, names_of, values_of
from spectral_ext.optim.update_scale import UpdateScale, scale_factors, to_unit_scale
from spectral_ext.optim.zero_gradients import hold_idle


def new_state(parameter: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
    """A momentum buffer of zeros, if there is momentum."""
    if not group["momentum"]:
        return {}
    return {"momentum_buffer": torch.zeros_like(parameter, memory_format=torch.preserve_format)}


def directions_of(
    gradients: list[Tensor], buffers: list[Tensor], group: dict[str, Any], found_inf: Tensor | None
) -> list[Tensor]:
    """D of each parameter; the buffers advance, except where ``found_inf`` is 1. May alias gradients or buffers."""
    if group["maximize"]:
        gradients = list(torch._foreach_neg(gradients))
    if not group["momentum"]:
        return gradients
    momentum, ema = group["momentum"], group["momentum_mode"] == "ema"
    old = [buffer.clone() for buffer in buffers] if found_inf is not None else buffers
    if ema:
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
    else:
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, gradients)
    if found_inf is not None:
        for buffer, before in zip(buffers, old):
            buffer.copy_(torch.where(found_inf > 0, before, buffer))
    if not group["nesterov"]:
        return buffers
    if ema:
        return list(torch._foreach_lerp(gradients, buffers, momentum))
    return list(torch._foreach_add(gradients, buffers, alpha=momentum))


class Transform:
    """D → c·T(D) for whole parameters, each with its layout and settings."""

    def __init__(self, group: dict[str, Any], number: int, chosen: Sequence[int]) -> None:
        self.group, self.number = group, number
        layouts = layouts_of(group)
        self.layouts: list[Layout] = [layouts[i] for i in chosen]
        columns = [values_of(group, key) for key in ("alpha", "damping", "damping_mode")]
        self.settings = [tuple(column[i] for column in columns) for i in chosen]
        self.update_scale: UpdateScale = group["update_scale"]
        self.options = {"solver": group["solver"], "tolerance": group["tolerance"]}

    def costs(self, shapes: Sequence[torch.Size], indices: Sequence[int]) -> list[float]:
        """Operations of the updates of the parameters ``indices``, up to a factor."""
        return [self.layouts[i].cost(shape) for i, shape in zip(indices, shapes)]

    @torch.compiler.disable
    def __call__(self, directions: Sequence[Tensor], indices: Sequence[int]) -> list[Tensor]:
        """The updates of the parameters ``indices``, from their directions, whole."""
        pieces = [self.layouts[i].matrices(direction) for i, direction in zip(indices, directions)]
        settings = [self.settings[i] for i, own in zip(indices, pieces) for _ in own]
        matrices = [matrix for own in pieces for matrix in own]
        fixed = isinstance(self.update_scale, str)
        free = [place for place, (_, _, mode) in enumerate(settings) if fixed and mode != "absolute"]
        now = [place for place in free if self._scaled_first(matrices[place])]
        for place, matrix in zip(now, to_unit_scale([matrices[place] for place in now])):
            matrices[place] = matrix
        updates, factors = self._map(matrices, settings)
        late = [place for place in sorted({*free} - {*now}) if not torch.as_tensor(factors[place]).all()]
        if late:
            scaled = to_unit_scale([matrices[place] for place in late])
            for place, update, factor in zip(late, *self._map(scaled, [settings[place] for place in late])):
                updates[place], factors[place] = update, factor
        if all(isinstance(factor, Tensor) and factor.dim() == 0 for factor in factors):
            torch._foreach_mul_(updates, factors)  # type: ignore[arg-type]
        elif self.update_scale is not None:
            updates = [update * factor for update, factor in zip(updates, factors)]
        flat = iter(updates)
        return [
            self.layouts[i].tensor([next(flat).to(direction.dtype) for _ in own], direction)
            for i, own, direction in zip(indices, pieces, directions)
        ]

    def _scaled_first(self, matrix: Tensor) -> bool:
        """On a host, the norm of T(D) says for nothing whether D had to be scaled; elsewhere a look would wait."""
        return self.update_scale == "spectral" or matrix.device.type != "cpu" or matrix.dtype == torch.float16

    def _map(
        self, matrices: list[Tensor], settings: Sequence[tuple[Any, ...]]
    ) -> tuple[list[Tensor], list[Tensor | float]]:
        """T(D) and its factor for each matrix with its (α, d, mode)."""
        updates = list(matrices)
        for mode in dict.fromkeys(mode for _, _, mode in settings):
            places = [place for place, (_, _, own) in enumerate(settings) if own == mode]
            try:
                results = spectral_newton(
                    [matrices[place] for place in places],
                    [settings[place][0] for place in places],
                    [settings[place][1] for place in places],
                    damping_mode=mode,
                    **self.options,
                )
            except (TypeError, ValueError):
                check(self.group, names_of(self.group, self.number))
                raise
            for place, result in zip(places, results):
                updates[place] = result
        alphas, dampings, modes = zip(*settings)
        return updates, scale_factors(updates, matrices, alphas, dampings, modes, self.update_scale)


def updates_of(
    parameters: list[Tensor],
    directions: list[Tensor],
    group: dict[str, Any],
    number: int,
    process_group: torch.distributed.ProcessGroup | None,
) -> list[Tensor]:
    """c·T(D) of each parameter, of DTensors the local shard."""
    position = {id(p): i for i, p in enumerate(group["params"])}
    updates = list(directions)
    for sharded in (False, True):
        places = [i for i, p in enumerate(parameters) if is_sharded(p) == sharded]
        if not places:
            continue
        transform = Transform(group, number, [position[id(parameters[i])] for i in places])
        own = [directions[i] for i in places]
        if sharded:
            results = distributed.sharded_updates(transform, own, [parameters[i] for i in places])
        elif process_group is not None:
            results = distributed.replicated_updates(transform, own, process_group)
        else:
            results = transform(own, range(len(own)))
        for i, result in zip(places, results):
            updates[i] = result
    return updates


def matrix_step(
    parameters: list[Tensor],
    states: list[dict[str, Any]],
    group: dict[str, Any],
    number: int,
    found_inf: Tensor | None,
    process_group: torch.distributed.ProcessGroup | None,
) -> None:
    """Momentum, update and decay of the parameters that have a gradient, in place."""
    gradients = [local(p.grad) for p in parameters]  # type: ignore[arg-type]
    if found_inf is not None:
        gradients = [torch.where(found_inf > 0, torch.zeros_like(gradient), gradient) for gradient in gradients]
    buffers = [local(state["momentum_buffer"]) for state in states] if group["momentum"] else []
    directions = directions_of(gradients, buffers, group, found_inf)
    updates = updates_of(parameters, directions, group, number, process_group)
    layouts = layouts_of(group)
    position = {id(p): i for i, p in enumerate(group["params"])}
    updates = hold_idle(updates, gradients, parameters, [layouts[position[id(p)]] for p in parameters])
    weights = [local(p) for p in parameters]
    lr, decay = group["lr"], group["weight_decay"]
    if found_inf is not None:
        lr = (1 - found_inf) * (lr.to(found_inf.device) if isinstance(lr, Tensor) else lr)
    if isinstance(lr, Tensor):
        lr = lr.to(weights[0].device)
        if decay:
            torch._foreach_mul_(weights, 1 - lr * decay)
        torch._foreach_mul_(updates, -lr)
        torch._foreach_add_(weights, updates)
    else:
        if decay:
            torch._foreach_mul_(weights, 1 - lr * decay)
        torch._foreach_add_(weights, updates, alpha=-lr)
