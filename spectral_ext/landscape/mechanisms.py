"""What the architecture does to a layer's α: LayerNorm, residual connections, softmax heads (§6)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spectral_ext.factors.second_moment import SecondMoment
from spectral_ext.spectra.regression import Fit, FitError, as_vector, fit_power_law


@dataclass(frozen=True)
class LayerNormDiagnostic:
    """Theorem 3: behind a LayerNorm Ĉ is well conditioned and ρ^A does not depend on σ.

    Ĉ is the second moment of the normalized input, before the norm's weight γ and bias β. A LayerNorm's output sums to
    zero there, so Ĉ is taken on the complement of the constant vector; an RMSNorm's is taken whole. For a layer that
    reads no norm, C_A stands in its place, for comparison.
    """

    condition: float
    """λ_1/λ_r over the eigenvalues above the cut-off; NaN where it was not computed."""
    rank: int
    """r: eigenvalues above the cut-off (1e-6 λ_1); n − 1 for a LayerNorm with enough data."""
    slope: Fit
    """d log ρ^A/d log σ: about 0 by the theorem."""
    behind_norm: bool | None = None
    """Whether the layer's input comes straight from a LayerNorm or RMSNorm (None: not known)."""
    reason: str = ""
    """Why the condition number was not computed; "" where it was."""


@dataclass(frozen=True)
class ResidualDiagnostic:
    """Proposition 5: on a skip-dominated branch C_δ ≈ C_δ,out, whose eigenvectors have nothing to do with u_k."""

    alignment: float
    """⟨C_δ, C_δ,out⟩/(‖C_δ‖‖C_δ,out‖), Frobenius: 1 where they are proportional."""
    overlap: float
    """‖Q'Q_out‖²_F/k of the top-k eigenspaces: 1 the same space, k/m unrelated ones."""
    k: int
    slope: Fit
    """d log ρ^δ/d log σ: about 0 by the proposition."""
    block: str = ""
    """The module whose output error gives C_δ,out."""


@dataclass(frozen=True)
class SoftmaxDiagnostic:
    """Proposition 6: a softmax head's C_δ has rank ≤ C (C − 1, as errors sum to zero), and ρ^δ drops beyond it."""

    classes: int
    rank: int
    """Eigenvalues of C_δ above 1e-6 λ_1; at least as many where only the largest ones are computed."""
    inside: float
    """Geometric mean of u'C_δu/λ_1 over k ≤ rank."""
    outside: float
    """The same beyond the rank; NaN where no direction lies there."""
    zero_sum: float
    """1'C_δ1/(m·λ_1): 0 where the errors of a sample sum to zero, as softmax cross-entropy makes them."""

    @property
    def is_softmax(self) -> bool:
        return abs(self.zero_sum) < 1e-5

    @property
    def drop(self) -> float:
        """outside/inside."""
        return self.outside / self.inside if self.inside > 0 else math.nan


def layer_norm_diagnostic(
    sigma: Any, rho_A: Any, eigenvalues: Any, *, behind_norm: bool | None = None, reason: str = ""
) -> LayerNormDiagnostic:
    """Condition number of Ĉ over its numerical rank, and the slope of ρ^A (Theorem 3, J.1).

    Args:
        sigma, rho_A: per direction.
        eigenvalues: all eigenvalues of Ĉ (``normalized_spectrum``), or of C_A behind no norm; empty where they are
            not known, which ``reason`` then explains.

    Raises:
        ValueError: NaN, or lengths differ.
    """
    values = as_vector(eigenvalues, "eigenvalues")
    kept = values[values > 1e-6 * values.max(initial=0.0)]
    condition = float(kept.max() / kept.min()) if len(kept) else math.nan
    return LayerNormDiagnostic(condition, len(kept), _slope(sigma, rho_A, "rho_A"), behind_norm, reason)


