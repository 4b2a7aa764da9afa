"""Projections of the errors at a layer's output on the tangents of its directions there."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_ext.curvature.directions import Directions
from spectral_ext.curvature.evaluate import Environment
from spectral_ext.curvature.sites import Site
from spectral_ext.curvature.sums import sum_in_float64

aten = torch.ops.aten


class Projection:
    """⟨δ_b, ż_bk⟩ for all samples b and directions k, without ż: u_kᵀ δ first, then v_kᵀ a."""

    def __init__(self, site: Site, env: Environment, directions: Directions, samples: int) -> None:
        directions = directions.stored.transposed if site.transposed else directions.stored
        self.directions, self.samples = directions, samples
        x, start = env[site.input].detach(), site.seed_node  # type: ignore[index]
        self.groups = 1
        if start.target is aten.convolution.default:
            geometry = start.args[3:]
            self.groups = int(start.args[8])  # type: ignore[arg-type]

            def convolve(weight: Tensor) -> Tensor:
                return aten.convolution(x, weight, None, *geometry)

            if directions.dense is not None:
                self.z = directions.convolution_output(convolve, self.groups)
            else:
                rest = directions.shape[1:]
                filters = directions.V.T.reshape(len(directions), *rest)  # type: ignore[union-attr]
                z = convolve(filters.repeat(self.groups, *(1,) * len(rest)))
                self.z = z.reshape(samples, self.groups, len(directions), -1)
        elif directions.dense is not None:
            self.z = directions.linear_output(x)
        else:
            self.z = (x @ directions.V).reshape(samples, 1, -1, len(directions)).mT
        self.convolution = start.target is aten.convolution.default

    def __call__(self, delta: Tensor) -> Tensor:
        """(B, K), float64."""
        if self.directions.dense is not None:
            rows = self.z.reshape(len(self.directions), self.samples, -1).transpose(0, 1)
            products = rows * delta.reshape(self.samples, 1, -1)
            return sum_in_float64(products.flatten(0, 1)).unflatten(0, (self.samples, -1))
        U = self.directions.U
        assert U is not None
        if self.convolution:
            d = delta.reshape(self.samples, self.groups, -1, delta[0, 0].numel())
            t = U.T.reshape(len(self.directions), self.groups, -1).transpose(0, 1) @ d
        else:
            t = (delta.reshape(self.samples, 1, -1, delta.shape[-1]) @ U).mT
        return (t * self.z).sum(3).double().sum(1)
