"""The rows of the optimizer question: every optimizer, its start, and the two settings that are searched for it.

Each row has a learning rate and a momentum, nothing else is searched, and its damping, β₂ and the like stay as they
come. What Muon, NorMuon, Spectral Newton and the controls leave out (norms, biases, embeddings, heads) goes to AdamW at
the one rate ``REST``, with the same split for all of them: Spectral Newton's own. Weight decay is 0.01 and decoupled,
except for SGD, whose own is coupled. SOAP, Shampoo and NorMuon are those of the package ``pytorch-optimizer`` (extra
``sweep``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peer_optimizers import FlattenedMuon
from spectral_ext import SpectralMap, SpectralNewton

REST = 3e-3
DECAY = 0.01
MOMENTA = (0.9, 0.95, 0.98)
Optimizers = list[torch.optim.Optimizer]


def matrices_and_rest(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Spectral Newton's own split: matrices, and what AdamW takes."""
    groups = SpectralNewton(model).param_groups
    parts = [[p for group in groups if group["use_adamw"] is rest for p in group["params"]] for rest in (False, True)]
    return parts[0], parts[1]


def with_rest(model: nn.Module, build: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> Optimizers:
    """An optimizer of the matrices, and AdamW for the rest."""
    matrices, rest = matrices_and_rest(model)
    return [build(matrices), torch.optim.AdamW(rest, REST, weight_decay=DECAY)]


def adamw(model: nn.Module, lr: float, momentum: float) -> Optimizers:
    return [torch.optim.AdamW(model.parameters(), lr, betas=(momentum, 0.999), weight_decay=DECAY)]


def sgd(model: nn.Module, lr: float, momentum: float) -> Optimizers:
    return [torch.optim.SGD(model.parameters(), lr, momentum=momentum, nesterov=True, weight_decay=5e-4)]


def muon(model: nn.Module, lr: float, momentum: float) -> Optimizers:
    settings = {"lr": lr, "momentum": momentum, "weight_decay": DECAY, "adjust_lr_fn": "match_rms_adamw"}
    return with_rest(model, lambda matrices: FlattenedMuon(matrices, **settings))


def normuon(model: nn.Module, lr: float, momentum: float) -> Optimizers:
    from pytorch_optimizer import NorMuon

    settings = {"lr": lr, "momentum": momentum, "weight_decay": DECAY, "update_scale": "match_rms", "use_muon": True}
    return with_rest(model, lambda matrices: NorMuon([{"params": matrices, **settings}]))


def soap(model: nn.Module, lr: float, momentum: float) -> Optimizers:
    from pytorch_optimizer import SOAP

    return [SOAP(model.parameters(), lr, betas=(momentum, 0.95), weight_decay=DECAY)]


def shampoo(model: nn.Module, lr: float, momentum: float) -> Optimizers:
    from pytorch_optimizer import ScalableShampoo

    settings = {"preconditioning_compute_steps": 20, "weight_decay": DECAY, "decoupled_weight_decay": True}
    return [ScalableShampoo(model.parameters(), lr, betas=(momentum, 0.999), **settings)]


def spectral_newton(**settings: Any) -> Callable[[nn.Module, float, float], Optimizers]:
    """Spectral Newton as it comes but for these settings, and AdamW's rate ``REST``."""
    fixed = {"adamw_lr": REST, "weight_decay": DECAY} | settings
    return lambda model, lr, momentum: [SpectralNewton(model, lr, momentum=momentum, **fixed)]


class RandomSpectrum(torch.optim.Optimizer):
    """The control: U diag(r) Vᵀ of the momentum with r uniform in (0, 1), drawn anew in each step.

    The scale is that of Spectral Newton and Muon by shape: the largest r becomes 0.2·√max(m, n).
    """

    def __init__(self, params: Any, lr: float, momentum: float, weight_decay: float, seed: int) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            mu = group["momentum"]
            for p in (p for p in group["params"] if p.grad is not None):
                state = self.state[p]
                buffer = state.setdefault("momentum_buffer", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - mu)
                matrix = p.grad.lerp(buffer, mu).flatten(1)
                update = random_spectrum(matrix, self.generator).reshape(p.shape)
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=group["lr"])


