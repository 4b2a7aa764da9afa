"""The Gauss–Newton part of h_k, estimated from labels that are drawn from the model's own output distribution.

With δ_rb the r-th drawn gradient of sample b (:mod:`.label_distributions`), carried back to the layer's output, and
ż_bk = D_k a_b,

    ĥ_k = 1/R Σ_r Σ_b p_rbk²,   p_rbk = ⟨δ_rb, ż_bk⟩ = ⟨D_k, G_rb⟩,

G_rb the gradient of the weight that the sample's drawn labels give. E p_rbk = 0 and the samples are independent, so
that E ĥ_k = ⟨D_k, G D_k⟩, G the Gauss–Newton matrix of the mean loss. One backward pass per draw serves all layers and
all directions. p is nearly normal where a sample has many positions; then the relative standard error is √(2/(R·B)).

A weight that is used several times adds up its uses: p_rbk = Σ_uses ⟨δ_rb, ż_bk⟩. Where samples influence each other
(train-mode batch norm), or a weight is used otherwise than in products with inputs and in lookups, the sum over the
samples comes before the square: p_rk = Σ_b p_rbk. That is unbiased too, with R terms instead of R·B.

Source: §5 of Martens, New insights and perspectives on the natural gradient method (2020), for the Fisher identity;
Dangel, Kunstner and Hennig, ViViT (2022), for the sampled form of the Gauss–Newton matrix.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from spectral_ext.curvature.directions import Directions
from spectral_ext.curvature.evaluate import Environment, evaluate
from spectral_ext.curvature.label_distributions import label_distributions
from spectral_ext.curvature.projection import Lookup, Projection, Use, uses_of
from spectral_ext.curvature.sites import Site, site_of
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
    residuals: tuple[str, ...] = ()
    """Names or patterns of the layers whose residual is measured too, exactly."""
    stream: int = 0
    """Measurements of the same seed whose errors are to be independent have different streams."""

    def with_residual(self, name: str) -> bool:
        return any(name == pattern or fnmatch.fnmatchcase(name, pattern) for pattern in self.residuals)

    def generator(self, device: torch.device, rank: int, piece: int) -> torch.Generator:
        """A generator of its own for each rank and piece of data; the user's generators are left alone."""
        state = np.random.SeedSequence((self.seed, self.stream, rank, piece)).generate_state(1, np.uint64)
        return torch.Generator(device).manual_seed(int(state[0]))


