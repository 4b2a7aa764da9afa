"""Theorems of §5 and §7: Theorem 2, the sign in Equation 3, Theorem 7."""

from __future__ import annotations

import numpy as np
from scipy.linalg import hadamard

from spectral_ext.audit.frozen import Frozen, Layer
from spectral_ext.audit.verdict import Check, Claim, rounds_to
from spectral_ext.spectra import fit_alpha, fit_gamma, fit_power_law, fit_s

GAP = "conv_gap_v2"


def counterexample() -> tuple[np.ndarray, np.ndarray]:
    """Errors and activations, (160, 5) each, that meet both conditions of Theorem 2 exactly and have h_k = σ_k.

    δ_ik = c_k s_ik and a_ik = c_k s_ik w_ik with c_k = √r_k and signs s (orthogonal Hadamard columns over eight groups)
    and w (twenty samples per group, mean r_k). Then C_δ = C_A = diag(r), G = diag(r²), and (u_kᵀδ)²(v_kᵀa)² = r_k² for
    every sample: h_k = r_k² = σ_k.
    """
    negative = np.array([1, 3, 5, 7, 9])  # of the twenty w in a group
    c = np.sqrt(1 - negative / 10)
    s = np.repeat(hadamard(8)[:, 1:6], 20, axis=0).astype(np.float64)
    w = np.tile(np.where(np.arange(20)[:, None] < negative, -1.0, 1.0), (8, 1))
    return c * s, c * s * w


def _theorem_two(frozen: Frozen) -> list[Check]:
    errors, activations = counterexample()
    count = len(errors)
    gradient, c_delta, c_a = (x.T @ y / count for x, y in ((errors, activations), (errors, errors), (activations,) * 2))
    off = max(float(np.abs(m - np.diag(np.diag(m))).max()) for m in (gradient, c_delta, c_a))
    squares = errors**2, activations**2
    joint = (squares[0] * squares[1]).mean(0)
    dependence = float(np.abs(joint / (squares[0].mean(0) * squares[1].mean(0)) - 1).max())
    alpha = fit_alpha(np.diag(gradient), joint).value
    over = (
        f"{count} samples built to meet both conditions (off the diagonal at most {off:.0e}, "
        f"mean of products over product of means − 1 at most {dependence:.0e})"
    )
    return [Check(over, f"α = {alpha:.2f}", rounds_to(alpha, "2"))]


def _sign(frozen: Frozen) -> list[Check]:
    def slopes(layer: Layer) -> tuple[float, float]:
        kronecker = np.asarray(layer.stored["h_kron"], dtype=np.float64)
        keep = (layer.h > 0) & (kronecker > 0)
        sigma, exact, kronecker = layer.sigma[keep], layer.h[keep], kronecker[keep]
        missed = fit_power_law(sigma, exact).value - fit_power_law(sigma, kronecker).value
        return missed, fit_power_law(sigma, exact / kronecker).value

    pairs = {one.name: slopes(one) for one in frozen.conv_gap()}
    text = ", ".join(f"{name} {missed:+.2f} with a slope of {slope:+.2f}" for name, (missed, slope) in pairs.items())
    minus = all(abs(missed + slope) < 0.005 for missed, slope in pairs.values())
    return [Check(f"the {len(pairs)} frozen layers, measured α minus the α of h_Kron", text, minus)]


def _transfer(frozen: Frozen) -> list[Check]:
    rank = np.arange(1, 21, dtype=np.float64)
    gaps = []
    for alpha, gamma in ((0.5, 0.7), (2.0, 1.0), (4.5, 1.8)):
        sigma = rank**-gamma
        h = 3 * sigma**alpha
        gaps.append(abs(fit_s(h).value - fit_alpha(sigma, h).value * fit_gamma(sigma).value))
    return [Check("exact power laws over 20 ranks", f"|s − αγ| at most {max(gaps):.0e}", max(gaps) < 1e-10)]


CLAIMS = (
    Claim("Theorem 2", "aligned bases and independent squares give h ∝ σ²", "α = 2", (),
          "every set of samples that meets the two conditions has h_k ∝ σ_k²", _theorem_two,
          "The paper gives no proof. h_k = E[(u_kᵀδ)²]·E[(v_kᵀa)²] follows, but σ_k is the root of that product times "
          "the correlation of u_kᵀδ and v_kᵀa, which the conditions leave free",
          overturn="A third condition in the theorem: u_kᵀδ and v_kᵀa have the same correlation for every k."),
    Claim("Equation 3, §6.2", "a rising cos²θ = h_exact/h_Kron lowers the measured α", "− d log cos²θ / d log σ",
          (GAP,), "the measured α is the α of h_Kron minus d log cos²θ / d log σ", _sign,
          "h_exact = h_Kron·cos²θ, so the slope adds to the measured α. The minus belongs to the α of h_Kron, and only "
          "where h_exact ∝ σ² is assumed",
          overturn="Another definition of the terms: cos²θ as h_Kron/h_exact, or α as the exponent of h_Kron."),
    Claim("Theorem 7", "s = αγ where σ ~ k^(−γ) and h = cσ^α", "s = αγ", (),
          "log h is linear in log σ and log σ in log k, so that the slopes multiply", _transfer,
          "The paper says so itself: “the identity is algebraic”. Evidence can only come from measured layers",
          by_construction=True),
)  # fmt: skip
