"""h_k of every layer along K = 20 directions: ours against double backward, curvlinops and hessian-eigenthings.

The peer is what users of Hessian-vector products do: for every direction, build the graph of the gradient and go back
through it. It takes minutes for a whole model, so it and hessian-eigenthings run for one direction a layer and are
scaled by K, curvlinops for a block of five: their cost does not depend on the direction. All calls get the directions;
ours includes its trace, its gradient pass and, as ``auto`` alone, its self-check.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import curvature_models as models
from benchmarks.harness import Row, interleaved, peak_extra_mebibytes
from spectral_ext.curvature import directional_curvature
from spectral_ext.layers import find_layers

PEER = "double backward per direction"


@dataclass
class Case:
    name: str
    model: nn.Module
    batch: tuple[Tensor, Tensor]
    K: int = 20
    directions: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        layers, _ = find_layers(self.model)
        generator = torch.Generator().manual_seed(1)
        for name, layer in layers.items():
            m, n = layer.matrix_shape
            k = min(self.K, m, n)
            orthonormal = [torch.linalg.qr(torch.randn(size, k, generator=generator))[0] for size in (m, n)]
            self.directions[name] = tuple(q.to(layer.weight) for q in orthonormal)

    @property
    def mean_directions(self) -> float:
        """K, or less where a layer is too small for it."""
        return sum(U.shape[1] for U, _ in self.directions.values()) / len(self.directions)

    def weight(self, name: str) -> Tensor:
        return self.model.get_submodule(name).weight

    def matrices(self, name: str) -> Tensor:
        U, V = self.directions[name]
        return torch.einsum("mk,nk->kmn", U, V).reshape(-1, *self.weight(name).shape)

    def ours(self, method: str, names: list[str] | None = None) -> Callable[[], dict[str, Tensor]]:
        chosen = {name: self.directions[name] for name in names or self.directions}

        def run() -> dict[str, Tensor]:
            found = directional_curvature(
                self.model, models.cross_entropy, [self.batch], directions=chosen, method=method,
                self_check=method == "auto",
            )  # fmt: skip
            return {name: result.h for name, result in found.items()}

        return run

    def double_backward(self, names: list[str], per_layer: int | None) -> dict[str, Tensor]:
        x, y = self.batch
        found = {}
        for name in names:
            weight, forms = self.weight(name), []
            for direction in self.matrices(name)[:per_layer]:
                loss = models.cross_entropy(self.model(x), y)
                (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
                (product,) = torch.autograd.grad(gradient, weight, direction)
                forms.append((product * direction).sum())
            found[name] = torch.stack(forms).detach()
        return found

    def curvlinops(self, columns: int) -> dict[str, Tensor]:
        from curvlinops import HessianLinearOperator

        x, y = self.batch
        model = nn.Sequential(self.model, nn.Flatten(0, -2))
        found = {}
        for name in self.directions:
            D = self.matrices(name)[:columns].movedim(0, -1).contiguous()
            case = model, nn.CrossEntropyLoss(), [self.weight(name)], [(x, y.flatten())]
            (product,) = HessianLinearOperator(*case, check_deterministic=False) @ [D]
            found[name] = (D * product).flatten(0, -2).sum(0)
        return found

    def eigenthings(self, per_layer: int) -> dict[str, Tensor]:
        from hessian_eigenthings.operators.hessian import HessianOperator

        found = {}
        for name in self.directions:
            operator = HessianOperator(
                self.model,
                [self.batch],
                lambda model, batch: models.cross_entropy(model(batch[0]), batch[1]),
                param_filter=lambda parameter, _, wanted=f"{name}.weight": parameter == wanted,
            )
            D = self.matrices(name)[:per_layer].flatten(1)
            found[name] = torch.stack([operator.matvec(d) @ d for d in D])
        return found


def cases(quick: bool) -> list[Case]:
    torch.manual_seed(0)
    made = [
        Case("MLP ReLU 784-256×3-10, B=256", models.mlp(nn.ReLU()), models.vectors(256)),
        Case("MLP GELU 784-256×3-10, B=256", models.mlp(nn.GELU()), models.vectors(256)),
        Case("GPT 4 layers, d=128, T=64, B=8", models.GPT(), models.tokens(8)),
        Case("ResNet-18 width 16, B=64, eval", models.resnet18(16).eval(), models.images(64)),
    ]
    if not quick:
        made.append(Case("ResNet-18 width 16, B=64, train", models.resnet18(16).train(), models.images(64)))
    return made


def compare(case: Case, rounds: int, memory: bool) -> list[Row]:
    """All layers, K directions: ours in full, the peers for some directions, scaled."""
    names, K = list(case.directions), case.mean_directions
    methods: dict[str, Callable[[], Any]] = {PEER: lambda: case.double_backward(names, 1)}
    scale, peaks = {PEER: K}, {}
    with contextlib.suppress(ImportError):
        import curvlinops  # noqa: F401

        if "train" not in case.name:  # its vmap refuses batch norm's running statistics
            methods["curvlinops, batched matvec"] = lambda: case.curvlinops(5)
            scale["curvlinops, batched matvec"] = K / 5
            peaks["curvlinops, batched matvec"] = lambda: case.curvlinops(case.K)
    with contextlib.suppress(ImportError):
        import hessian_eigenthings  # noqa: F401

        methods["hessian-eigenthings"] = lambda: case.eigenthings(1)
        scale["hessian-eigenthings"] = K
    ours = ["tangent_adjoint", "auto"]
    if "ReLU" in case.name or "eval" in case.name:
        ours.append("sqrt_gn")
    for method in ours:
        methods[method] = peaks[method] = case.ours(method)
    rows = scaled(case, interleaved(methods, PEER, rounds=rounds, minimum_seconds=0), scale)
    if memory:
        for row in rows:
            if row.method in peaks:
                row.peak_mebibytes = peak_extra_mebibytes(peaks[row.method])
    return rows


def scaled(case: Case, timings: dict, scale: dict[str, float]) -> list[Row]:
    rows = []
    for name, timing in timings.items():
        factor = scale[PEER] / scale.get(name, 1)
        extra: dict[str, Any] = {
            "fraction of double backward": 1 / (timing.ratio * factor),
            "quartiles of the ratio": [q * factor for q in timing.spread],
        }
        if name in scale:
            extra["measured for some directions of each layer, scaled by"] = scale[name]
        rows.append(Row(case.name, name, 1e3 * timing.seconds * scale.get(name, 1), timing.ratio * factor, extra=extra))
    return rows


def curves(rounds: int) -> list[Row]:
    """Cost against K, batch, depth and width: tangent_adjoint as a fraction of double backward per direction."""
    grid = [("K", K, models.resnet18(8), models.images(32), K) for K in (1, 5, 20, 64)]
    grid += [("batch", B, models.resnet18(8), models.images(B), 20) for B in (8, 32, 128)]
    grid += [("width", w, models.resnet18(w), models.images(16), 20) for w in (8, 16, 32)]
    grid += [("depth", n, models.GPT(layers=n, d=64), models.tokens(4), 20) for n in (2, 4, 8)]
    rows = []
    for axis, value, model, batch, K in grid:
        case = Case(f"curve: {axis} = {value}", model.eval(), batch, K)
        methods = {PEER: lambda c=case: c.double_backward(list(c.directions), 1)}
        methods["tangent_adjoint"] = case.ours("tangent_adjoint")
        if isinstance(model, nn.Sequential):
            methods["sqrt_gn"] = case.ours("sqrt_gn")
        rows += scaled(case, interleaved(methods, PEER, rounds=rounds, minimum_seconds=0), {PEER: case.mean_directions})
    return rows


def accuracy(case: Case, samples: tuple[Tensor, Tensor]) -> list[Row]:
    """float64 against double backward; float32 against float64 at the last k; the change of α."""
    rows = []
    double = Case(case.name, case.model.double(), tuple(t.double() if t.is_floating_point() else t for t in samples))
    reference = directional_curvature(double.model, models.cross_entropy, [double.batch], top_k=20, self_check=False)
    double.directions = {name: (r.U, r.V) for name, r in reference.items()}
    with sdpa_kernel(SDPBackend.MATH):
        few = {name: (U[:, [0, -1]], V[:, [0, -1]]) for name, (U, V) in double.directions.items()}
        double.directions = few
        truth = double.double_backward(list(few), None)
    worst = max(float((reference[n].h[[0, -1]] - truth[n]).abs().max() / truth[n].abs().max()) for n in few)
    rows.append(Row(f"{case.name}: accuracy", "float64, k = 1 and K, against double backward", 0, 1, worst))
    directions = {name: (r.U, r.V) for name, r in reference.items()}
    single = directional_curvature(double.model.float(), models.cross_entropy, [samples], directions=directions)
    last, change = {}, {}
    for name, result in reference.items():
        resolved = result.sigma > 1e-6 * result.sigma[0]
        h64, h32 = result.h[resolved], single[name].h[resolved].double()
        last[name] = float((h32[-1] / h64[-1] - 1).abs())
        usable = (h64 > 0) & (h32 > 0)
        if usable.sum() >= 3:
            x = result.sigma[resolved][usable].log()
            x = x - x.mean()
            change[name] = float(((x @ h32[usable].log()) - (x @ h64[usable].log())).abs() / (x @ x))
    for what, errors in (("float32 against float64 at the last k", last), ("|Δα| of float32 against float64", change)):
        rows.append(Row(f"{case.name}: accuracy", what, 0, 1, max(errors.values()), extra=errors))
    return rows


def bench(quick: bool) -> list[Row]:
    rows = []
    with sdpa_kernel(SDPBackend.MATH):  # the peers have no double backward through fused attention
        for case in cases(quick):
            rows += compare(case, rounds=1 if quick else 3, memory=not quick)
        if not quick:
            rows += curves(rounds=1)
            net = models.trained(models.resnet18(16), models.images, 60, 64)
            rows += accuracy(Case("ResNet-18 width 16, trained 60 steps", net, models.images(8)), models.images(64, 5))
            gpt = models.trained(models.GPT(), models.tokens, 60, 16)
            rows += accuracy(Case("GPT 4 layers, trained 60 steps", gpt, models.tokens(8)), models.tokens(8, 5))
    return rows
