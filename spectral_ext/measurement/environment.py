"""The state a measurement runs under: deterministic, full precision, twice differentiable; restored afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _NormBase

from spectral_ext.measurement.preserve import preserved


@contextlib.contextmanager
def measurement(model: nn.Module) -> Iterator[None]:
    """:func:`preserved`, and inside the block: attention by the math kernel (the fused ones have no second derivative),
    the fused transformer-encoder path off, TF32 off, float32 matmul precision "highest",
    gradients on, and batch norm in train mode leaves its running statistics alone.

    Raises:
        RuntimeError: autocast is on.
        ValueError: a dropout module is in train mode.
    """
    refuse_autocast()
    refuse_dropout(model)
    tracking = [m for m in model.modules() if isinstance(m, _NormBase) and m.training and m.track_running_stats]
    fastpath = torch.backends.mha.get_fastpath_enabled()
    with preserved(model), sdpa_kernel(SDPBackend.MATH), torch.inference_mode(False), torch.enable_grad():
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            for module in tracking:
                module.track_running_stats = False
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fastpath)
            for module in tracking:
                module.track_running_stats = True


def refuse_autocast() -> None:
    devices = [device for device in ("cpu", "cuda") if torch.is_autocast_enabled(device)]
    if devices:
        raise RuntimeError(
            f"directional curvature under torch.autocast({devices[0]!r}) would mix precisions: leave the autocast "
            "block; float32 is enough"
        )


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