Project = Callable[[list[Tensor]], Tensor]


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
        sites = {name: site_of(program, model, layer) for name, layer in layers.items()}
        env = evaluate(program, program.arguments(model, batch), {site.weight for site in sites.values()})
        needed = set(program.nodes)
        self.unused = [name for name, site in sites.items() if site.weight not in needed]
        """Layers that the loss of this batch does not depend on."""
        self.uses = {name: uses_of(site, needed) for name, site in sites.items() if name not in self.unused}
        """Layer → every use of its weight; None where its gradient is taken instead, for all samples together."""
        seeds = {
            name: [u.site.seed_node for u in uses or ()] or [sites[name].weight] for name, uses in self.uses.items()
        }
        self.seeds = {name: [env[node] for node in nodes] for name, nodes in seeds.items()}
        self.distributions = label_distributions(program, env)
        self.arguments = [env[distribution.argument] for distribution in self.distributions]
        inputs = {use.site.input for uses in self.uses.values() for use in uses or ()}
        self.inputs: Environment = {node: env[node].detach() for node in inputs if node is not None}
        self.loss: Tensor = env[program.loss]

    def estimate(
        self, directions: Mapping[str, Directions], generator: torch.Generator, draws: int
    ) -> dict[str, Estimate]:
        """ĥ_k of every layer."""
        project = {name: self._projection(name, directions[name]) for name in self.uses}
        slopes = {name: project[name](g).sum(0) for name, g in self._back([self.loss], [torch.ones_like(self.loss)])}
        sums: dict[str, tuple[Tensor, Tensor]] = {}
        together: set[str] = set()
        streams = zip(*(one.draws(generator, draws) for one in self.distributions), strict=True)
        for index, cotangents in enumerate(streams):
            errors = dict(self._back(self.arguments, list(cotangents)))
            if index == 0:
                together = self._assign_samples(errors, list(cotangents), project, directions, generator)
            for name in self.uses:
                p = project[name](errors.pop(name))
                squares = (p.sum(0, keepdim=True) if name in together else p).square()
                first, second = sums.get(name, (0.0, 0.0))
                sums[name] = first + squares, second + squares.square()
        estimates = {}
        for name, (first, second) in sums.items():
            mean = first / draws
            variance = (second / draws - mean.square()).clamp_min(0) / (draws - 1)
            estimates[name] = Estimate(mean.sum(0), variance.sum(0), slopes[name], len(mean))
        for name in self.unused:
            zero = torch.zeros(len(directions[name]), dtype=torch.float64, device=self.loss.device)
            estimates[name] = Estimate(zero, zero, zero, self.samples)
        return estimates

    def _projection(self, name: str, directions: Directions, *, interleaved: bool = False) -> Project:
        """The errors at the layer's seeds → p (B, K), or (1, K) where their rows do not belong to samples.

        Rows of a sample follow each other, or those of all samples take turns (sequence first) if ``interleaved``.
        """
        uses = self.uses[name]
        if not uses:
            return lambda gradients: directions.along(gradients[0]).unsqueeze(0)
        each = [self._one_use(use, use.factor(directions), interleaved) for use in uses]

        def project(errors: list[Tensor]) -> Tensor:
            found = [one(error) for one, error in zip(each, errors, strict=True)]
            if any(len(p) != self.samples for p in found):
                found = [p.sum(0, keepdim=True) for p in found]
            return torch.stack(found).sum(0)

        return project

    def _one_use(self, use: Use, directions: Directions, interleaved: bool) -> Callable[[Tensor], Tensor]:
        site, product = use.site, use.site.seed_node.target
        assert site.input is not None
        x, shape = self.inputs[site.input], site.seed_node.meta["val"].shape
        if product is aten.bmm.default:
            one = self._rows_of(site, x.flatten(0, 1), directions, shape[0] * shape[1], interleaved)
            return lambda error: one(error.flatten(0, 1))
        rows, samples = shape[0], self.samples
        if interleaved and product is aten.embedding.default and x.dim() > 1 and x.shape[1] == samples:
            lookup = Lookup(x.transpose(0, 1), directions, samples)
            return lambda error: lookup(error.transpose(0, 1))
        if product in (aten.mm.default, aten.addmm.default):
            return self._rows_of(site, x, directions, rows, interleaved)
        samples = samples if rows % samples == 0 else 1
        if product is aten.embedding.default:
            return Lookup(x, directions, samples)
        by_row = Projection(site, self.inputs, directions, rows)
        return lambda error: by_row(error).unflatten(0, (samples, -1)).sum(1)

    def _rows_of(
        self, site: Site, x: Tensor, directions: Directions, rows: int, interleaved: bool
    ) -> Callable[[Tensor], Tensor]:
        """The projection of a product with the rows x."""
        assert site.input is not None
        samples = self.samples if rows % self.samples == 0 else 1
        if not interleaved:
            return Projection(site, {site.input: x}, directions, samples)
        order = torch.arange(rows, device=x.device).reshape(-1, samples).T.flatten()
        in_order = Projection(site, {site.input: x[order]}, directions, samples)
        return lambda error: in_order(error[order])

    def _back(self, outputs: list[Tensor], cotangents: list[Tensor]) -> Iterator[tuple[str, list[Tensor]]]:
        seeds = [seed for each in self.seeds.values() for seed in each]
        found = iter(torch.autograd.grad(outputs, seeds, cotangents, retain_graph=True, allow_unused=True))
        for name, each in self.seeds.items():
            errors = [next(found) for _ in each]
            yield name, [torch.zeros_like(z) if g is None else g for g, z in zip(errors, each, strict=True)]

    def _assign_samples(
        self,
        errors: Mapping[str, list[Tensor]],
        cotangents: list[Tensor],
        project: dict[str, Project],
        directions: Mapping[str, Directions],
        generator: torch.Generator,
    ) -> set[str]:
        """The layers whose samples must be added up before the square; it puts ``project`` right for the others.

        Each sample's cotangent is scaled by a random factor. Where the rows of a layer belong to the samples as
        assumed, and the samples do not influence each other, its projections scale by the same factor.
        """
        size = torch.rand(self.samples, 2, generator=generator, dtype=torch.float64, device=generator.device)
        if self.samples == 1:
            return set()
        if any(c.dim() == 0 or c.shape[0] % self.samples for c in cotangents):
            return set(self.uses)
        factors = (size[:, 0] + 0.5) * (size[:, 1] - 0.5).sign()
        scaled = [
            (c.unflatten(0, (self.samples, -1)) * factors.to(c).reshape(-1, *(1,) * c.dim())).flatten(0, 1)
            for c in cotangents
        ]

        def apart(one: Project, first: list[Tensor], second: list[Tensor]) -> bool:
            p = one(first)
            tolerance = COUPLING[torch.float64 if first[0].dtype == torch.float64 else torch.float32]
            difference = one(second) - factors.unsqueeze(1) * p
            return len(p) == self.samples and bool(difference.abs().max() <= tolerance * p.abs().max())

        together = set()
        for name, second in self._back(self.arguments, scaled):
            if apart(project[name], errors[name], second):
                continue
            other = self._projection(name, directions[name], interleaved=True)
            if apart(other, errors[name], second):
                project[name] = other
            else:
                together.add(name)
        return together
