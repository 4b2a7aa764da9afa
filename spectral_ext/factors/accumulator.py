"""Running Kronecker factors of one layer: over micro-batches, over time, over processes."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from spectral_ext.ops.geometry import Geometry, accumulator_dtype, geometry_of, prepare
from spectral_ext.ops.input_factor import expand_lag_sums, input_factor, lag_state_size, lag_sums_
from spectral_ext.ops.output_factor import output_factor
from spectral_ext.ops.scales import check_scale, input_scale, output_scale


class KroneckerFactors(NamedTuple):
    """C_A, (n, n) or (groups, n, n), and C_δ, (m, m) or (groups, m, m)."""

    input: Tensor
    output: Tensor


@dataclass
class RunningSum:
    """Σ a aᵀ or Σ d dᵀ so far, decayed, and how much went in."""

    total: Tensor | None = None
    samples: float = 0.0
    rows: float = 0.0
    decay: float = 1.0
    """Still to be applied to the three above; the next update does it in the same pass."""
    input_size: tuple[int, ...] = ()
    """(channels, *spatial) where ``total`` is a lag-sum state, () where it is the factor itself."""
    geometry: Geometry | None = None
    """Of the inputs as they were summed: padding modes other than zeros are padding by then."""

    def count(self, samples: int, rows: int) -> None:
        self.samples = self.decay * self.samples + samples
        self.rows = self.decay * self.rows + rows
        self.decay = 1.0

    def add(self, total: Tensor, samples: int, rows: int) -> None:
        """Adds a factor that was summed elsewhere; layers that are fed by the same input share one."""
        if self.total is None:
            self.total = total.clone()
        else:
            self.total.mul_(self.decay).add_(total)
        self.count(samples, rows)

    def expanded(self, order: str) -> Tensor:
        """The total as a factor; ``total`` itself where it is one."""
        assert self.total is not None
        if not self.input_size:
            return self.total
        assert self.geometry is not None
        return expand_lag_sums(self.total, self.input_size, self.geometry, order=order)

    def all_reduce(self, group: dist.ProcessGroup | None, order: str) -> RunningSum:
        """The sum over the processes of a group, each of which may have nothing, lag sums or a factor."""
        mine = replace(self, total=None), self.total if self.total is None else (self.total.shape, self.total.dtype)
        everyone: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(everyone, mine, group=group)
        holders = [(running, shape_and_dtype) for running, shape_and_dtype in everyone if shape_and_dtype is not None]
        if not holders:
            return RunningSum()
        common = replace(holders[0][0], decay=1.0)
        total, (shape, dtype) = self.total, holders[0][1]
        if any(running.input_size != common.input_size for running, _ in holders):  # inputs of several sizes
            common = replace(common, input_size=())
            total = None if total is None else self.expanded(order)
            shape = _factor_shape(holders)
        if total is None:
            on = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend(group) == "nccl" else "cpu"
            total = torch.zeros(shape, dtype=dtype, device=on)
        else:
            total = total * self.decay
        counts = torch.tensor([self.samples, self.rows], dtype=torch.float64, device=total.device) * self.decay
        dist.all_reduce(total, group=group)
        dist.all_reduce(counts, group=group)
        common.total = total
        common.samples, common.rows = counts.tolist()
        return common


def _factor_shape(holders: list[Any]) -> tuple[int, ...]:
    """Of the expanded factor, from any process that knows it."""
    for running, (shape, _) in holders:
        if not running.input_size:
            return tuple(shape)
    running = holders[0][0]
    n = running.geometry.side(running.input_size[0])
    return (n, n) if running.geometry.groups == 1 else (running.geometry.groups, n, n)


class KroneckerAccumulator:
    r"""C_A = Σ_t w_t Σ a aᵀ / Σ_t w_t B_t S_t and C_δ = Σ_t w_t Σ d dᵀ / Σ_t w_t B_t, kept as sums and counts.

    Every sample weighs the same, whatever the size of its micro-batch: the factors of any split of a batch are the
    factors of the batch. With ``decay``, each :meth:`step` multiplies what came before by it, w_t = decay^age:
    an exponential average without bias towards its start. For a convolution whose lag sums are smaller than C_A, those
    are what is kept; they are expanded only when a factor is asked for::

        accumulator = KroneckerAccumulator.for_module(layer, decay=0.95)
        for x, delta in micro_batches:          # delta: per-sample errors
            accumulator.update(x, delta)
        accumulator.step()
        C_A, C_delta = accumulator.all_reduce().factors()

    Args:
        decay: in (0, 1]; 1 sums for ever.
        reduction, scale, num_classes, order: as in :func:`spectral_ext.ops.input_factor`. B is the (decayed) number of
            samples so far, S the mean number of positions of a sample.
        compact: keep lag sums where they are smaller.
        geometry: ``kernel_size``, ``stride``, … as in :func:`spectral_ext.ops.input_factor`.

    Raises:
        ValueError: a decay out of range, or a name that does not exist.
    """

    def __init__(
        self,
        *,
        decay: float = 1.0,
        reduction: str = "expand",
        scale: str = "curvlinops",
        num_classes: int | None = None,
        order: str = "unfold",
        compact: bool = True,
        **geometry: Any,
    ) -> None:
        if not 0 < decay <= 1:
            raise ValueError(f"decay must be in (0, 1], and is {decay}")
        check_scale(scale, reduction, num_classes)
        self.decay = decay
        self.reduction, self.scale, self.num_classes, self.order = reduction, scale, num_classes, order
        self.compact = compact
        self.geometry = {"kernel_size": None, "groups": 1, **geometry}
        self.input, self.output = RunningSum(), RunningSum()

    @classmethod
    def for_module(cls, module: nn.Module, *, bias: bool | None = None, **options: Any) -> KroneckerAccumulator:
        """With the geometry of a Linear or (transposed) convolution layer; ``bias=None``: as the module has it."""
        geometry: dict[str, Any] = dict(geometry_of(module, bias=bias))
        return cls(**options, **geometry)

    @property
    def is_convolution(self) -> bool:
        return self.geometry["kernel_size"] is not None

    # ---- feeding

    def update(self, x: Tensor | None = None, delta: Tensor | None = None) -> None:
        """Adds a micro-batch: inputs, per-sample errors (B times a hook's gradient under a mean loss), or both."""
        if x is not None:
            self._update_input(x.detach())
        if delta is not None:
            self._update_output(delta.detach())

    def step(self) -> None:
        """Ends a step: what was accumulated so far weighs ``decay`` times less against what follows."""
        self.input.decay *= self.decay
        self.output.decay *= self.decay

    def reset(self) -> None:
        """Forgets everything."""
        self.input, self.output = RunningSum(), RunningSum()

    def _update_input(self, x: Tensor) -> None:
        x, geometry = prepare(x, **self.geometry)
        samples = x.shape[0] if x.dim() > 1 else 1
        positions = geometry.positions(x.shape[2:]) if self.is_convolution else math.prod(x.shape[1:-1])
        if samples * positions == 0:
            return
        running, size = self.input, tuple(x.shape[1:])
        if running.input_size and running.input_size != size:  # lag sums of another size cannot be added
            running.total, running.input_size = running.expanded(self.order), ()
        if running.total is None:
            running.geometry = geometry
            if self.compact and self.is_convolution and self.reduction == "expand":
                numbers = lag_state_size(size, geometry)
                if numbers < geometry.groups * geometry.side(x.shape[1]) ** 2:
                    running.total, running.input_size = x.new_zeros(numbers, dtype=accumulator_dtype(x.dtype)), size
        if running.input_size:
            assert running.total is not None
            lag_sums_(running.total, x, geometry, beta=running.decay)
        else:
            target: dict[str, Any] = {} if running.total is None else {"out": running.total, "beta": running.decay}
            shape: dict[str, Any] = {"bias": geometry.bias}
            if self.is_convolution:
                shape = {**self.geometry, "padding": geometry.padding, "padding_mode": "zeros"}
            running.total = input_factor(x, reduction=self.reduction, order=self.order, scale="sum", **shape, **target)
        running.count(samples, samples if self.reduction == "reduce" else samples * positions)

    def _update_output(self, delta: Tensor) -> None:
        running = self.output
        samples = delta.shape[0] if delta.dim() > 1 else 1
        positions = math.prod(delta.shape[2:] if self.is_convolution else delta.shape[1:-1])
        if samples * positions == 0:
            return
        summed = self.reduction == "reduce" or self.scale == "backpack"
        target: dict[str, Any] = {} if running.total is None else {"out": running.total, "beta": running.decay}
        running.total = output_factor(
            delta,
            convolution=self.is_convolution,
            groups=self.geometry["groups"],
            reduction="reduce" if summed else "expand",
            scale="sum",
            **target,
        )
        running.count(samples, samples if summed else samples * positions)

    # ---- reading

    def input_factor(self) -> Tensor:
        """C_A of everything so far, (n, n) or (groups, n, n); the accumulator goes on unchanged.

        Raises:
            RuntimeError: nothing was accumulated.
        """
        running = self.input
        if running.total is None:
            raise RuntimeError("no input was accumulated: call update(x) first")
        number = input_scale(self.scale, running.samples, running.rows / running.samples, self.num_classes)
        factor = running.expanded(self.order)
        return factor.mul_(number) if running.input_size else factor * number

    def output_factor(self) -> Tensor:
        """C_δ of everything so far, (m, m) or (groups, m, m).

        Raises:
            RuntimeError: nothing was accumulated.
        """
        running = self.output
        if running.total is None:
            raise RuntimeError("no error was accumulated: call update(delta=…) first")
        number = output_scale(self.scale, running.samples, running.rows / running.samples, self.num_classes)
        return running.total * number

    def factors(self) -> KroneckerFactors:
        """Both factors."""
        return KroneckerFactors(self.input_factor(), self.output_factor())

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> KroneckerAccumulator:
        """A new accumulator with the sums and counts of all processes of a group; this one goes on with its own.

        Lag sums travel as such where every process has inputs of the same size. Any backend of ``torch.distributed``;
        without an initialised process group this process is the only one. All processes of the group must call this,
        those that have accumulated nothing too, after the same number of steps.
        """
        merged = copy.copy(self)
        if dist.is_available() and dist.is_initialized():
            merged.input = self.input.all_reduce(group, self.order)
            merged.output = self.output.all_reduce(group, self.order)
        else:
            merged.input, merged.output = copy.deepcopy(self.input), copy.deepcopy(self.output)
        return merged

    # ---- saving

    def state_dict(self) -> dict[str, Any]:
        """Options, counts and tensors (not copies), all of types that ``torch.load(weights_only=True)`` accepts."""
        state: dict[str, Any] = {"options": self._options()}
        for name, running in (("input", self.input), ("output", self.output)):
            geometry = None if running.geometry is None else asdict(running.geometry)
            state[name] = {**running.__dict__, "geometry": geometry}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copies what :meth:`state_dict` gave.

        Raises:
            ValueError: it belongs to an accumulator of another geometry, reduction, scale or order.
        """
        mine = self._options()
        for name, value in state["options"].items():
            if mine.get(name) != value:
                raise ValueError(f"{name} is {value!r} in the state and {mine.get(name)!r} in this accumulator")
        for name in ("input", "output"):
            entry = dict(state[name])
            if entry["total"] is not None:
                entry["total"] = entry["total"].clone()
            if entry["geometry"] is not None:
                entry["geometry"] = Geometry(**{k: _tuples(v) for k, v in entry["geometry"].items()})
            entry["input_size"] = tuple(entry["input_size"])
            setattr(self, name, RunningSum(**entry))

    def _options(self) -> dict[str, Any]:
        names = ("reduction", "scale", "num_classes", "order")
        return {**{name: getattr(self, name) for name in names}, **{k: _tuples(v) for k, v in self.geometry.items()}}


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else value
