"""Leave the user's model, random number generators and global flags as they were, also after an exception."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack, _pop_mode


@contextlib.contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Restore everything that a measurement or the model's own forward may change, normally or after an exception.

    Enter it before anything reads a weight: spectral norm, for example, moves its buffers when its weight is read.

    Restored per module: the training flag, the buffers (the same objects with the same values, also where ``forward``
    assigns another tensor), and plain attributes that held a tensor or a number. Restored per parameter:
    ``requires_grad`` and ``.grad``, the same object with the same values; inside the block ``.grad`` is None. Restored
    globally: the random number generators of Python, NumPy and torch (CPU, and CUDA if it is in use), gradient mode,
    autocast, precision and determinism flags, the default dtype, and the depth of torch's stack of dispatch modes.

    Of hooks only those are removed that this package has added inside the block: hooks that the user's own forward adds
    or removes stay as the user made them. Parameter values must not be written to inside.
    """
    with contextlib.ExitStack() as undo:  # every callback runs, also where another one fails
        for restore, *arguments in (*_flags(), *_generators()):
            undo.callback(restore, *arguments)
        parameters = list(model.parameters())
        for parameter in parameters:
            undo.callback(_restore_parameter, parameter, parameter.requires_grad, parameter.grad)
        for module in model.modules():
            undo.callback(setattr, module, "training", module.training)
            undo.callback(_remove_own_hooks, module, _hooks(module))
            undo.callback(_restore_attributes, module, _attributes(module))
            if not isinstance(module, torch.jit.ScriptModule):  # whose tables are made anew at every look
                undo.callback(_restore_buffers, module._buffers, dict(module._buffers))
        seen: set[int] = set()
        for tensor in _state(model):
            if id(tensor) not in seen and not is_lazy(tensor):
                seen.add(id(tensor))
                undo.callback(_restore_value, tensor, tensor.detach().clone())
        for parameter in parameters:
            parameter.grad = None
        undo.callback(_leave_modes, len(_get_current_dispatch_mode_stack()))  # first of all: the others write tensors
        yield


def _state(model: nn.Module) -> Iterator[Tensor]:
    """The tensors that are no parameters: buffers and plain attributes."""
    for module in model.modules():
        yield from (buffer for buffer in module._buffers.values() if buffer is not None)
        yield from (value for value in _attributes(module).values() if isinstance(value, Tensor))


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Plain attributes that hold a tensor or a number. A boolean marks one-time work, which cannot be undone."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, Tensor) or (isinstance(value, (int, float)) and not isinstance(value, bool))
    }


def _hooks(module: nn.Module) -> set[int]:
    return {key for name in _HOOKS for key in getattr(module, name)}


def _remove_own_hooks(module: nn.Module, before: set[int]) -> None:
    """Each hook of ours is removed by its handle; this is for one whose handle an exception has lost."""
    for name in _HOOKS:
        for key, hook in list(getattr(module, name).items()):
            if key not in before and str(getattr(hook, "__module__", "")).startswith(f"{__name__.split('.')[0]}."):
                for table in (name, *_MARKS):
                    getattr(module, table, {}).pop(key, None)


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_MARKS = ("_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs")


def _restore_attributes(module: nn.Module, attributes: dict[str, Any]) -> None:
    for name, value in attributes.items():
        if vars(module).get(name) is not value:
            vars(module)[name] = value


def _restore_buffers(table: dict[str, Any], entries: dict[str, Any]) -> None:
    if table.keys() != entries.keys() or any(table[name] is not entries[name] for name in entries):
        table.clear()
        table.update(entries)


def _restore_value(tensor: Tensor, value: Tensor) -> None:
    with torch.no_grad():
        if tensor.shape != value.shape:
            tensor.resize_(value.shape)
        elif bool(((tensor == value) | ((tensor != tensor) & (value != value))).all()):
            return  # untouched: a copy would raise the version that an open autograd graph compares
        tensor.copy_(value)


def _leave_modes(depth: int) -> None:
    """An interrupt inside the entry or exit of a tracing mode may leave that mode on."""
    while len(_get_current_dispatch_mode_stack()) > depth:
        _pop_mode()


def _restore_parameter(parameter: nn.Parameter, requires_grad: bool, grad: Tensor | None) -> None:
    parameter.requires_grad_(requires_grad)
    parameter.grad = grad


Restore = tuple[Any, ...]


def _generators() -> list[Restore]:
    saved: list[Restore] = [
        (random.setstate, random.getstate()),
        (np.random.set_state, np.random.get_state()),
        (torch.set_rng_state, torch.get_rng_state()),
    ]
    if torch.cuda.is_initialized():
        saved.append((torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all()))
    return saved


def _flags() -> list[Restore]:
    backends = torch.backends
    saved: list[Restore] = [
        (torch.set_grad_enabled, torch.is_grad_enabled()),
        (torch.set_default_dtype, torch.get_default_dtype()),
        (torch.set_autocast_cache_enabled, torch.is_autocast_cache_enabled()),
        (_restore_determinism, torch.are_deterministic_algorithms_enabled(),
         torch.is_deterministic_algorithms_warn_only_enabled()),
        (_restore_precision, _matmul_precision(), backends.cuda.matmul.allow_tf32),
        (backends.mha.set_fastpath_enabled, backends.mha.get_fastpath_enabled()),
    ]  # fmt: skip
    for device in ("cpu", "cuda"):
        saved.append((torch.set_autocast_enabled, device, torch.is_autocast_enabled(device)))
        saved.append((torch.set_autocast_dtype, device, torch.get_autocast_dtype(device)))
    for flag in ("allow_tf32", "benchmark", "deterministic"):
        saved.append((setattr, backends.cudnn, flag, getattr(backends.cudnn, flag)))
    return saved


def _restore_determinism(mode: bool, warn_only: bool) -> None:
    now = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if now != (mode, warn_only):
        torch.use_deterministic_algorithms(mode, warn_only=warn_only)


def _restore_precision(precision: str | None, allow_tf32: bool) -> None:
    if _matmul_precision() != precision or torch.backends.cuda.matmul.allow_tf32 != allow_tf32:
        torch.set_float32_matmul_precision(precision or "highest")
        if torch.backends.cuda.matmul.allow_tf32 != allow_tf32:
            torch.backends.cuda.matmul.allow_tf32 = allow_tf32


def _matmul_precision() -> str | None:
    """None where the user has set allow_tf32 by itself: torch then refuses to name a precision."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None
