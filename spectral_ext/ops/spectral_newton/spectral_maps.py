"""Any spectral map, U f(Σ) Vᵀ, without a decomposition: f(σ) = σ r(σ²) with r rational, its poles found by AAA.

r(y) ≈ c + Σ_j r_j/(y + p_j) + Σ_k 2 Re(ρ_k/(y − ζ_k)): smooth maps have real poles, those with a kink pairs of complex
ones. The AAA algorithm (Nakatsukasa, Sète and Trefethen, SIAM J. Sci. Comput. 40, 2018; `scipy.interpolate.AAA`) finds
the poles; the residues are then those of least maximal error of f itself, and a dense independent grid certifies it.
"""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spectral_ext.ops.spectral_newton.matrix_function import Precision
from spectral_ext.ops.spectral_newton.partial_fractions_torch import Scales, apply_rational, units_of

Array = NDArray[np.float64]
UNITS = ("absolute", "spectral", "rms", "frobenius")
MAX_TERMS = 40
FIT_SHARE = 0.8
SMALLEST_POLE = 1e-12
"""Relative to the largest σ²: below it, float64 cannot tell Z + p from Z."""

FUNCTIONS: dict[str, tuple[dict[str, float], Callable[..., Array]]] = {
    "spectral_newton": ({"alpha": 2.0, "damping": 0.1}, lambda s, alpha, damping: s / (s**alpha + damping)),
    "polar": ({"floor": 1e-3}, lambda s, floor: s / np.sqrt(s * s + floor * floor)),
    "power": (
        {"exponent": 0.5, "floor": 1e-3},
        lambda s, exponent, floor: s * (s * s + floor**2) ** (exponent / 2 - 0.5),
    ),
    "soft_threshold": ({"threshold": 0.1}, lambda s, threshold: np.maximum(s - threshold, 0.0)),
    "hard_threshold": (
        {"threshold": 0.1, "width": 0.02},
        lambda s, threshold, width: s * 0.5 * (1 + np.tanh(0.5 * (s - threshold) / width)),
    ),
    "wiener": ({"noise": 0.01}, lambda s, noise: s**3 / (s * s + noise)),
    "clip": ({"limit": 0.3}, lambda s, limit: np.minimum(s, limit)),
    "log": ({"scale": 10.0}, lambda s, scale: np.log1p(scale * s)),
}


@dataclass(frozen=True)
class SpectralMap:
    """A transfer function f of the singular values, in a unit u: G = U diag(σ) Vᵀ becomes U diag(f(σ/u)) Vᵀ.

    ``name`` and ``parameters`` (see `FUNCTIONS`, with their defaults):

        spectral_newton   x/(x^alpha + damping)             soft_threshold   max(x − threshold, 0)
        polar             x/√(x² + floor²)                  hard_threshold   x/(1 + e^{−(x − threshold)/width})
        power             x (x² + floor²)^{(exponent−1)/2}  wiener           x³/(x² + noise)
        log               log(1 + scale·x)                  clip             min(x, limit)

    ``unit``: ``absolute`` 1, ``spectral`` σ_max, ``rms`` the root mean square of the min(m, n) singular values,
    ``frobenius`` ‖G‖_F. Or give ``function``, vectorised over float64 arrays, with any ``name``.

    Raises:
        ValueError: an unknown name, parameter or unit.
    """

    name: str
    parameters: tuple[tuple[str, float], ...] = ()
    unit: str = "absolute"
    function: Callable[[Array], Any] | None = None

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ValueError(f"unit of the map {self.name!r} must be one of {UNITS}, not {self.unit!r}")
        if self.function is None:
            if self.name not in FUNCTIONS:
                raise ValueError(
                    f"no spectral map is called {self.name!r}: use one of {tuple(FUNCTIONS)}, or function="
                )
            known = FUNCTIONS[self.name][0]
            for key, value in self.parameters:
                if key not in known:
                    raise ValueError(f"the map {self.name!r} has no parameter {key!r}: it has {tuple(known)}")
                if not 0.0 < value < math.inf:
                    raise ValueError(f"{key} of the map {self.name!r} must be positive and finite, not {value!r}")

    @classmethod
    def named(cls, name: str, unit: str = "absolute", **parameters: float) -> SpectralMap:
        """``SpectralMap.named("power", exponent=0.25)``."""
        return cls(name, tuple(sorted((key, float(value)) for key, value in parameters.items())), unit)

    def __call__(self, x: Array) -> Array:
        """f(x), elementwise in float64."""
        x = np.asarray(x, dtype=np.float64)
        if self.function is not None:
            return np.asarray(self.function(x), dtype=np.float64)
        defaults, function = FUNCTIONS[self.name]
        return np.asarray(function(x, **{**defaults, **dict(self.parameters)}))

    def to_dict(self) -> dict[str, Any]:
        """What a state dict holds. ValueError for a callable, which it cannot hold."""
        if self.function is not None:
            raise ValueError(
                f"the map {self.name!r} is a callable, which a state dict cannot hold: give it again on load"
            )
        return {"name": self.name, "parameters": dict(self.parameters), "unit": self.unit}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> SpectralMap:
        """The inverse of `to_dict`."""
        return cls.named(state["name"], state["unit"], **state["parameters"])


