"""One row of the landscape: everything the paper defines for one layer."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

import numpy as np

from spectral_ext.landscape.mechanisms import LayerNormDiagnostic, ResidualDiagnostic, SoftmaxDiagnostic
from spectral_ext.landscape.recommendation import Recommendation
from spectral_ext.signal.mechanism_slopes import MechanismSlope
from spectral_ext.signal.noise_spectrum import NoiseLevel
from spectral_ext.signal.own_batch import DataIntervals
from spectral_ext.signal.unrelated import TransferNull
from spectral_ext.signal.verdict import Signal
from spectral_ext.spectra.couillet_hachem import SpectrumPrediction
from spectral_ext.spectra.participation import EffectiveRank
from spectral_ext.spectra.rank_models import COEFFICIENTS, RankModels
from spectral_ext.spectra.regression import Fit
from spectral_ext.spectra.transfer_identity import TransferCheck
from spectral_ext.spectra.weights import WeightSpectrum

_NAN = math.nan


def _none() -> np.ndarray:
    return np.zeros(0)


@dataclass
class DirectionArrays:
    """Per direction, k = 1 … K in decreasing σ; float64 arrays of shape (K,) unless said otherwise.

    Scales: G and h belong to the mean loss; d is B times a hook's gradient, C_A = Σaaᵀ/(B·S), C_δ = Σddᵀ/B (KFC-expand,
    1/(B²S) in the product). χ's magnitude depends on that convention; no exponent does. An array that could not be
    measured is empty.
    """

    sigma: np.ndarray = field(default_factory=_none)
    """Gradient singular values σ_k."""
    h: np.ndarray = field(default_factory=_none)
    """Exact directional curvature h_k; may be ≤ 0."""
    h_gauss_newton: np.ndarray = field(default_factory=_none)
    """Gauss–Newton part of h_k (through the network's Jacobian)."""
    h_standard_error: np.ndarray = field(default_factory=_none)
    """With method ``sampled_gauss_newton``: the standard error of h_k over the draws of labels. h is the Gauss–Newton
    part alone then."""
    h_residual: dict[str, np.ndarray] = field(default_factory=dict)
    """The rest of h_k by mechanism (``norm``, ``softmax``, ``bilinear``, ``activation``, …); with the GN
    part it sums to h.
    """
    h_kron: np.ndarray = field(default_factory=_none)
    """Product of means Φ_kΛ_k = (u'C_δu)(v'C_Av), "PoS"."""
    h_sop: np.ndarray = field(default_factory=_none)
    """Mean over samples and positions of (u·d)²(v·a)², "SoP" (§6.4)."""
    gn_sample: np.ndarray = field(default_factory=_none)
    """mean_b (Σ_s (u·d)(v·a))²: the per-sample (empirical-Fisher) Gauss–Newton form."""
    output_quotient: np.ndarray = field(default_factory=_none)
    """u_k'C_δu_k."""
    input_quotient: np.ndarray = field(default_factory=_none)
    """v_k'C_Av_k."""
    concentration: np.ndarray = field(default_factory=_none)
    """Concentration ratio S·h_sop/h_kron (§6.4): mean of products over product of means, each over samples
    and positions.
    """
    chi: np.ndarray = field(default_factory=_none)
    """Curvature ratio χ_k = h_k/h_kron (the paper's cos²θ_k)."""
    rho_delta: np.ndarray = field(default_factory=_none)
    """ρ_k^δ = u'C_δu / λ_k(C_δ) (Definition 1)."""
    rho_A: np.ndarray = field(default_factory=_none)
    """ρ_k^A = v'C_Av / λ_k(C_A)."""
    Phi: np.ndarray = field(default_factory=_none)
    """Φ_k = ρ_k^δ ρ_k^A."""
    Lambda: np.ndarray = field(default_factory=_none)
    """Λ_k = λ_k(C_δ) λ_k(C_A)."""
    spectrum_delta: np.ndarray = field(default_factory=_none)
    """Largest eigenvalues of C_δ, decreasing: all of them where m is small enough, else the top (see ``notes``)."""
    spectrum_A: np.ndarray = field(default_factory=_none)
    """Largest eigenvalues of C_A, decreasing."""
    sigma_all: np.ndarray = field(default_factory=_none)
    """All min(m, n) singular values of G."""

    @property
    def residual_missing(self) -> bool:
        """Whether h is an estimate of its Gauss–Newton part alone."""
        return len(self.h_standard_error) > 0 and not self.h_residual

    def problem(self) -> str:
        """Which array does not hold one value per direction; "" if all fit."""
        k = len(self.sigma)
        lengths = {f.name: len(getattr(self, f.name)) for f in fields(self) if f.name not in _NOT_PER_DIRECTION}
        lengths |= {f"h_residual[{name!r}]": len(part) for name, part in self.h_residual.items()}
        wrong = [f"{name} has {length}" for name, length in lengths.items() if length not in (0, k)]
        if k and not len(self.h):
            wrong.append("h has none")
        for name in ("sigma", "sigma_all"):
            if bool((getattr(self, name) < 0).any()):
                return f"{name} holds a negative number, which no singular value is"
        return f"sigma has {k} values, but {', '.join(wrong)}" if wrong else ""


_NOT_PER_DIRECTION = ("h_residual", "spectrum_delta", "spectrum_A", "sigma_all")


@dataclass(frozen=True)
class Closure:
    """How far the decomposition of α closes: gaps are α minus the right-hand side."""

    full: float = _NAN
    """α − (β + φ + d log χ/d log σ): zero by algebra; anything else is numerical error."""
    kronecker: float = _NAN
    """α − (β + φ): eq. 2, exact only where h = h_kron; equals d log χ/d log σ."""
    canonical: float = _NAN
    """α − (2 + φ − d log χ/d log σ): eq. 3 as printed, derived for perfect alignment."""


def _empty_fit() -> Fit:
    return Fit.empty("not measured")


@dataclass
class LayerLandscape:
    """One layer. A quantity that could not be measured is an empty fit, NaN or None, and ``notes`` says why."""

    name: str
    kind: str
    shape: tuple[int, int]
    """(m, n): out, in · kernel. Of a family of E matrices, the block-diagonal matrix of them all."""
    depth: int
    """Index among the model's matrices, in order of definition."""
    samples: int = 0
    """B, summed over batches."""
    positions: float = 1.0
    """S, mean number of positions of a sample (1 for Linear on vectors)."""
    arrays: DirectionArrays = field(default_factory=DirectionArrays)

    alpha: Fit = field(default_factory=_empty_fit)
    beta: Fit = field(default_factory=_empty_fit)
    """β = d log Λ/d log σ."""
    phi: Fit = field(default_factory=_empty_fit)
    """φ = d log Φ/d log σ."""
    chi_slope: Fit = field(default_factory=_empty_fit)
    """d log χ/d log σ."""
    closure: Closure = field(default_factory=Closure)
    gamma: Fit = field(default_factory=_empty_fit)
    s: Fit = field(default_factory=_empty_fit)
    transfer: TransferCheck = field(default_factory=lambda: TransferCheck.empty("not measured"))
    """αγ, its error against s and a bootstrap interval."""
    transfer_null: TransferNull | None = None
    """How often a permuted, and a sorted unrelated h has as small an error of s = αγ."""
    s_unrelated: float = _NAN
    """s of an h that is unrelated to σ and scatters as the measured one does around its law."""
    alpha_quartiles: list[Fit] = field(default_factory=list)
    noise_exponent: Fit = field(default_factory=_empty_fit)
    """γ of C_k ∝ h_k^γ, C_k the variance of a sample's gradient along direction k (arXiv 2602.05600)."""
    mechanism_slopes: dict[str, MechanismSlope] = field(default_factory=dict)
    """Part of h → how much it moves α: the slope of h without it."""

    rank_models: RankModels = field(default_factory=lambda: RankModels.empty("not measured"))
    """Laws of σ_k in rank."""
    rank_models_delta: RankModels = field(default_factory=lambda: RankModels.empty("not measured"))
    rank_models_A: RankModels = field(default_factory=lambda: RankModels.empty("not measured"))
    factor_match: str = ""
    """Which factor's law is the gradient's: ``"A"``, ``"delta"``, ``"both"``, ``"neither"``, or "" (App. L)."""
    predicted_law: str = ""
    """The law of σ_k that the factors' effective ranks predict: ``exponential`` or ``lognormal`` (App. L)."""

    pr_curvature: float = _NAN
    """Participation ratio of the positive h_k."""
    pr_gradient: float = _NAN
    """Participation ratio of all singular values of G."""
    zeta_bound: float = _NAN
    """ζ(αγ)²/ζ(2αγ); infinite for αγ ≤ 1 (Theorem 9)."""
    rank_bound: float = _NAN
    """The bound on the curvature's participation ratio under the BIC winner (power law, exponential or log-normal)."""
    effective_rank_delta: EffectiveRank = field(default_factory=EffectiveRank)
    effective_rank_A: EffectiveRank = field(default_factory=EffectiveRank)
    prediction: SpectrumPrediction | None = None
    """Couillet–Hachem prediction of σ from the factor spectra."""
    noise: NoiseLevel | None = None
    """The spectrum of a gradient that is pure noise, from the factors, and how many σ exceed it; without folds."""
    weight: WeightSpectrum | None = None

    r2_h_sigma2: float = _NAN
    r2_gn_sigma2: float = _NAN
    r2_h_gn: float = _NAN
    log_correlation: float = _NAN
    """Pearson correlation of log h_kron and log σ² (App. L)."""

    layer_norm: LayerNormDiagnostic | None = None
    residual: ResidualDiagnostic | None = None
    softmax: SoftmaxDiagnostic | None = None
    recommendation: Recommendation | None = None
    data_intervals: DataIntervals | None = None
    """Of the own-batch α, γ, s, σ_k and h_k over groups of samples; None without ``folds`` or three groups. The
    intervals of the fits themselves are those of a line through K directions."""
    signal: Signal | None = None
    """What holds on other samples: the layer cross-fitted over groups; None where ``folds`` was not asked for."""

    method: str = ""
    """How h was measured."""
    notes: list[str] = field(default_factory=list)
    empty_reason: str = ""
    """Why the row holds no measurement; "" where it does."""

    @property
    def alpha_gamma(self) -> float:
        return self.transfer.alpha_gamma

    @property
    def noise_alpha(self) -> float:
        """2/γ of the noise: the α that a gradient of pure sampling noise has in this layer."""
        return 2 / self.noise_exponent.value if self.noise_exponent.ok and self.noise_exponent.value > 0 else _NAN

    @property
    def weight_tail_below_s(self) -> bool | None:
        """Whether α_weight < s (Corollary 8), judged by both intervals.

        True: the interval of α_weight lies below that of s. False: it lies above. None: they overlap, so that the
        measurement does not decide, or either is missing.
        """
        if self.weight is None or not self.weight.alpha_weight.ok or not self.s.ok:
            return None
        low, high = self.weight.alpha_weight.interval
        if high < self.s.interval[0]:
            return True
        return False if low > self.s.interval[1] else None

    def problem(self) -> str:
        """What in the row does not fit together, for rows from a file; "" if all does."""
        if min(*self.shape, self.depth, self.samples) < 0:
            return f"shape {self.shape}, depth {self.depth} and samples {self.samples} must not be negative"
        if self.prediction is not None and len(self.prediction.sigma) != len(self.arrays.sigma_all):
            return (
                f"prediction.sigma has {len(self.prediction.sigma)} values and arrays.sigma_all "
                f"{len(self.arrays.sigma_all)}"
            )
        for name in ("rank_models", "rank_models_delta", "rank_models_A"):
            models: RankModels = getattr(self, name)
            wanted = {} if not models.best else COEFFICIENTS
            if models.best not in ("", *COEFFICIENTS) or {k: len(v) for k, v in models.coefficients.items()} != wanted:
                return f"{name} does not hold the coefficients of {', '.join(COEFFICIENTS)}"
            if set(models.bic) != set(wanted):
                return f"{name} does not hold a BIC per model"
        return ""

    @property
    def num_nonpositive(self) -> int:
        """How many h_k are ≤ 0."""
        return int((self.arrays.h <= 0).sum())

    @property
    def num_directions(self) -> int:
        """Number of directions measured."""
        return len(self.arrays.sigma)
