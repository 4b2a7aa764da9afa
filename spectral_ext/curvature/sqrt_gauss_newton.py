"""h_k by a square root of the loss's Hessian, where the network is piecewise linear after the layer.

Then h is its Gauss–Newton part. With H_b = Σ_c λ_bc q_bc q_bcᵀ the Hessian of the loss in sample b's output and δ_bc
the vector √|λ_bc| q_bc carried back to the layer's output z,

    h_k = Σ_b Σ_c sign(λ_bc) ⟨δ_bc, ż_bk⟩²,  ż_bk = u_k v_kᵀ a_b :

one backward pass for each of at most C vectors serves all layers and directions. H_b is found by double backward in
the output, so that any twice differentiable loss will do that treats samples apart (softmax cross-entropy has C − 1
vectors).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn

from spectral_ext.curvature.directions import Directions
from spectral_ext.curvature.evaluate import Environment, evaluate, run
from spectral_ext.curvature.projection import Projection
from spectral_ext.curvature.rules.registry import NotApplicableError
from spectral_ext.curvature.sites import Site, has_second_derivative, site_of
from spectral_ext.curvature.trace import Program
from spectral_ext.layers import Layer
from spectral_ext.measurement.batches import Batch

aten = torch.ops.aten

COUPLING = {torch.float64: 1e-9, torch.float32: 1e-4}
"""How far, relative to their size, projections may differ in the test for samples that influence each other."""

LARGEST_OUTPUT = 1024
"""Outputs per sample above which the method is refused: it takes a backward pass for each."""


def outputs_per_sample(program: Program, samples: int) -> int:
    """C, or 0 where the model's output is not one real tensor with the samples in dimension 0."""
    if len(program.outputs) != 1:
        return 0
    output = program.outputs[0].meta["val"]
    shape = output.shape
    if output.is_complex():
        return 0
    return shape.numel() // samples if len(shape) > 0 and shape[0] == samples else 0


def why_not(program: Program, site: Site, samples: int) -> str | None:
    """Why the method is not exact for a layer, or None."""
    count = outputs_per_sample(program, samples)
    if count == 0:
        return "the model's output is not one real tensor with the samples in dimension 0"
    if count > LARGEST_OUTPUT:
        return f"the output has {count} numbers per sample"
    if site.input is None:
        return "its weight is used more than once"
    if not _rows(site.seed_node, samples):
        return "its output does not have the samples in dimension 0"
    reached = {site.seed_node, *site.schedule}
    for node in site.schedule:
        if node not in program.loss_operations and has_second_derivative(node, reached):
            owner = node.meta.get("owner")
            return f"{node.target} follows it" + (f" in {owner}" if owner else "")
    return None


def _rows(start: fx.Node, samples: int) -> bool:
    shape = start.meta["val"].shape
    if start.target is aten.convolution.default:
        return len(shape) > 2 and shape[0] == samples
    return shape[0] % samples == 0


