"""spectral_newton by partial fractions in batched torch calls: the path of devices without the compiled CPU loop."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spectral_ext.ops.spectral_newton.decompositions import constants, largest_eigenvalue, power_of_two_scale
from spectral_ext.ops.spectral_newton.partial_fractions import PartialFractions

STEPS = 40
SHIFT = 4.0
"""What is added to each diagonal, in units of ε ‖R‖_F/√n, the order of the rounding of R's eigenvalues."""
FUSED_SIDE = 160
"""The small side up to which the CUDA kernel holds a matrix on chip."""


def _spd_inverse(X: Tensor) -> tuple[Tensor, Tensor]:
    """``(X⁻¹, failed)`` for a batch of positive definite matrices, without a host synchronisation."""
    L, info = torch.linalg.cholesky_ex(X)
    identity = torch.eye(X.shape[-1], dtype=X.dtype, device=X.device).expand_as(X)
    inverse = torch.linalg.solve_triangular(L, identity, upper=False)
    return inverse.mT @ inverse, info != 0


def needs_float64(
    alpha: float, damping: float | None, mode: str, sides: tuple[int, int], dtype: torch.dtype, tolerance: float
) -> bool:
    """Whether float32 cannot be trusted with the tolerance for `rational`, from what the host knows.

    Where σ_max does not dominate T(G), rounding of R moves it by about SHIFT · ε · ‖R‖_F/(√n d^{2/α}), and for α > 2
    rounding of R² by ε y_max², y_max = σ_max²/d^{2/α}. In units of σ_max, d is itself for ``spectral`` and at least d/n
    for ``mean``. For ``absolute`` the host does not know: float64 for α > 2 and for tolerances below 1e-4; otherwise
    float32, good for y_max up to about tolerance/(SHIFT · ε).
    """
    if dtype != torch.float32:
        return False
    if mode == "absolute" or damping is None:
        return tolerance < 1e-4 or alpha > 2.0
    n, epsilon = min(sides), torch.finfo(dtype).eps
    y_max = (damping if mode == "spectral" else damping / n) ** (-2.0 / alpha)
    moved = SHIFT * epsilon * (y_max if mode == "spectral" else y_max / n**0.5)
    return max(moved, epsilon * y_max**2 if alpha > 2.0 else 0.0) > 0.5 * tolerance


def rational(
    G: Tensor,
    alpha: float,
    damping: Tensor,
    mode: str,
    levels: Sequence[PartialFractions],
    float64: bool = False,
) -> Tensor:
    """T(G) by partial fractions, one α for the batch, without a host synchronisation (but for ``mean`` at α ≠ 2, 4).

    The coefficients of the level that serves σ_max²/d^{2/α} are chosen on the device. Each matrix to invert gets
    ``SHIFT`` · ε · ‖R‖_F/√n more on its diagonal, of the order of the rounding of R, to stay positive definite. A
    matrix that fails all the same, or that no level serves, gets G/(σ_max^α + d): finite, and along the gradient.
    ``float64`` takes everything in float64.
    """
    scaled, scale = power_of_two_scale(G)
    s = scale.flatten().double()
    n = G.shape[-2]
    R = scaled.double() @ scaled.double().mT if float64 else scaled @ scaled.mT
    top = largest_eigenvalue(R, STEPS)
    d = damping.flatten()
    if mode == "spectral":
        d = d * (s * top.sqrt()) ** alpha
    elif mode == "mean":
        d = d * s**alpha * _mean_power(R, alpha)
    empty = top == 0
    d = torch.where(empty, torch.ones_like(d), d)
    delta = d ** (2 / alpha) / s**2

    reach = constants(tuple(level.reach for level in levels), G.device)
    index = torch.searchsorted(reach, top / delta * (1 - 1e-4))
    failed = index >= len(levels)
    count = max(len(level.poles) for level in levels)
    table = constants(tuple(_row(level, count) for level in levels), G.device)
    chosen = table[index.clamp(max=len(levels) - 1)]
    constant, poles, residues = chosen[:, :1], chosen[:, 1 : count + 1], chosen[:, count + 1 :]
    jitter = SHIFT * torch.finfo(R.dtype).eps * R.norm(dim=(-2, -1)).double() / n**0.5

    if levels[-1].form == 0 and G.is_cuda and R.dtype == torch.float32 and n <= FUSED_SIDE:
        shifts = (delta[:, None] * poles + jitter[:, None]).float()
        weights = (delta[:, None] * residues).float()
        product = torch.empty_like(scaled)
        status = torch.empty(len(G), dtype=torch.int32, device=G.device)
        torch.ops.spectral_ext.spectral_newton_poles_(
            product, status, scaled, constant[:, 0].float(), weights, shifts, 1.0, 0.0
        )
        failed = failed | (status != 0)
    else:
        unit = torch.maximum(top, delta)
        F, bad = _matrix_function(
            R / unit.to(R.dtype)[:, None, None],
            (delta / unit)[:, None],
            (jitter / unit)[:, None],
            constant,
            poles,
            residues,
            levels[-1],
        )
        failed, product = failed | bad, (F @ scaled.to(F.dtype)).to(G.dtype)
    gain = (s / d).to(G.dtype)[:, None, None]
    safe = (s / (d + (s * top.sqrt()) ** alpha)).to(G.dtype)[:, None, None]
    result = torch.where(failed[:, None, None], safe * scaled, gain * product)
    result = torch.where(empty[:, None, None], torch.zeros_like(result), result)
    return result * torch.where(s.isnan(), s, torch.ones_like(s)).to(G.dtype)[:, None, None]


