"""What spectral_newton asks of a GPU, counted on meta tensors: `python -m benchmarks.count_newton_calls --out FILE`.

Torch calls (one or a few kernels each), bytes read and written (each operand once per call), multiply-adds ×2, and the
most bytes alive beyond G and the result, for the matrices of ResNet-18, GPT-2 small and one layer of a 7B model. The
calls are those of a CUDA tensor; nothing is computed, and no device is needed.
"""

from __future__ import annotations

import argparse
import json
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.bench_spectral_newton import SETS
from spectral_ext.ops.spectral_newton import spectral_newton

GPT2 = [shape for _ in range(12) for shape in [(2304, 768), (768, 768), (3072, 768), (768, 3072)]]
LLAMA_LAYER = [*[(4096, 4096)] * 4, *[(11008, 4096)] * 2, (4096, 11008)]
MODELS = {"ResNet-18": SETS["ResNet-18"], "GPT-2 small": GPT2, "7B, one layer": LLAMA_LAYER}
ALPHAS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 4.5)
VIEWS = [
    "view",
    "_unsafe_view",
    "expand",
    "transpose",
    "t",
    "unsqueeze",
    "squeeze",
    "slice",
    "select",
    "diagonal",
    "as_strided",
    "detach",
    "alias",
    "permute",
    "unbind",
    "split",
    "split_with_sizes",
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "_reshape_alias",
    "reshape",
    "lift_fresh",
]


def size(x: Tensor) -> int:
    """Bytes that a tensor occupies: dimensions of stride 0 count once."""
    numel = 1
    for extent, stride in zip(x.shape, x.stride()):
        numel *= extent if stride else 1
    return numel * x.element_size()


def place(x: Tensor) -> tuple[int, int, int]:
    """Which memory a tensor is: X and Xᵀ are one operand."""
    return x.untyped_storage()._cdata, x.storage_offset(), size(x)


class Counted(TorchDispatchMode):
    """Counts every call below autograd; memory by the life of storages."""

    def __init__(self, given: Sequence[Tensor]) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes = self.flop = self.alive = self.peak = 0
        self.known = {x.untyped_storage()._cdata for x in given}

    def _track(self, x: Tensor) -> None:
        storage = x.untyped_storage()
        key, bytes_ = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.alive += bytes_
        self.peak = max(self.peak, self.alive)

        def gone() -> None:
            self.known.discard(key)
            self.alive -= bytes_

        weakref.finalize(storage, gone)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        inputs = [x for x in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        outputs = [x for x in torch.utils._pytree.tree_leaves(out) if isinstance(x, Tensor)]
        for x in outputs:
            self._track(x)
        if name in VIEWS:
            return out
        self.calls[name] += 1
        read, written = ({place(x): size(x) for x in own} for own in (inputs, outputs))
        self.bytes += sum(read.values()) + sum(
            n for where, n in written.items() if func._schema.is_mutable or where not in read
        )
        if name in ("bmm", "mm", "baddbmm", "baddbmm_", "addmm"):
            a, b = [x for x in inputs if x.dim() >= 2 and id(x) not in {id(y) for y in outputs}][-2:]
            self.flop += 2 * a.numel() * b.shape[-1]
        elif "cholesky" in name:
            self.flop += inputs[0].numel() * inputs[0].shape[-1] // 3
        elif "solve_triangular" in name:
            self.flop += inputs[0].shape[-1] * inputs[1].numel()
        elif name == "spectral_newton_poles_":
            _, _, G, _, _, poles = inputs
            batch, n, columns = G.shape
            self.flop += batch * n * n * (4 * columns + 2 * n * poles.shape[1])
        return out


@contextmanager
def as_cuda() -> Iterator[None]:
    """Meta tensors that take the path of CUDA tensors, the fused kernel for small sides included."""
    library = torch.library.Library("spectral_ext", "IMPL", "Meta")
    library.impl("spectral_newton_poles_", lambda *_: None)
    try:
        with mock.patch.object(Tensor, "is_cuda", property(lambda self: self.device.type == "meta")):
            yield
    finally:
        library._destroy()


def count(shapes: Sequence[tuple[int, int]], alpha: float, mode: str, tolerance: float | None = None) -> dict[str, Any]:
    """The counts of one call on the whole list."""
    G = [torch.empty(shape, device="meta") for shape in shapes]
    with as_cuda(), Counted(G) as counted:
        results = spectral_newton(G, alpha, 0.1, damping_mode=mode, tolerance=tolerance)
    return {
        "calls": sum(counted.calls.values()),
        "GB": round(counted.bytes / 1e9, 2),
        "GFLOP": round(counted.flop / 1e9, 1),
        "peak_MiB": round((counted.peak - sum(map(size, results))) / 2**20),
    }


def table() -> list[dict[str, Any]]:
    """All models, modes and α at the default tolerance of accelerators, d = 0.1."""
    return [
        {"set": name, "mode": mode, "alpha": alpha, **count(shapes, alpha, mode)}
        for name, shapes in MODELS.items()
        for mode in ("rms", "spectral", "absolute")
        for alpha in ALPHAS
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out")
    arguments = parser.parse_args()
    rows = table()
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    if arguments.out:
        with open(arguments.out, "w") as file:
            json.dump({"damping": 0.1, "tolerance": 1e-3, "rows": rows}, file, indent=1)