@dataclass(frozen=True)
class MapFit:
    """f(x) ≈ t r(t²) on 0 ≤ x ≤ bound, t = x/bound."""

    bound: float
    constant: float
    poles: tuple[float, ...]
    residues: tuple[float, ...]
    pairs: tuple[tuple[complex, complex], ...]
    error: float
    """Bound on |t r(t²) − f(x)| / max f on a dense grid of [0, bound]."""
    form: int = 0
    quadratic: float | None = None
    pair: tuple[float, float] = (0.0, 0.0)

    def __call__(self, x: Array) -> Array:
        """The approximation of f at x."""
        t = np.asarray(x, dtype=np.float64) / self.bound
        r = self.constant + sum(r / (t * t + p) for p, r in zip(self.poles, self.residues))
        return np.asarray(t * (r + sum(2 * (rho / (t * t - zeta)).real for zeta, rho in self.pairs)))


@lru_cache(maxsize=256)
def fit_map(f: SpectralMap, bound: float, tolerance: float) -> MapFit:
    """Few poles with |error| ≤ tolerance · max f on [0, bound]. Cached.

    Raises:
        ValueError: f is not finite, changes sign, is negative, does not vanish at 0, or needs more than 40 terms.
    """
    from scipy.interpolate import AAA  # takes a third of a second to import, and few programs fit a map

    t = np.concatenate([[0.0], np.geomspace(1e-9, 1.0, 9000), np.linspace(0.0, 1.0, 9001)[1:]])
    with np.errstate(all="ignore"):
        v = f(bound * t)
    if v.shape != t.shape:
        raise ValueError(f"the map {f.name!r} returned shape {v.shape} for {t.shape}: it must work elementwise")
    _check_map(f, bound * t, v, tolerance)
    largest = float(v.max())
    small = t[v > 0.25 * tolerance * largest].min()  # below, f and σ r(σ²) are both too small to matter
    s = np.unique(np.concatenate([np.geomspace(max(0.5 * small, 1e-8), 1.0, 500), np.linspace(small, 1.0, 400)]))
    values = f(bound * s) / largest
    best = math.inf
    for terms in range(1, MAX_TERMS + 1):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            poles = AAA(s * s, values / s, max_terms=terms, rtol=1e-14).poles()
        fit = _with_poles(f, bound, largest, poles, t, v, tolerance)
        best = min(best, fit.error)
        if fit.error <= FIT_SHARE * tolerance:
            return fit
    raise ValueError(
        f"the map {f.name!r} needs more than {MAX_TERMS} poles for an error of {tolerance:g} of its maximum on "
        f"[0, {bound:.3g}] ({best:.1e} was reached): ask for a larger tolerance, or smooth its kinks"
    )


