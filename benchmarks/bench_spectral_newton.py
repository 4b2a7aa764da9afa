"""spectral_newton beside Muon's Newton–Schulz and other ways to T(G): time as ratios, error against the float64 SVD.

`python -m benchmarks spectral_newton` takes the ResNet-18 set and one square matrix; `--full` every shape and network.
Muon's function computes in bfloat16, which is fast where the processor has bfloat16 products and very slow where it has
not; the same five steps in float32 stand beside it. Errors are the largest of the set, ‖T̂ − T‖_F/‖T‖_F; a polar factor
(Newton–Schulz) is another map, and is compared in time only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor
from torch.optim._muon import _zeropower_via_newtonschulz

from benchmarks.harness import Row, interleaved
from spectral_ext import reference
from spectral_ext.ops.spectral_newton import spectral_newton

PEER = "Muon Newton–Schulz, bfloat16"
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
FLOAT16_SIDE = 128
"""gram-newton-schulz rounds to float16, whose products a CPU emulates: 22 s for 1024 × 1024 here."""
OPTIMIZER_TOLERANCE = 1e-3
ALPHAS = (0.5, 0.84, 1.0, 1.3, 1.5, 2.0, 3.0, 4.0, 4.5)

_RESNET18 = [(64, 147), *[(64, 576)] * 4, (128, 576), *[(128, 1152)] * 3, (128, 64), (256, 1152), *[(256, 2304)] * 3]
_RESNET18 += [(256, 128), (512, 2304), *[(512, 4608)] * 3, (512, 256)]


def _resnet50() -> list[tuple[int, int]]:
    shapes, inputs = [(64, 147)], 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        shapes.append((4 * width, inputs))
        for _ in range(blocks):
            shapes += [(width, inputs), (width, 9 * width), (4 * width, width)]
            inputs = 4 * width
    return shapes


SETS: dict[str, list[tuple[int, int]]] = {
    "ResNet-18": _RESNET18,
    "ResNet-50": _resnet50(),
    "GPT-2 small": [shape for _ in range(12) for shape in [*[(768, 768)] * 4, (3072, 768), (768, 3072)]],
}


def gradients(shapes: Sequence[tuple[int, int]], spectrum: str = "gauss") -> list[Tensor]:
    """Matrices with σ_max of about 1: Gaussian entries, or singular values 1/k, the decay of real gradients."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for m, n in shapes:
        G = torch.randn(m, n, generator=generator) / (m**0.5 + n**0.5)
        if spectrum == "1/k":
            U, sigma, Vh = torch.linalg.svd(G, full_matrices=False)
            G = (U / torch.arange(1.0, len(sigma) + 1)) @ Vh
        found.append(G)
    return found


def newton_schulz_float32(G: Tensor) -> Tensor:
    """Muon's five steps, in float32."""
    a, b, c = COEFFICIENTS
    X = (G.mT if G.shape[0] > G.shape[1] else G) / G.norm()
    for _ in range(5):
        A = X @ X.mT
        X = torch.addmm(X, torch.addmm(A, A, A, beta=b, alpha=c), X, beta=a)
    return X.mT if G.shape[0] > G.shape[1] else X


def naive_svd(G: Tensor, alpha: float, d: float) -> Tensor:
    U, sigma, Vh = torch.linalg.svd(G, full_matrices=False)
    return (U * (sigma / (sigma**alpha + d))) @ Vh


def naive_cholesky(G: Tensor, d: float) -> Tensor:
    wide = G if G.shape[0] <= G.shape[1] else G.mT
    R = wide @ wide.mT
    T = torch.cholesky_solve(wide, torch.linalg.cholesky(R + d * torch.eye(len(R))))
    return T if wide is G else T.mT


def polar_then_recover(G: Tensor, d: float) -> Tensor:
    """§7.3's recipe at α = 2: the polar factor by Newton–Schulz, G = P U, then (P² + d)⁻¹ P U."""
    wide = G if G.shape[0] <= G.shape[1] else G.mT
    polar = newton_schulz_float32(wide)
    P = wide @ polar.mT
    P = (P + P.mT) / 2
    T = torch.cholesky_solve(P @ polar, torch.linalg.cholesky(P @ P + d * torch.eye(len(P))))
    return T if wide is G else T.mT


def methods(
    G: list[Tensor],
    d: float,
    mode: str,
    alphas: Sequence[float],
    peers: bool,
    compiled: bool,
    tolerance: float | None,
) -> dict[str, Callable[[], list[Tensor]]]:
    """Everything that is timed on one set, by name; each returns one result a matrix."""
    found: dict[str, Callable[[], list[Tensor]]] = {
        PEER: lambda: [_zeropower_via_newtonschulz(g, COEFFICIENTS, 5, 1e-7) for g in G],
        "Newton–Schulz, float32": lambda: [newton_schulz_float32(g) for g in G],
    }
    if peers:
        if compiled:
            quick = torch.compile(_zeropower_via_newtonschulz, dynamic=False)
            found["Muon Newton–Schulz, bfloat16, compiled"] = lambda: [quick(g, COEFFICIENTS, 5, 1e-7) for g in G]
        if find_spec("gram_newton_schulz") and max(min(g.shape) for g in G) <= FLOAT16_SIDE:
            from gram_newton_schulz import GramNewtonSchulz

            gram = GramNewtonSchulz(ns_use_kernels=False, compile_kwargs=None)
            found["gram-newton-schulz, float16"] = lambda: [gram(g) for g in G]
        if find_spec("emerging_optimizers"):
            from emerging_optimizers.orthogonalized_optimizers.muon_utils import newton_schulz

            found["emerging-optimizers newton_schulz"] = lambda: [newton_schulz(g, steps=5) for g in G]
        found["polar then recover, α=2"] = lambda: [polar_then_recover(g, d) for g in G]
        found["torch Cholesky, α=2"] = lambda: [naive_cholesky(g, d) for g in G]
        found["torch SVD, α=2"] = lambda: [naive_svd(g, 2.0, d) for g in G]
    for alpha in alphas:
        found[f"spectral_newton α={alpha:g}"] = lambda alpha=alpha: spectral_newton(
            G, alpha, d, damping_mode=mode, tolerance=tolerance
        )
    return found