def random_spectrum(D: Tensor, generator: torch.Generator) -> Tensor:
    """U diag(r) Vᵀ of D = U diag(σ) Vᵀ (m, n), max r = 0.2·√max(m, n), from eigenvectors of the smaller Gram matrix.

    Directions with σ below 1e-7 of the largest, whose vectors are rounding, get zero.
    """
    wide = D.double() if D.shape[0] <= D.shape[1] else D.double().mT
    values, U = torch.linalg.eigh(wide @ wide.mT)
    sigma = values.clamp(min=0).sqrt()
    r = torch.rand(len(sigma), generator=generator, dtype=torch.float64)
    size = 0.2 * max(D.shape) ** 0.5 / r.max().item()
    kept = sigma > 1e-7 * sigma[-1]
    scale = torch.where(kept, r.to(D.device) / torch.where(kept, sigma, 1.0), 0.0)
    result = size * (U * scale) @ (U.mT @ wide)
    return (result if D.shape[0] <= D.shape[1] else result.mT).to(D.dtype)


def random_rows(model: nn.Module, lr: float, momentum: float) -> Optimizers:
    return with_rest(model, lambda matrices: RandomSpectrum(matrices, lr, momentum, DECAY, seed=7))


def mapped(name: str, **parameters: float) -> Callable[[nn.Module, float, float], Optimizers]:
    """Spectral Newton with another map of the singular values, in units of ‖D‖_F."""
    return spectral_newton(transfer=SpectralMap.named(name, "frobenius", **parameters))


@dataclass(frozen=True)
class Row:
    """One optimizer: how it is built, what it is, where its search begins, and what it needs from a measurement."""

    build: Callable[..., Optimizers]
    recipe: str
    """The settings that are not searched; part of what the journal compares."""
    lr: float
    momentum: float = 0.95
    exponents: str = ""
    """``measured`` or ``permuted``: the row takes an exponent per layer; ``tracked``: they are measured again while
    the network trains.
    """
    package: str = ""
    """What must be installed."""


_REST = f"; AdamW at {REST:g} for the rest; weight decay {DECAY:g}"
_NEWTON = "SpectralNewton: damping 0.1 rms, update scale match_rms_adamw, Nesterov, tolerance 1e-3"
_KEPT = {"package": "pytorch_optimizer"}

ROWS: Mapping[str, Row] = {
    "AdamW": Row(adamw, f"torch.optim.AdamW: β₂ 0.999, weight decay {DECAY:g}; momentum is β₁", 2**-8, 0.9),
    "SGD": Row(sgd, "torch.optim.SGD: Nesterov, weight decay 5e-4 (coupled)", 2**-4, 0.9),
    "Muon": Row(muon, f"torch.optim.Muon: adjust_lr_fn match_rms_adamw{_REST}", 2**-6),
    "NorMuon": Row(normuon, f"pytorch_optimizer.NorMuon: update_scale match_rms{_REST}", 2**-6, **_KEPT),
    "SOAP": Row(soap, f"pytorch_optimizer.SOAP: β₂ 0.95, every 10 steps, weight decay {DECAY:g}", 2**-8, **_KEPT),
    "Shampoo": Row(shampoo, "pytorch_optimizer.ScalableShampoo: SGD grafting, β₂ 0.999, preconditioner from step 25 on,"
                   f" every 20 steps, weight decay {DECAY:g}; momentum is β₁", 2**-4, 0.9, **_KEPT),
    "Spectral Newton, α = 2": Row(spectral_newton(), f"{_NEWTON}{_REST}", 2**-5),
    "Spectral Newton, α = 1": Row(spectral_newton(alpha=1.0), f"{_NEWTON}, α 1{_REST}", 2**-5),
    "Spectral Newton, α measured": Row(spectral_newton, f"{_NEWTON}, α per layer{_REST}", 2**-5, exponents="measured"),
    "Spectral Newton, α permuted": Row(spectral_newton, f"{_NEWTON}, the measured α, each at another layer{_REST}",
                                       2**-5, exponents="permuted"),
    "Spectral Newton, α tracked": Row(spectral_newton(), f"{_NEWTON}, α per layer, measured at 1/4, 1/2 and 3/4 of the "
                                      f"run; 2 until then{_REST}", 2**-5, exponents="tracked"),
    "flat spectrum (exact UVᵀ)": Row(mapped("polar"), f"SpectralNewton with σ/√(σ² + (1e-3 ‖D‖_F)²){_REST}", 2**-6),
    "random spectrum": Row(random_rows, f"U diag(r) Vᵀ, r uniform in (0, 1), new in each step{_REST}", 2**-6),
    "σ^½": Row(mapped("power", exponent=0.5), f"SpectralNewton with σ^½{_REST}", 2**-5),
    "paper's form (absolute d = 0.1)": Row(spectral_newton(damping_mode="absolute", update_scale=None),
                                           f"SpectralNewton: damping 0.1 absolute, no update scale{_REST}", 2**-3),
}  # fmt: skip
"""The start of each search: the published default or, for peers, what an earlier experiment on a small ResNet found."""