def _check_map(f: SpectralMap, x: Array, v: Array, tolerance: float) -> None:
    bad = ~np.isfinite(v)
    if bad.any():
        raise ValueError(f"the map {f.name!r} has a pole or is not finite at σ = {x[bad][0]:.3g}")
    if v.min() < -1e-12 * np.abs(v).max():
        what = "changes sign" if v.max() > 0 else "is negative"
        raise ValueError(
            f"the map {f.name!r} {what} at σ = {x[v < 0][0]:.3g}: it must be positive on (0, {x.max():.3g}]"
        )
    if not v.max() > 0:
        raise ValueError(f"the map {f.name!r} is zero on (0, {x.max():.3g}]")
    if v[0] > tolerance * v.max() or v[1] > 0.25 * tolerance * v.max():
        raise ValueError(
            f"the map {f.name!r} does not vanish at σ = 0, where the singular vectors are not defined: give it a floor "
            "as the map 'polar' has it, σ/√(σ² + floor²)"
        )


def _with_poles(
    f: SpectralMap, bound: float, largest: float, poles: NDArray[Any], t: Array, v: Array, tolerance: float
) -> MapFit:
    """The fit of least maximal error with those of ``poles`` that are usable: not in the range, not next to it."""
    real = poles.real[(np.abs(poles.imag) <= 1e-8 * np.abs(poles)) & (poles.real < -SMALLEST_POLE)]
    pairs = poles[poles.imag > 0.003 * np.abs(poles)]
    pairs = pairs[np.abs(pairs) > SMALLEST_POLE]
    chosen = np.concatenate([np.arange(0, len(t), 12), [len(t) - 1]])
    y, target = t[chosen] ** 2, v[chosen] / largest

    def columns(y: Array) -> Array:
        inverse = np.abs(pairs) / (y[:, None] - pairs)
        return np.column_stack([np.ones_like(y), -real / (y[:, None] - real), 2 * inverse.real, -2 * inverse.imag])

    B = columns(y) * t[chosen, None]
    weights, best, coefficients = np.ones_like(y), math.inf, np.zeros(B.shape[1])
    for _ in range(8):
        found = np.linalg.lstsq(B * weights[:, None], target * weights, rcond=1e-13)[0]
        residual = np.abs(target - B @ found)
        if residual.max() < best:
            best, coefficients = residual.max(), found
        weights = weights * (residual / max(residual.max(), 1e-300) + 0.02) ** 0.3
        weights /= weights.max()
    if best > 2 * tolerance:
        return MapFit(bound, 0.0, (), (), (), float(best))
    everywhere = columns(t * t) * coefficients
    error = np.abs(t * everywhere.sum(1) - v / largest).max()
    if np.abs(t[:, None] * everywhere).max() > 1e3:  # terms that cancel lose digits
        error = math.inf
    scaled = coefficients * largest
    count, many = len(real), len(pairs)
    rho = (scaled[1 + count : 1 + count + many] + 1j * scaled[1 + count + many :]) * np.abs(pairs)
    return MapFit(
        bound,
        float(scaled[0]),
        tuple(map(float, -real)),
        tuple(map(float, -real * scaled[1 : 1 + count])),
        tuple((complex(a), complex(b)) for a, b in zip(pairs, rho)),
        float(error),
    )


def as_map(f: SpectralMap | str | Callable[[Array], Any]) -> SpectralMap:
    """A `SpectralMap` as it is; one by its name with default parameters; a callable in the unit ``absolute``."""
    if isinstance(f, SpectralMap):
        return f
    if isinstance(f, str):
        return SpectralMap(f)
    if callable(f):
        return SpectralMap(getattr(f, "__name__", repr(f)), function=f)
    raise TypeError(f"f must be a SpectralMap, a name or a callable, not {type(f).__name__}")


