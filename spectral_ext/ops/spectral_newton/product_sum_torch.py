"""spectral_newton by matrix products: 16-bit operands, float32 accumulation, Gram matrix and iterates in float32.

Runs on any device; off CUDA the rounding of the operands is emulated and the products are float32, so that the numbers
of a GPU can be studied without one. No host synchronisation and no LAPACK call: safe in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spectral_ext.ops.spectral_newton.decompositions import constants, largest_eigenvalue, power_of_two_scale
from spectral_ext.ops.spectral_newton.product_sum import ProductSum, block_length

MARGIN = 1.02
"""σ is divided by the Lanczos estimate of σ_max times this: the estimate is a lower bound, by far less than 2 %."""
STEPS = 20


def product(a: Tensor, b: Tensor, operand: torch.dtype) -> Tensor:
    """a b (B, ·, ·) in float32 from operands rounded to ``operand``; float64 is left as it is."""
    if a.dtype == torch.float64 or operand == torch.float32:
        return a @ b
    if a.is_cuda:
        return torch.bmm(a.to(operand), b.to(operand), out_dtype=torch.float32)
    return a.to(operand).float() @ b.to(operand).float()


def product_sum(
    G: Tensor, alpha: float, damping: Tensor, mode: str, table: Sequence[ProductSum], operand: torch.dtype
) -> Tensor:
    """T(G) for wide G (B, n, N) with one α; ``table`` holds fits of one basis and length, for descending damping.

    Damping d is met by the scale: T(G) = h(R/s²) G/d where σ_max ≤ s and d/s^α is the damping of an entry of the table;
    the entry is chosen on the device. Beyond the table, where σ_max^α/d is larger than it serves, the result is
    G/(σ_max^α + d): finite, and along the gradient.
    """
    scaled, scale = power_of_two_scale(G)
    unit = scale.flatten().double()
    R = product(scaled, scaled.mT, operand)
    top = (unit * largest_eigenvalue(R, STEPS).sqrt()) * MARGIN
    d = damping.flatten()
    if mode == "spectral":
        d = d * (top / MARGIN) ** alpha
    elif mode == "mean":
        n = G.shape[-2]
        mean = R.diagonal(dim1=-2, dim2=-1).double().sum(-1) if alpha == 2 else R.double().square().sum((-2, -1))
        d = d * unit**alpha * mean / n
    empty = top == 0
    d, top = torch.where(empty, torch.ones_like(d), d), torch.where(empty, torch.ones_like(top), top)

    dampings = constants(tuple(entry.damping for entry in table), G.device)
    scales = (d[:, None] / dampings) ** (1.0 / alpha)  # ascending: the first that bounds σ_max serves best
    fits = scales >= top[:, None] * (1.0 - 1e-9)
    index = (len(table) - fits.sum(-1)).clamp(max=len(table) - 1)
    s = scales.gather(1, index[:, None])[:, 0]
    rows = constants(tuple(tuple(entry.coefficients) for entry in table), G.device)
    coefficients = rows[index].to(R.dtype)[:, :, None, None]

    X = R * ((unit / s) ** 2).to(R.dtype)[:, None, None]
    evaluate = _chebyshev if table[0].basis == "polynomial" else _iterates
    identity_part, rest = evaluate(X, coefficients, operand)
    # The mean of the spectrum is applied in float32, so that only the deviation from it is rounded to 16 bit.
    mean = rest.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    rest.diagonal(dim1=-2, dim2=-1).sub_(mean[:, :, 0])
    result = product(rest, scaled, operand).add_((identity_part + mean) * scaled)
    result = result * (unit / d).to(R.dtype)[:, None, None]
    safe = scaled * (unit / (d + top**alpha)).to(R.dtype)[:, None, None]
    result = torch.where(fits.any(-1)[:, None, None], result, safe)
    result = torch.where(empty[:, None, None], torch.zeros_like(result), result)
    return result * torch.where(unit.isnan(), unit, torch.ones_like(unit)).to(R.dtype)[:, None, None]


def _iterates(R: Tensor, c: Tensor, operand: torch.dtype) -> tuple[Tensor, Tensor]:
    """Σ_t c_t q_t(R) as (identity part (B, 1, 1), rest): q_t = Π (3 − R_t)/2, R_{t+1} = R_t ((3 − R_t)/2)²."""
    total_identity, total = c[:, 0], torch.zeros_like(R)
    identity, Q = torch.ones_like(total_identity), torch.zeros_like(R)  # q_t = identity + Q
    for t in range(1, c.shape[1]):
        RQ = product(R, Q, operand) if t > 1 else torch.zeros_like(R)
        Q = 1.5 * Q - 0.5 * (identity * R + RQ)
        identity = 1.5 * identity
        total_identity, total = total_identity + c[:, t] * identity, total + c[:, t] * Q
        if t + 1 < c.shape[1]:
            square = product(R, R, operand)
            R = 2.25 * R - 1.5 * square + 0.25 * product(R, square, operand)
    return total_identity, total


def _chebyshev(R: Tensor, c: Tensor, operand: torch.dtype) -> tuple[Tensor, Tensor]:
    """Σ_k c_k T_k(2R − 1) as (identity part (B, 1, 1), rest), by blocks of q terms (Paterson–Stockmeyer).

    T_j is kept as T_j(−1) I + M_j, so that no product has an operand with a large diagonal to round.
    """
    degree = c.shape[1] - 1
    q = block_length(degree)
    M = [torch.zeros_like(R), 2.0 * R]  # T_0 = 1, T_1 = −1 + 2R
    for j in range(2, q + 1):  # T_j = 2(2R − 1) T_{j−1} − T_{j−2}
        sign = -1.0 if j % 2 == 0 else 1.0
        M.append(4.0 * (product(R, M[j - 1], operand) + sign * R) - 2.0 * M[j - 1] - M[j - 2])
    # c as Σ_i (Σ_j a_ij T_j) T_{iq}: T_{iq+j} = 2 T_j T_{iq} − T_{iq−j}, from the highest term down.
    a = list(c.unbind(1))
    blocks = degree // q
    for k in range(degree, q, -1):
        i, j = divmod(k, q)
        if i > 0 and j > 0:
            a[i * q - j] = a[i * q - j] - a[k]
            a[k] = 2.0 * a[k]
    # Clenshaw in T_q: B_i = A_i + 2 T_q B_{i+1} − B_{i+2}, h = A_0 + T_q B_1 − B_2; pairs (identity part, rest).
    top = -1.0 if q % 2 else 1.0  # T_q = top + M_q
    zero = (torch.zeros_like(c[:, 0]), torch.zeros_like(R))
    after, next_after = zero, zero
    for i in range(blocks, -1, -1):
        identity, rest = a[i * q], torch.zeros_like(R)
        for j in range(1, min(q, degree + 1 - i * q)):
            weight = a[i * q + j]
            identity = identity + weight * (-1.0 if j % 2 else 1.0)
            rest = rest + weight * M[j]
        if i < blocks:
            factor = 2.0 if i > 0 else 1.0
            known_zero = i == blocks - 1 and degree % q == 0
            times = torch.zeros_like(R) if known_zero else product(M[q], after[1], operand)
            identity = identity + factor * top * after[0] - next_after[0]
            rest = rest + factor * (top * after[1] + after[0] * M[q] + times) - next_after[1]
        after, next_after = (identity, rest), after
    return after
