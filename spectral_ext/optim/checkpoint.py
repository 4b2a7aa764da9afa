"""Saving and loading: whether a state is of this optimizer and these parameters; and its precision, kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from spectral_ext.optim.dtensor import is_sharded
from spectral_ext.optim.settings import GLOBAL_SETTINGS, check, names_of
from spectral_ext.optim.state import MOMENTS, state_dtype

GROUP_KEYS = ("use_adamw", "lr", "alpha", "momentum", "damping_mode")


def _check_origin(groups: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError if the groups of a state are another optimizer's."""
    for group in groups:
        lacking = [key for key in GROUP_KEYS if key not in group]
        if lacking:
            whose, remedy = "another optimizer", "begin with a fresh state"
            if "ns_steps" in group:
                whose, remedy = "torch.optim.Muon", "copy its momentum_buffer of each parameter into optimizer.state[p]"
            raise ValueError(
                f"the state is of {whose}, not of SpectralNewton: its groups lack {', '.join(lacking)}; {remedy}"
            )


def check_loaded(
    loaded: Mapping[str, Any], groups: Sequence[Mapping[str, Any]], defaults: Mapping[str, Any]
) -> dict[Tensor, dict[str, Any]]:
    """The entries of a state by parameter, as they were saved.

    Raises:
        ValueError: the state is another optimizer's, has other groups, settings out of range, or, naming the parameter,
            another shape, a wider dtype, or the layout of another number of processes.
    """
    _check_origin(loaded["param_groups"])
    if [len(group["params"]) for group in loaded["param_groups"]] != [len(group["params"]) for group in groups]:
        return {}
    entries: dict[Tensor, dict[str, Any]] = {}
    for number, (saved, group) in enumerate(zip(loaded["param_groups"], groups)):
        names = names_of(group, number)
        run_as = {key: defaults[key] for key in defaults if key in GLOBAL_SETTINGS or key not in saved}
        check({**saved, **run_as, "params": group["params"]}, names)
        if saved.get("transfer") != group["transfer"]:
            raise ValueError(
                f"transfer of {names[0]!r}: the state was saved with {saved.get('transfer')}, this optimizer has "
                f"{group['transfer']}: make it with the same transfer"
            )
        for name, place, parameter in zip(names, saved["params"], group["params"]):
            entries[parameter] = loaded["state"].get(place, {})
            for key, value in entries[parameter].items():
                if isinstance(value, Tensor) and (value.dim() or key in MOMENTS):
                    _check_entry(key, value, parameter, name)
    return entries


def _check_entry(key: str, value: Tensor, parameter: Tensor, name: str) -> None:
    if value.shape != parameter.shape:
        raise ValueError(
            f"the state's {key} for {name!r} has shape {tuple(value.shape)}, not {tuple(parameter.shape)}: were the "
            "parameters sorted into groups in another way, or is it another model's, or the shard of one process? "
            "torch.distributed.checkpoint loads states of another number of processes"
        )
    if is_sharded(value) and (not is_sharded(parameter) or value.device_mesh != parameter.device_mesh):  # type: ignore[attr-defined]
        raise ValueError(
            f"the state's {key} for {name!r} is laid out for other processes than the parameter: load it with "
            "torch.distributed.checkpoint"
        )
    dtype = state_dtype(parameter) if key in MOMENTS else value.dtype
    if torch.promote_types(value.dtype, dtype) != dtype:
        raise ValueError(
            f"the state's {key} for {name!r} is {value.dtype}; it would be rounded to {dtype}: cast it yourself, or "
            "load it before the model is cast"
        )


def restore_precision(state: Mapping[Tensor, dict[str, Any]], saved: Mapping[Tensor, Mapping[str, Any]]) -> None:
    """Undo torch's cast of the moments to the dtype of the weights; a step brings them to where they belong."""
    for parameter, entries in saved.items():
        for key, value in entries.items():
            if isinstance(value, Tensor) and key in state.get(parameter, {}):
                loaded = state[parameter][key]
                if loaded.dtype != value.dtype:
                    state[parameter][key] = value.to(loaded.device, copy=True)


class CheckpointedOptimizer(torch.optim.Optimizer):
    """Loads a state only after all of it was checked, in its own precision."""

    _loading: Mapping[Tensor, Mapping[str, Any]] = {}

    def _begin_process(self) -> None:
        """Set what belongs to this process and object, and goes into no copy, pickle or state."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """State and settings. Entries of parameters that have left the groups (accelerate's FSDP2 swap) are dropped."""
        inside = {id(p) for group in self.param_groups for p in group["params"]}
        for parameter in [key for key in self.state if isinstance(key, Tensor) and id(key) not in inside]:
            del self.state[parameter]
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict`` gave: settings of the groups and state; ``capturable`` and ``nonfinite`` stay.

        Raises:
            ValueError: the state is another optimizer's, or has other groups, or, naming the parameter, another shape,
                a wider dtype or the layout of another number of processes; nothing has changed.
        """

        def look(_: Any, final: dict[str, Any]) -> None:
            self._loading = check_loaded(final, self.param_groups, self.defaults)

        handle = self.register_load_state_dict_pre_hook(look)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
            self._loading = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "process_group" not in self.__dict__:
            self._begin_process()
        restore_precision(self.state, self._loading)
        for group in self.param_groups:
            for key in self.defaults.keys() - {"differentiable"}:
                group.setdefault(key, self.defaults[key])
            group |= {key: self.defaults[key] for key in GLOBAL_SETTINGS}