@overload
def spectral_map(G: Tensor, f: SpectralMap | str | Callable[[Array], Any], tolerance: float = ...) -> Tensor: ...
@overload
def spectral_map(
    G: Sequence[Tensor], f: SpectralMap | str | Callable[[Array], Any], tolerance: float = ...
) -> list[Tensor]: ...
@torch.no_grad()
def spectral_map(
    G: Tensor | Sequence[Tensor], f: SpectralMap | str | Callable[[Array], Any], tolerance: float = 1e-3
) -> Tensor | list[Tensor]:
    """U diag(f(σ_k/u)) Vᵀ for G = U diag(σ) Vᵀ, without a singular value decomposition: Cholesky solves in float64.

    Args:
        G: one matrix (m, n), a batch (…, m, n), or a list; float16, bfloat16, float32 or float64, any strides.
        f: a `SpectralMap`, the name of one, or a callable over float64 arrays (unit ``absolute``).
        tolerance: the largest error of a singular value of the result, in units of max f over [0, B], beside the
            rounding to the dtype of G. B is 1 for ``spectral`` and ``frobenius``, √min(m, n) for ``rms``, and for
            ``absolute`` at most 1.2 times the largest σ of the call, for which the host waits for the device.

    Returns:
        The map of G, of its shape and dtype. Zero matrices give zero; a matrix with a NaN or an infinity gives NaN and
        does not touch the others. No gradient is recorded.

    Raises:
        ValueError, TypeError: as `fit_map` and `SpectralMap`; a tolerance outside [1e-9, 1); G as in `spectral_newton`.
    """
    chosen = as_map(f)
    if not 1e-9 <= tolerance < 1.0:
        raise ValueError(f"tolerance must lie in [1e-9, 1), not {tolerance!r}")
    tensors = [G] if isinstance(G, Tensor) else list(G)
    groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    results = []
    for i, g in enumerate(tensors):
        if not isinstance(g, Tensor) or not g.dtype.is_floating_point or g.dtype.itemsize == 1 or g.ndim < 2:
            raise TypeError(f"G[{i}] must be float16, bfloat16, float32 or float64 with at least two dimensions")
        results.append(torch.empty_like(g, memory_format=torch.contiguous_format))
        if g.numel():
            groups[min(g.shape[-2:]), g.dtype == torch.float64, g.device].append(i)
    for places in groups.values():
        _map_group([tensors[i] for i in places], [results[i] for i in places], chosen, tolerance)
    return results[0] if isinstance(G, Tensor) else results


def _map_group(G: Sequence[Tensor], out: Sequence[Tensor], f: SpectralMap, tolerance: float) -> None:
    """The map of tensors of one small side, into ``out``."""

    def wide(x: Tensor) -> Tensor:
        flat = x.view(-1, *x.shape[-2:]) if x.is_contiguous() else x.reshape(-1, *x.shape[-2:])
        return flat if flat.shape[1] <= flat.shape[2] else flat.mT

    pairs = sorted(((wide(g), wide(o)) for g, o in zip(G, out)), key=lambda pair: pair[0].shape[2])
    matrices = [g for g, _ in pairs]
    n = matrices[0].shape[1]
    accuracy = min(1e-3, 0.2 * tolerance)
    u, norm = units_of(matrices, "rms" if f.unit in ("rms", "frobenius") else "spectral", accuracy)
    u = norm if f.unit == "frobenius" else u
    bound = n**0.5 if f.unit == "rms" else 1.0
    if f.unit == "absolute":
        finite = u[u > 0]
        largest = float(finite.max()) if len(finite) else 1.0
        bound = 2.0 ** (math.ceil(4 * math.log2(largest * (1 + 2 * accuracy))) / 4)
        u = torch.where(u > 0, 1.0, u)
    fit = fit_map(f, bound, tolerance)
    unit = 1 / (torch.where(norm == 0, 1.0, u) * bound)
    apply_rational(pairs, fit, Precision(True, math.inf, True), Scales(unit, 1.0 + 0.0 * norm))


def polar(G: Tensor | Sequence[Tensor], floor: float = 1e-3, tolerance: float = 1e-3) -> Tensor | list[Tensor]:
    """The polar factor U Vᵀ of G = U diag(σ) Vᵀ, regularised: U diag(σ/√(σ² + floor² ‖G‖_F²)) Vᵀ, to ``tolerance``.

    The flat spectrum of Muon without the error of its iteration: σ ≥ 10 floor ‖G‖_F become 1 to half a per cent, σ far
    below floor ‖G‖_F, where U and V are noise, become small. Arguments, result and errors as in `spectral_map`.
    """
    return spectral_map(G, SpectralMap.named("polar", "frobenius", floor=floor), tolerance)  # type: ignore[arg-type]
