"""Plain words: what each number of the report means, and when not to trust it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Term:
    """A quantity of the report."""

    symbol: str
    meaning: str
    beware: str


TERMS = {
    "signal": Term(
        "signal, α held out",
        "Directions are taken from some groups of samples and judged on the others. A direction is resolved if the "
        "gradient of other samples has it too, at an error rate of 5 % over the layer's directions. The held-out α is "
        "the slope over the resolved directions, on samples that had no part in their choice; its interval covers what "
        "other samples and other directions would change.",
        "The own-batch α takes directions, σ and h from the same samples. Where no direction is resolved it describes "
        "the noise of that batch, and noise alone has an α of 2/γ (“α of noise”), often near 2.",
    ),
    "sigma": Term(
        "σₖ, γ",
        "Singular values of the layer's gradient G = UΣVᵀ, largest first. γ is how fast they fall with rank: σₖ ~"
        " k^−γ.",
        "γ is a slope over a window of ranks. Where BIC prefers another law (see “law in rank”), γ changes with top_k.",
    ),
    "h": Term(
        "hₖ",
        "Directional curvature: the second derivative of the mean loss when the weight moves along uₖvₖᵀ. Exact, "
        "all other weights fixed. It is not an eigenvalue of the Hessian.",
        "It may be negative or zero: such directions are counted and left out of logarithmic fits. In train mode,"
        " batch norm changes h.",
    ),
    "alpha": Term(
        "α own batch",
        "Curvature exponent: hₖ ≈ c·σₖ^α over this batch's own directions. α ≈ 2 is what independent samples with "
        "aligned Kronecker factors give, and what sampling noise gives; it says how strongly to damp large singular "
        "values.",
        "Only as good as its R² and interval. Below R² 0.8 h is no clear power of σ; with few directions, or σ "
        "spanning less than a decade, the slope is decided by a few points. The interval is that of the "
        "data where folds have measured it, else that of the fit, which assumes independent residuals.",
    ),
    "decomposition": Term(
        "β, φ, χ",
        "The own-batch α = β + φ + d log χ/d log σ. β: how the factors' eigenvalues fall. φ: how well the gradient's "
        "directions line up with them. χₖ = hₖ/hₖ(Kron): what the Kronecker model misses.",
        "The size of χ depends on the scale convention named below; no slope does. ρₖ compares the k-th direction"
        " with the k-th eigenvalue, so it changes abruptly where two eigenvalues are nearly equal.",
    ),
    "transfer": Term(
        "s, αγ",
        "s is how fast the sorted positive hₖ fall with rank. If both laws were exact, s = αγ, with the own-batch α.",
        "Slopes multiply exactly only where log σ is linear in log k; a small error is partly arithmetic. "
        "“holds”: the bootstrap interval of s − αγ contains 0 and stays within 10 % of s; “not refuted”: it "
        "contains 0 but is wide. “s unrelated” is what sorting alone makes of an h with the same scatter, and “p "
        "sorted” says how often an unrelated sorted h fits the identity as well.",
    ),
    "law": Term(
        "law in rank",
        "Which of power law, exponential and log-normal in rank describes σₖ best, by BIC; ΔBIC is the lead over "
        "the second.",
        "Where the lead is below 2, the data do not decide between the two laws. The winner also depends on how many "
        "ranks are compared.",
    ),
    "participation": Term(
        "PR",
        "Participation ratio (Σx)²/Σx²: how many directions share the total. 1: one direction dominates. Given "
        "for hₖ > 0 and for all σ.",
        "PR of h counts only the measured directions. The zeta bound holds for exact power laws, so a measured PR"
        " above it says that the law is not exact, not that the measurement is wrong.",
    ),
    "concentration": Term(
        "SoP/PoS",
        "Mean of products over product of means of (u·δ)² and (v·a)²: 1 where the two are uncorrelated over "
        "samples and positions, which is what a Kronecker factorisation assumes.",
        "The median over k is shown; single directions scatter widely, above all with few samples.",
    ),
    "split": Term(
        "Gauss–Newton share",
        "h splits exactly into the Gauss–Newton part, which is never negative, and a residual: what "
        "the second derivatives of normalisation, attention, softmax and activations add.",
        "Shares are of absolute values, since residual parts may cancel. Empty where the method that measured h "
        "cannot split.",
    ),
    "factors": Term(
        "effective rank",
        "exp of the spectral entropy of C_δ and C_A: how many of their eigenvalues matter.",
        "Needs all eigenvalues; with fewer samples than dimensions it is bounded by the number of samples.",
    ),
    "weight": Term(
        "α_weight, s_weight",
        "Tail exponent of the density of the eigenvalues of WWᵀ (maximum likelihood), and the slope of these in "
        "rank. Two different things, often confused.",
        "The tail exponent rests on few eigenvalues in small layers.",
    ),
    "advice": Term(
        "advice",
        "α for T(σ; α) = σ/(σ^α + d): the held-out α where the layer was tested, drawn towards 2 by its error; "
        "2 where no law holds on other samples. Further whether a Kronecker preconditioner is justified, and how many "
        "directions carry 95 % of the curvature among those measured.",
        "It describes this layer on this batch at this moment of training. Measure again later, or with another seed.",
    ),
}
