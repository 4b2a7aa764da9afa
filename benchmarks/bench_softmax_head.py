"""The Gauss–Newton part of cross-entropy through a vocabulary head: tiles over the classes against logit tangents.

The peer is the same curvature by the rules of the single operations, product and log-softmax, which write the tangents
of all logits, (directions, positions, V), several times. Both start from tangents of the head's input; what is prepared
once per batch (probabilities, adjoints) is not timed. The error is that of float32 against float64.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import Row, interleaved, peak_extra_mebibytes
from spectral_ext.curvature import tangent_adjoint
from spectral_ext.curvature.directions import Directions
from spectral_ext.curvature.tangent_adjoint import TangentAdjoint
from spectral_ext.curvature.trace import trace
from spectral_ext.layers import find_layers
from spectral_ext.measurement.batches import as_batches

PEER = "rules of the single operations"
OURS = "tiles over the classes"


class Head(nn.Module):
    """A hidden layer whose directions are pushed, and a head."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(features, features, bias=False)
        self.head = nn.Linear(features, classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x))


def engine(model: nn.Module, batch: tuple[Tensor, Tensor], layer: str, *, tiled: bool) -> TangentAdjoint:
    find = tangent_adjoint.find_heads
    if not tiled:
        tangent_adjoint.find_heads = lambda *_: []  # type: ignore[assignment]
    try:
        layers, _ = find_layers(model, layer)
        (one,) = as_batches([batch], model)
        return TangentAdjoint(trace(model, F.cross_entropy, one), model, one, layers)
    finally:
        tangent_adjoint.find_heads = find


def directions(model: Head, layer: str, count: int) -> Directions:
    weight = model.get_submodule(layer).weight
    generator = torch.Generator().manual_seed(1)
    U, V = (torch.linalg.qr(torch.randn(size, count, generator=generator))[0] for size in weight.shape)
    return Directions(weight.shape, U.to(weight), V.to(weight))


def bench(quick: bool = True) -> list[Row]:
    torch.manual_seed(0)
    rows = []
    for positions, features, classes, layer, count in (
        (512, 576, 49_152, "hidden", 2),
        (512, 576, 49_152, "hidden", 8),
        (512, 576, 49_152, "head", 8),
    )[: 2 if quick else 3]:
        model = Head(features, classes)
        with torch.no_grad():
            model.head.weight.mul_(3)
        batch = torch.randn(positions, features), torch.randint(classes, (positions,))
        engines = {PEER: engine(model, batch, layer, tiled=False), OURS: engine(model, batch, layer, tiled=True)}
        along = directions(model, layer, count)
        methods: dict[str, Callable[[], Tensor]] = {
            name: lambda one=one, along=along, layer=layer: _h(one, layer, along) for name, one in engines.items()
        }
        truth = _truth(model, batch, layer, along)
        case = f"T={positions}, d={features}, V={classes}, K={count}, directions in {layer}"
        for name, timing in interleaved(methods, PEER, rounds=3 if quick else 7).items():
            error = float(((methods[name]() - truth) / truth).abs().max())
            peak = peak_extra_mebibytes(methods[name])
            rows.append(Row(case, name, 1e3 * timing.seconds, timing.ratio, error, peak))
    return rows


def _h(one: TangentAdjoint, layer: str, along: Directions) -> Tensor:
    return one.curvature(layer, along).parts["gauss_newton"]


def _truth(model: Head, batch: tuple[Tensor, Tensor], layer: str, along: Directions) -> Tensor:
    """Σ_t Var_{p_t}(ż_t)/T in float64, one direction at a time."""
    with torch.no_grad():
        x = batch[0].double()
        W, H = model.hidden.weight.double(), model.head.weight.double()
        p = (x @ W.T @ H.T).softmax(1)
        found = []
        for k in range(len(along)):
            D = along[[k]].weight_tangents()[0].double()
            z = x @ D.T @ H.T if layer == "hidden" else x @ W.T @ D.T
            found.append(((z - (z * p).sum(1, keepdim=True)).square() * p).sum() / len(x))
        return torch.stack(found)