def error(name: str, results: list[Tensor], G: list[Tensor], d: float, mode: str) -> float | None:
    """The largest relative error over distinct shapes, where the method claims to be T(G)."""
    if "α=" not in name:
        return None
    alpha = float(name.split("α=")[1])
    distinct = {tuple(g.shape): i for i, g in enumerate(G)}
    worst = 0.0
    for i in distinct.values():
        exact = reference.spectral_newton(G[i].double(), alpha, d, damping_mode=mode)
        worst = max(worst, float((results[i] - exact).norm() / exact.norm()))
    return worst


def measure(
    case: str,
    G: list[Tensor],
    d: float,
    mode: str,
    alphas: Sequence[float],
    *,
    peers: bool,
    rounds: int,
    threads: int = 1,
    compiled: bool = False,
    tolerance: float | None = None,
) -> list[Row]:
    """One case: every method in interleaved rounds, with its error."""
    timed = methods(G, d, mode, alphas, peers and mode == "absolute", compiled, tolerance)
    asked = "" if tolerance is None else f", tolerance {tolerance:g}"
    times = interleaved(timed, PEER, rounds=rounds, threads=threads)
    return [
        Row(
            f"{case}, d={d:g} {mode}{asked}, {threads} thread{'s' * (threads > 1)}",
            name,
            1e3 * timing.seconds,
            timing.ratio,
            error(name, timed[name](), G, d, mode),
            extra={"quartiles": timing.spread, "share_of_peer": 1 / timing.ratio},
        )
        for name, timing in times.items()
    ]


def bench(quick: bool = True) -> list[Row]:
    """Rows of the quick or the full grid."""
    set18 = gradients(SETS["ResNet-18"])
    if quick:
        asked = dict(peers=False, rounds=3, tolerance=OPTIMIZER_TOLERANCE)
        rows = measure("ResNet-18", set18, 0.1, "rms", (0.5, 1.0, 2.0, 3.0), **asked)
        rows += measure(
            "ResNet-18, σ_k = 1/k", gradients(SETS["ResNet-18"], "1/k"), 0.1, "rms", (1.0, 2.0, 3.0), **asked
        )
        return rows + measure("1024×1024", gradients([(1024, 1024)]), 0.1, "absolute", (2.0,), peers=True, rounds=3)
    return [row for name in PARTS for row in part(name)]


PARTS = ("ResNet-18", "default tolerance", "1/k", "square", "peers", "sets")


def part(name: str) -> list[Row]:
    """One part of the full grid, which takes some minutes at most."""
    set18, decay = SETS["ResNet-18"], gradients(SETS["ResNet-18"], "1/k")
    asked = dict(peers=False, rounds=5, tolerance=OPTIMIZER_TOLERANCE)
    if name == "ResNet-18":
        return measure("ResNet-18", gradients(set18), 0.1, "rms", ALPHAS, **asked)
    if name == "1/k":
        return measure("ResNet-18, σ_k = 1/k", decay, 0.1, "rms", ALPHAS, **asked)
    if name == "default tolerance":
        rows = measure("ResNet-18", gradients(set18), 0.1, "rms", (1.0, 2.0, 3.0), peers=False, rounds=3)
        rows += measure("ResNet-18", gradients(set18), 0.01, "spectral", (1.0, 2.0, 3.0), peers=False, rounds=3)
        return rows + measure("ResNet-18", gradients(set18), 0.1, "rms", (2.0,), peers=False, rounds=3, threads=2)
    if name == "square":
        G = gradients([(1024, 1024)])
        return measure("1024×1024", G, 0.1, "absolute", (1.0, 2.0, 3.0), peers=True, rounds=3, compiled=True)
    if name == "peers":
        shapes = [(64, 576), (256, 2304), (768, 3072)]
        cases = [(f"{m}×{n}", gradients([(m, n)])) for m, n in shapes]
        return [row for case, G in cases for row in measure(case, G, 0.1, "absolute", (2.0,), peers=True, rounds=3)]
    rows = []
    for model in ("ResNet-50", "GPT-2 small"):
        rows += measure(model, gradients(SETS[model]), 0.1, "rms", (1.0, 2.0, 3.0), peers=False, rounds=1)
    return rows


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_resnet18_set(benchmark, alpha):
    G = gradients(SETS["ResNet-18"])
    benchmark(lambda: spectral_newton(G, alpha, 0.1, damping_mode="spectral"))
