"""Leave the user's model, RNG and global flags as they were, also after an exception."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Restore everything a measurement may touch when the block ends, normally or by an exception.

    Restored: each module's training flag, buffer values (written back in place, so tied buffers stay tied) and forward
    and backward hooks, each parameter's ``requires_grad`` and ``.grad`` (the same object), the RNG state of the CPU and
    of every CUDA device in use, and the TF32 and float32-matmul-precision flags. Parameters must not be written to
    inside.
    """
    modules = list(model.modules())
    training = [module.training for module in modules]
    hooks = [(module, name, dict(getattr(module, name))) for module in modules for name in _HOOKS]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    parameters = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    cuda = torch.cuda.is_initialized()
    rng = torch.get_rng_state()
    cuda_rng = torch.cuda.get_rng_state_all() if cuda else None
    precision = _matmul_precision()
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        yield
    finally:
        for module, flag in zip(modules, training, strict=True):
            module.training = flag
        for module, name, entries in hooks:
            table = getattr(module, name)
            table.clear()
            table.update(entries)
        with torch.no_grad():
            for buffer, value in buffers:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
        for parameter, requires_grad, grad in parameters:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
        torch.set_rng_state(rng)
        if cuda_rng is not None:
            torch.cuda.set_rng_state_all(cuda_rng)
        if _matmul_precision() != precision or torch.backends.cuda.matmul.allow_tf32 != tf32[0]:
            torch.set_float32_matmul_precision(precision or "highest")
            if torch.backends.cuda.matmul.allow_tf32 != tf32[0]:
                torch.backends.cuda.matmul.allow_tf32 = tf32[0]
        torch.backends.cudnn.allow_tf32 = tf32[1]


def _matmul_precision() -> str | None:
    """None where the user has set allow_tf32 by itself: torch then refuses to name a precision."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