def normalized_spectrum(C: Tensor | SecondMoment, *, centred: bool) -> np.ndarray:
    """All eigenvalues of Ĉ (n, n) in decreasing order, in float64; with ``centred`` those on the complement of the
    constant vector, n − 1 of them.
    """
    C = _moment(C)
    n = C.size
    if C.matrix is None:  # rows: those of a LayerNorm are made to sum to zero, as they do but for rounding
        centre = SecondMoment(n)
        centre.scale, centre.rows = C.scale, [rows - rows.mean(1, keepdim=True) if centred else rows for rows in C.rows]
        return centre.eigenvalues(n)[: n - centred].cpu().numpy()
    matrix = C.dense().double()
    if centred:
        # The reflection that exchanges 1/√n and −e_1: its other columns are a basis of the complement.
        v = torch.full((n,), n**-0.5, dtype=torch.float64, device=matrix.device)
        v[0] += 1
        v /= v.norm()
        Cv = matrix @ v
        matrix = (matrix - 2 * (torch.outer(v, Cv) + torch.outer(Cv, v)) + 4 * (v @ Cv) * torch.outer(v, v))[1:, 1:]
    return torch.linalg.eigvalsh(matrix).flip(0).cpu().numpy()


def _moment(C: Tensor | SecondMoment) -> SecondMoment:
    return C if isinstance(C, SecondMoment) else SecondMoment.of(C)


def residual_diagnostic(
    C_delta: Tensor | SecondMoment,
    C_delta_out: Tensor | SecondMoment,
    sigma: Any,
    rho_delta: Any,
    *,
    k: int = 10,
    block: str = "",
) -> ResidualDiagnostic:
    """Alignment of C_δ with the factor C_δ,out of the error at the block's output (Proposition 5); both (m, m).

    Raises:
        ValueError: shapes differ.
    """
    ours, theirs = _moment(C_delta), _moment(C_delta_out)
    if ours.size != theirs.size:
        raise ValueError(f"C_delta ({ours.size}) and C_delta_out ({theirs.size}) differ in shape")
    norm = ours.norm() * theirs.norm()
    alignment = ours.inner(theirs) / norm if norm > 0 else math.nan
    bases = [one.eigenspace(min(k, ours.size)) for one in (ours, theirs)]
    k = min(basis.shape[1] for basis in bases)
    overlap = float((bases[0][:, :k].mT @ bases[1][:, :k]).square().sum()) / k
    return ResidualDiagnostic(alignment, overlap, k, _slope(sigma, rho_delta, "rho_delta"), block)


def softmax_diagnostic(
    C_delta: Tensor | SecondMoment, output_quotient: Any, *, classes: int | None = None
) -> SoftmaxDiagnostic:
    """Rank of C_δ (m, m) and the drop of u_k'C_δu_k beyond it (Proposition 6, J.2).

    ρ_k^δ itself is undefined beyond the rank, where λ_k = 0, so the drop is measured on u_k'C_δu_k/λ_1.
    """
    C = _moment(C_delta)
    quotient = as_vector(output_quotient, "output_quotient")
    eigenvalues = C.eigenvalues(len(quotient)).cpu().numpy()
    top = float(eigenvalues[0])
    rank = int((eigenvalues > 1e-6 * top).sum()) if top > 0 else 0
    logs = (
        np.log(np.maximum(quotient / top, np.finfo(np.float64).tiny)) if top > 0 else np.full(len(quotient), math.nan)
    )

    def mean(part: np.ndarray) -> float:
        return float(np.exp(part.mean())) if len(part) else math.nan

    zero_sum = C.sum() / (C.size * top) if top > 0 else math.nan
    return SoftmaxDiagnostic(classes or C.size, rank, mean(logs[:rank]), mean(logs[rank:]), zero_sum)


def _slope(sigma: Any, rho: Any, what: str) -> Fit:
    try:
        return fit_power_law(sigma, rho, what=what)
    except FitError as error:
        return Fit.empty(str(error))
