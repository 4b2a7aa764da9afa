"""What a measurement returns: the directional curvature of each layer, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor

MECHANISMS = ("gauss_newton", "norm", "softmax", "bilinear", "activation", "other")


@dataclass(frozen=True)
class SelfCheck:
    """A comparison of a layer's h_k with another method, on the first piece of data."""

    k: tuple[int, ...]
    """The directions that were compared, counted from 0."""
    error: float
    """max_k |h_k − ĥ_k| / max(|ĥ_k|, 10⁻³ max|ĥ|, 10⁻³ Σ|parts of h_k|), ĥ by the reference; three times the error
    estimate of central differences is deducted."""
    tolerance: float
    reference: str = "double backward"
    """What ĥ was computed by, and in which precision."""

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance


@dataclass(frozen=True)
class LayerCurvature:
    """Curvature of the mean loss along K directions D_k of one layer's weight (m × n, convolutions flattened)."""

    name: str
    sigma: Tensor
    """(K,): ⟨G, D_k⟩ of the mean gradient G, which is σ_k where D_k = u_k v_kᵀ is a singular pair of G."""
    U: Tensor | None
    """(m, K), columns u_k; None where the directions are not of rank one."""
    V: Tensor | None
    """(n, K), columns v_k; None where the directions are not of rank one."""
    h: Tensor
    """(K,): h_k = vec(D_k)ᵀ H vec(D_k), H the Hessian of the mean loss in this weight. With sampled_gauss_newton an
    unbiased estimate of its Gauss–Newton part."""
    method: str
    """How h was computed: tangent_adjoint, sqrt_gn, double_backward_output, double_backward_weight, finite_difference
    or sampled_gauss_newton."""
    reason: str
    """Why this method."""
    parts: dict[str, Tensor] | None = None
    """With ``split``: h by mechanism, each (K,), adding up to h; None where the method does not split h. A part that
    was not measured has no entry."""
    directions: Tensor | None = field(default=None, repr=False)
    """(K, *weight.shape) where the directions are not of rank one."""
    check: SelfCheck | None = None
    error: Tensor | None = None
    """(K,): with finite_difference, an estimate of the absolute error of h; None where h is exact up to rounding."""
    notes: list[str] = field(default_factory=list)
    """What the caller should know, for example that the gradient has fewer directions than were asked for."""
    standard_error: Tensor | None = None
    """(K,): with sampled_gauss_newton, the standard error of h over the draws of labels, the samples held fixed; None
    where h is not an estimate."""


class DirectionalCurvature(Mapping[str, LayerCurvature]):
    """Layer name → :class:`LayerCurvature`, in the model's order; ``skipped`` names what was not measured, and why."""

    def __init__(
        self, layers: dict[str, LayerCurvature], skipped: dict[str, str], loss: float, samples: int, mode: str
    ) -> None:
        self._layers = layers
        self.skipped = skipped
        self.loss = loss
        """The mean loss over all samples."""
        self.samples = samples
        self.mode = mode
        """``train`` or ``eval``: under train-mode batch norm h is another quantity than under eval."""

    def __getitem__(self, name: str) -> LayerCurvature:
        try:
            return self._layers[name]
        except KeyError:
            why = self.skipped.get(name)
            raise KeyError(f"layer {name!r} was not measured: {why}" if why else f"no layer named {name!r}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __repr__(self) -> str:
        lines = [f"DirectionalCurvature: {len(self)} layers, {self.samples} samples, loss {self.loss:.4g}, {self.mode}"]
        for name, layer in self.items():
            lines.append(f"  {name}: K={len(layer.h)}, h_1={float(layer.h[0]):.4g}, {layer.method}")
        return "\n".join([*lines, f"  not measured: {len(self.skipped)}"])