def _mean_power(R: Tensor, alpha: float) -> Tensor:
    """Mean of λ^{α/2} over the spectrum of R (B, n, n), the mean of σ^α, (B,) in float64."""
    if alpha == 2:
        return R.diagonal(dim1=-2, dim2=-1).double().mean(-1)
    if alpha == 4:
        return R.double().square().sum((-2, -1)) / R.shape[-1]
    return torch.linalg.eigvalsh(R).clamp(min=0).double().pow(alpha / 2).mean(-1)


def _row(level: PartialFractions, count: int) -> tuple[float, ...]:
    """constant, poles, residues, padded to ``count`` terms by 0/(x + 1)."""
    spare = count - len(level.poles)
    return (level.constant, *level.poles, *[1.0] * spare, *level.residues, *[0.0] * spare)


def _matrix_function(
    Z: Tensor, delta: Tensor, jitter: Tensor, constant: Tensor, poles: Tensor, residues: Tensor, form: PartialFractions
) -> tuple[Tensor, Tensor]:
    """``(φ(Z/δ), failed)`` for Z (B, n, n) and per-matrix coefficients (B, ·)."""
    identity = torch.eye(Z.shape[-1], dtype=Z.dtype, device=Z.device)
    F = constant.to(Z.dtype)[:, :, None] * identity
    failed = torch.zeros(len(Z), dtype=torch.bool, device=Z.device)
    inverse = F
    if poles.shape[1]:
        shifts = (delta * poles + jitter).to(Z.dtype)
        inverse, bad = _spd_inverse(Z[:, None] + shifts[:, :, None, None] * identity)
        F = F + ((delta * residues).to(Z.dtype)[:, :, None, None] * inverse).sum(1)
        failed = failed | bad.any(-1)
    if form.quadratic is None:
        return F, failed
    u = delta.to(Z.dtype)[:, :, None]
    Q = Z @ Z + form.quadratic * u * Z + (u * u + jitter.to(Z.dtype)[:, :, None]) * identity
    Q_inverse, bad = _spd_inverse(Q)
    Q_inverse = u * u * Q_inverse
    if form.form == 2:
        return Q_inverse @ F, failed | bad
    constant_part, slope = form.pair
    P = slope * u * inverse[:, 0]  # the first pole is b: y/Q = p − p/Q, p = 1/(y + b)
    return F + constant_part * Q_inverse + P - P @ Q_inverse, failed | bad