class SqrtGaussNewton:
    """A program at one batch, recorded for backward passes."""

    def __init__(self, program: Program, model: nn.Module, batch: Batch, layers: Mapping[str, Layer]) -> None:
        self.program = program
        self.samples = batch.samples
        self.sites = {name: site_of(program, model, layer) for name, layer in layers.items()}
        for name, site in self.sites.items():
            if reason := why_not(program, site, self.samples):
                raise NotApplicableError(f"sqrt_gn is not exact for {name!r}: {reason}")
        self.env = evaluate(program, program.arguments(model, batch), {site.weight for site in self.sites.values()})
        self.random = torch.Generator().manual_seed(0)

    def curvature(self, directions: Mapping[str, Directions]) -> dict[str, tuple[Tensor, Tensor]]:
        """``(h (K,), L̇ (K,))`` of every layer, float64."""
        with torch.no_grad():
            inputs = {
                name: Projection(site, self.env, directions[name].stored, self.samples)
                for name, site in self.sites.items()
            }
        gradient, vectors, signs = self._loss_factor()
        slopes = {name: inputs[name](delta).sum(0) for name, delta in self._back(gradient).items()}
        found = {name: torch.zeros_like(slope) for name, slope in slopes.items()}
        mixture = torch.zeros_like(gradient)
        zero = torch.zeros(1, 1, dtype=torch.float64, device=gradient.device)
        mixed, sizes = dict.fromkeys(slopes, zero), dict.fromkeys(slopes, zero)
        weights = torch.randn(len(vectors), generator=self.random, dtype=torch.float64).tolist()
        for vector, sign, weight in zip(vectors, signs, weights, strict=True):
            mixture += weight * vector
            for name, delta in self._back(vector).items():
                projected = inputs[name](delta)
                found[name] += sign.double() @ projected.square()
                mixed[name] = mixed[name] + weight * projected
                sizes[name] = sizes[name] + (weight * projected).abs()
        if len(vectors) and self.samples > 1:
            self._refuse_coupled_samples(mixture, mixed, sizes, inputs)
        return {name: (found[name], slopes[name]) for name in self.sites}

    def _back(self, cotangent: Tensor) -> dict[str, Tensor]:
        """The cotangent of the output, carried back to every layer's output."""
        z = [self.env[site.seed_node] for site in self.sites.values()]
        y = self.env[self.program.outputs[0]]
        found = torch.autograd.grad(y, z, cotangent.reshape(y.shape), retain_graph=True, allow_unused=True)
        return {n: torch.zeros_like(v) if g is None else g for n, g, v in zip(self.sites, found, z, strict=True)}

    def _loss_gradient(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """y as a leaf, and ∂L/∂y with its graph."""
        output = self.program.outputs[0]
        inner: Environment = dict(self.env)
        y = inner[output] = self.env[output].detach().to(dtype).requires_grad_()
        run(self.program, [node for node in self.program.nodes if node in self.program.loss_operations], inner)
        return y, torch.autograd.grad(inner[self.program.loss], y, create_graph=True)[0]

    def _loss_factor(self) -> tuple[Tensor, Tensor, Tensor]:
        """∂L/∂y (B, C), the vectors √|λ_c| q_c (C', B, C) that are not all zero, and their signs (C', B)."""
        dtype = self.env[self.program.outputs[0]].dtype
        try:
            y, gradient = self._loss_gradient(torch.float64)
        except RuntimeError:  # constants of the loss that do not mix with float64
            y, gradient = self._loss_gradient(dtype)
        flat = gradient.reshape(self.samples, -1)
        count = flat.shape[1]
        if not gradient.requires_grad:
            return flat.detach().to(dtype), y.new_zeros(0, self.samples, count), y.new_zeros(0, self.samples)

        def times(vector: Tensor) -> Tensor:
            (product,) = torch.autograd.grad(gradient, y, vector.reshape(y.shape), retain_graph=True)
            return product.reshape(self.samples, -1).double()

        eye = torch.eye(count, dtype=y.dtype, device=y.device)
        hessian = torch.stack([times(row.expand(self.samples, -1)) for row in eye], 1)  # (B, C, C)
        probe = torch.randn(flat.shape, generator=self.random, dtype=torch.float64).to(y)
        apart = (hessian @ probe.double().unsqueeze(-1)).squeeze(-1)
        if not torch.allclose(times(probe), apart, rtol=1e-4, atol=1e-4 * float(apart.abs().max())):
            raise NotApplicableError("the loss couples the samples of a batch")
        values, basis = torch.linalg.eigh((hessian + hessian.mT) / 2)
        vectors = (basis * values.abs().sqrt().unsqueeze(1)).movedim(-1, 0).to(dtype)
        keep = values.abs().amax(0) > 20 * torch.finfo(y.dtype).eps * values.abs().max()
        return flat.detach().to(dtype), vectors[keep], values.sign().T[keep]

    def _refuse_coupled_samples(
        self, mixture: Tensor, projections: Mapping[str, Tensor], sizes: Mapping[str, Tensor], inputs: Mapping
    ) -> None:
        """Scale each sample's cotangent by a random factor: its projections must scale by the same factor.

        Args:
            mixture: a random combination (B, C) of the vectors.
            projections: ⟨δ_b, ż_bk⟩ of that combination, (B, K).
            sizes: Σ |⟨δ_bc, ż_bk⟩| over the vectors, (B, K).
        """
        factors = (torch.rand(self.samples, generator=self.random, dtype=torch.float64) + 0.5).to(mixture.device)
        factors[torch.rand(self.samples, generator=self.random) < 0.5] *= -1
        tolerance = COUPLING[torch.float64 if mixture.dtype == torch.float64 else torch.float32]
        for name, delta in self._back(mixture * factors.to(mixture.dtype).unsqueeze(1)).items():
            difference = inputs[name](delta) - factors.unsqueeze(1) * projections[name]
            if bool(difference.abs().max() > tolerance * sizes[name].max()):
                raise NotApplicableError(f"sqrt_gn is not exact for {name!r}: the model couples the samples of a batch")
