"""The Gauss–Newton part of h_k, estimated from labels that are drawn from the model's own output distribution.

With δ_rb the r-th drawn gradient of sample b (:mod:`.label_distributions`), carried back to the layer's output, and
ż_bk = D_k a_b,

    ĥ_k = 1/R Σ_r Σ_b p_rbk²,   p_rbk = ⟨δ_rb, ż_bk⟩ = ⟨D_k, G_rb⟩,

G_rb the gradient of the weight that the sample's drawn labels give. E p_rbk = 0 and the samples are independent, so
that E ĥ_k = ⟨D_k, G D_k⟩, G the Gauss–Newton matrix of the mean loss. One backward pass per draw serves all layers and
all directions. p is nearly normal where a sample has many positions; then the relative standard error is √(2/(R·B)).

Where samples influence each other (train-mode batch norm), or a weight is used several times, the sum over the samples
comes before the square: p_rk = Σ_b p_rbk. That is unbiased too, with R terms instead of R·B.

Source: §5 of Martens, New insights and perspectives on the natural gradient method (2020), for the Fisher identity;
Dangel, Kunstner and Hennig, ViViT (2022), for the sampled form of the Gauss–Newton matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from spectral_ext.curvature.directions import Directions
from spectral_ext.curvature.evaluate import evaluate
from spectral_ext.curvature.label_distributions import label_distributions
from spectral_ext.curvature.projection import Projection
from spectral_ext.curvature.sites import site_of
from spectral_ext.curvature.trace import Program
from spectral_ext.layers import Layer
from spectral_ext.measurement.batches import Batch

aten = torch.ops.aten

COUPLING = {torch.float64: 1e-9, torch.float32: 1e-4}
"""How far, relative to their size, projections may differ in the test for samples that influence each other."""


@dataclass(frozen=True)
class Sampling:
    """How labels are drawn."""

    draws: int = 32
    """R, for each sample; at least 2, because the standard error is that between draws."""
    seed: int = 0
    stream: int = 0
    """Measurements of the same seed whose errors are to be independent have different streams."""

    def generator(self, device: torch.device, rank: int, piece: int) -> torch.Generator:
        """A generator of its own for each rank and piece of data; the user's generators are left alone."""
        state = np.random.SeedSequence((self.seed, self.stream, rank, piece)).generate_state(1, np.uint64)
        return torch.Generator(device).manual_seed(int(state[0]))


@dataclass
class Estimate:
    """Of one layer on one piece of data, float64, each (K,)."""

    h: Tensor
    """ĥ_k of the piece's mean loss."""
    variance: Tensor
    """An unbiased estimate of the variance of ĥ_k over the draws."""
    slope: Tensor
    """⟨∂L/∂W, D_k⟩, of the real labels."""
    terms: int
    """Independent terms per draw: the samples, or 1 where their sum comes before the square."""


class SampledGaussNewton:
    """A program at one batch, recorded for backward passes."""

    def __init__(self, program: Program, model: nn.Module, batch: Batch, layers: Mapping[str, Layer]) -> None:
        self.samples = batch.samples
        self.sites = {name: site_of(program, model, layer) for name, layer in layers.items()}
        env = evaluate(program, program.arguments(model, batch), {site.weight for site in self.sites.values()})
        self.distributions = label_distributions(program, env)
        self.arguments = [env[distribution.argument] for distribution in self.distributions]
        self.seeds = [env[site.seed_node] for site in self.sites.values()]
        self.inputs = {site.input: env[site.input].detach() for site in self.sites.values() if site.input is not None}
        self.loss: Tensor = env[program.loss]

    def estimate(
        self, directions: Mapping[str, Directions], generator: torch.Generator, draws: int
    ) -> dict[str, Estimate]:
        """ĥ_k of every layer."""
        project = {name: self._projection(name, directions[name]) for name in self.sites}
        slopes = {name: project[name](g).sum(0) for name, g in self._back([self.loss], [torch.ones_like(self.loss)])}
        sums: dict[str, tuple[Tensor, Tensor]] = {}
        together: set[str] = set()
        streams = zip(*(one.draws(generator, draws) for one in self.distributions), strict=True)
        for index, cotangents in enumerate(streams):
            found = {name: project[name](g) for name, g in self._back(self.arguments, list(cotangents))}
            if index == 0:
                together = self._coupled(found, list(cotangents), project, generator)
            for name, p in found.items():
                squares = (p.sum(0, keepdim=True) if name in together else p).square()
                first, second = sums.get(name, (0.0, 0.0))
                sums[name] = first + squares, second + squares.square()
        estimates = {}
        for name, (first, second) in sums.items():
            mean = first / draws
            variance = (second / draws - mean.square()).clamp_min(0) / (draws - 1)
            estimates[name] = Estimate(mean.sum(0), variance.sum(0), slopes[name], len(mean))
        return estimates

    def _projection(self, name: str, directions: Directions):  # type: ignore[no-untyped-def]
        """The error at the layer's seed → p (B, K), or (1, K) where its rows do not belong to samples."""
        site = self.sites[name]
        if site.input is None:
            return lambda gradient: directions.along(gradient).unsqueeze(0)
        rows = site.seed_node.meta["val"].shape[0]
        if site.seed_node.target is not aten.convolution.default and rows % self.samples == 0:
            return Projection(site, self.inputs, directions, self.samples)
        whole = Projection(site, self.inputs, directions, rows)
        if rows % self.samples:
            return lambda gradient: whole(gradient).sum(0, keepdim=True)
        return lambda gradient: whole(gradient).unflatten(0, (self.samples, -1)).sum(1)

    def _back(self, outputs: list[Tensor], cotangents: list[Tensor]) -> list[tuple[str, Tensor]]:
        found = torch.autograd.grad(outputs, self.seeds, cotangents, retain_graph=True, allow_unused=True)
        return [
            (name, torch.zeros_like(seed) if g is None else g)
            for name, g, seed in zip(self.sites, found, self.seeds, strict=True)
        ]

    def _coupled(
        self, projections: Mapping[str, Tensor], cotangents: list[Tensor], project: Mapping, generator: torch.Generator
    ) -> set[str]:
        """The layers whose samples must be added up before the square.

        Each sample's cotangent is scaled by a random factor: where the rows of a layer belong to the samples, and the
        samples do not influence each other, its projections scale by the same factor.
        """
        if self.samples == 1:
            return set()
        if any(c.dim() == 0 or c.shape[0] % self.samples for c in cotangents):
            return set(projections)
        size = torch.rand(self.samples, 2, generator=generator, dtype=torch.float64, device=generator.device)
        factors = (size[:, 0] + 0.5) * (size[:, 1] - 0.5).sign()
        scaled = [
            (c.unflatten(0, (self.samples, -1)) * factors.to(c).reshape(-1, *(1,) * c.dim())).flatten(0, 1)
            for c in cotangents
        ]
        coupled = set()
        for name, g in self._back(self.arguments, scaled):
            p = projections[name]
            tolerance = COUPLING[torch.float64 if g.dtype == torch.float64 else torch.float32]
            apart = len(p) == self.samples
            if apart:
                difference = project[name](g) - factors.unsqueeze(1) * p
                apart = bool(difference.abs().max() <= tolerance * p.abs().max())
            if not apart:
                coupled.add(name)
        return coupled
