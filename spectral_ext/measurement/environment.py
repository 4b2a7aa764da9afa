"""The state that a measurement runs under: deterministic, full precision, twice differentiable; restored afterwards."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.utils.checkpoint
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from spectral_ext.measurement.preserve import preserved


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside ``torch.compile`` and ``DistributedDataParallel``, whose names the layers keep.

    Raises:
        TypeError: ``model`` is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, not {type(model).__name__}")
    while True:
        if type(model).__name__ == "OptimizedModule" and hasattr(model, "_orig_mod"):
            inner: Any = model._orig_mod
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        else:
            return model
        model = inner


@contextlib.contextmanager
def measurement(model: nn.Module, *, values: bool = True) -> Iterator[set[str]]:
    """:func:`.preserved`, and inside the block: attention by the math kernel (the fused ones have no second
    derivative), the fused transformer-encoder path off, TF32 off, float32 matrix products at "highest" precision,
    compiled parts run uncompiled (compiled code has no second derivative), reentrant activation checkpoints call their
    function directly, autocast blocks that the forward pass enters have no effect (they would mix precisions),
    gradients on, and batch norm in train mode leaves its running statistics alone. Enter it before anything reads a
    weight. ``values=False`` allows a model on the meta device, of which only shapes are asked.

    Yields:
        the devices whose autocast a forward pass has tried to switch on so far.

    Raises:
        RuntimeError: autocast is on.
        TypeError, ValueError: a parameter is lazy, sharded (DTensor), on the meta device or made in inference mode,
            the model is wrapped by FSDP, or dropout is in train mode; the message names the module or parameter.
    """
    refuse_autocast()
    refuse_unusable_parameters(model, values)
    refuse_dropout(model)
    with (
        preserved(model) if values else contextlib.nullcontext(),
        _uncompiled(),
        _without_autocast() as tried,
        _without_reentrant_checkpoints(),
        sdpa_kernel(SDPBackend.MATH),
        torch.inference_mode(False),
        batch_norm_needs_samples(model),
    ):
        torch.set_grad_enabled(True)
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.mha.set_fastpath_enabled(False)
        tracking = [m for m in model.modules() if isinstance(m, _NormBase) and m.training and m.track_running_stats]
        try:
            for module in tracking:
                module.track_running_stats = False
            yield tried
        finally:
            for module in tracking:
                module.track_running_stats = True


def _uncompiled() -> contextlib.AbstractContextManager:
    """Compiled modules and functions run as plain Python. Nothing is compiled where Dynamo was never imported."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else contextlib.nullcontext()


@contextlib.contextmanager
def _without_autocast() -> Iterator[set[str]]:
    """Blocks and decorators of ``torch.autocast`` have no effect in this process; yields the devices that they name.

    Accelerate and the Hugging Face Trainer put such a decorator around ``forward``.
    """
    kind: Any = torch.autocast
    enter, leave = kind.__enter__, kind.__exit__
    tried: set[str] = set()

    def noted(self: Any) -> Any:
        if self._enabled:
            tried.add(self.device)
        return self

    kind.__enter__, kind.__exit__ = noted, lambda self, *_: None
    try:
        yield tried
    finally:
        kind.__enter__, kind.__exit__ = enter, leave


@contextlib.contextmanager
def _without_reentrant_checkpoints() -> Iterator[None]:
    """Reentrant activation checkpoints call their function directly: ``torch.autograd.grad`` cannot pass them."""
    module: Any = torch.utils.checkpoint
    function = module.CheckpointFunction
    module.CheckpointFunction = _CalledDirectly
    try:
        yield
    finally:
        module.CheckpointFunction = function


class _CalledDirectly:
    @staticmethod
    def apply(function: Callable, preserve_rng_state: bool, *args: Any) -> Any:
        return function(*args)


@contextlib.contextmanager
def batch_norm_needs_samples(model: nn.Module) -> Iterator[None]:
    """Inside the block, batch norm in train mode over one value per channel raises an error that names the module."""

    def check(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple) -> None:
            x = args[0]
            if module.training and x.dim() > 1 and x.numel() == x.shape[1]:
                raise ValueError(
                    f"{name} normalises over one value per channel in train mode, so that its variance is 0: use a "
                    "larger batch, or model.eval()"
                )

        return hook

    norms = {n: m for n, m in model.named_modules() if isinstance(m, _NormBase) and "Instance" not in type(m).__name__}
    with contextlib.ExitStack() as hooks:
        for name, module in norms.items():
            hooks.callback(module.register_forward_pre_hook(check(name)).remove)
        yield


def refuse_autocast() -> None:
    devices = [device for device in ("cpu", "cuda") if torch.is_autocast_enabled(device)]
    if devices:
        raise RuntimeError(
            f"a measurement under torch.autocast({devices[0]!r}) would mix precisions: leave the autocast block; "
            "float32 is enough"
        )


def refuse_unusable_parameters(model: nn.Module, values: bool = True) -> None:
    for name, module in model.named_modules():
        if type(module).__name__ == "FullyShardedDataParallel":
            raise TypeError(
                f"{name or 'the model'} is wrapped by FullyShardedDataParallel, whose weights are flat shards: measure "
                "an unsharded copy of the model with the full state dict"
            )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise ValueError(
                f"{name!r} is lazy and has no shape yet: run a batch through the model before you measure it"
            )
        if type(tensor).__name__ == "DTensor" or hasattr(tensor, "device_mesh"):
            raise TypeError(
                f"{name!r} is a DTensor, sharded by FSDP2 or tensor parallelism: measure an unsharded copy of the "
                "model with the full state dict (torch.distributed.checkpoint.state_dict.get_model_state_dict with "
                "full_state_dict=True)"
            )
        if tensor.is_inference():
            raise ValueError(
                f"{name!r} was made under torch.inference_mode, so that it has no gradient: build the model outside"
            )
        if tensor.is_meta and values:
            raise ValueError(f"{name!r} is on the meta device and has no values: load the weights first")


def refuse_dropout(model: nn.Module) -> None:
    for name, module in model.named_modules():
        rate = module.p if isinstance(module, nn.modules.dropout._DropoutNd) else None
        if isinstance(module, (nn.MultiheadAttention, nn.RNNBase)):
            rate = module.dropout
        if module.training and isinstance(rate, (int, float)) and rate > 0:
            raise ValueError(
                f"{name or type(module).__name__} drops out at random (p={rate}, train mode), so that h is not "
                f"defined: call model.eval(), or .eval() on this module alone to keep batch norm in train mode"
            )
