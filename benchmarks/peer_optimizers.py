"""Other people's optimizers, used as they are: torch's own Muon over convolutions flattened to matrices."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def _matrix(t: Tensor) -> Tensor:
    """(out, in·kernel) as a view; channels_last permutes columns, with which Muon commutes."""
    if t.dim() == 4 and not t.is_contiguous() and t.is_contiguous(memory_format=torch.channels_last):
        t = t.permute(0, 2, 3, 1)
    return t.view(t.shape[0], -1)


class FlattenedMuon(torch.optim.Muon):
    """``torch.optim.Muon`` over 2-D views of the weights: the weights are updated in place through the views."""

    def __init__(self, weights: Iterable[nn.Parameter], **settings) -> None:
        self.weights = list(weights)
        self.views = [nn.Parameter(_matrix(weight.detach())) for weight in self.weights]
        super().__init__(self.views, **settings)

    def step(self, closure=None):
        for weight, view in zip(self.weights, self.views):
            view.grad = None if weight.grad is None else _matrix(weight.grad)
        return super().step(closure)


def sort_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(convolution weights, the rest): Muon's usual split for a vision network, head and norms left to AdamW."""
    matrices = [m.weight for m in model.modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and m.groups == 1]
    chosen = {id(weight) for weight in matrices}
    return matrices, [p for p in model.parameters() if id(p) not in chosen]
