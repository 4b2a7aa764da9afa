"""What the journal keeps of a landscape: a dictionary per layer, which the tables and figures read."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import nn

from experiments.networks import GPT, MLP, VGG, ViT
from spectral_ext.landscape import Landscape
from spectral_ext.landscape.row import LayerLandscape
from spectral_ext.signal import Signal, fit_noise_exponent
from spectral_ext.signal.mechanism_slopes import slopes_by_mechanism
from spectral_ext.signal.unrelated import transfer_null
from spectral_ext.spectra.regression import Fit, FitError

NULL_DRAWS = 199


def layer_types(model: nn.Module) -> dict[str, str]:
    """Layer → ``conv``, ``fc``, ``head``, ``qkv``, ``proj``, ``up``, ``down`` or ``patches``."""
    heads = {id(getattr(model, name)) for name in ("fc", "head") if isinstance(getattr(model, name, None), nn.Linear)}
    if isinstance(model, VGG):
        heads = {id(model.classifier[-1])}
    if isinstance(model, MLP):
        heads = {id(model[-1])}
    found = {}
    for name, module in model.named_modules():
        last = name.rsplit(".", 1)[-1]
        if id(module) in heads:
            found[name] = "head"
        elif isinstance(module, nn.Conv2d):
            found[name] = "patches" if isinstance(model, ViT) else "conv"
        elif isinstance(module, nn.Linear):
            found[name] = last if isinstance(model, (ViT, GPT)) else "fc"
    return found


def _fit(fit: Fit) -> list[float]:
    """Value, interval of the fit, R²."""
    return [fit.value, *fit.interval, fit.r2]


def _middle(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else math.nan


def noise_alpha(signal: Signal) -> float:
    """2/γ, the α of a gradient of pure noise, with γ from the variance over the folds; NaN where there is none."""
    if not signal.sigma_folds:
        return math.nan
    try:
        gamma = fit_noise_exponent(np.var(signal.sigma_folds, axis=0, ddof=1), signal.h).value
    except FitError:
        return math.nan
    return 2 / gamma if gamma > 0 else math.nan


def layer_record(row: LayerLandscape, kind: str, *, arrays: bool) -> dict[str, Any]:
    """The numbers of one layer; ``None`` and NaN where there is none. With ``arrays`` also σ_k and h_k."""
    a = row.arrays
    found: dict[str, Any] = {"type": kind, "shape": list(row.shape), "depth": row.depth, "samples": row.samples}
    if row.empty_reason:
        return found | {"empty": row.empty_reason}
    found |= {"alpha": _fit(row.alpha), "gamma": _fit(row.gamma), "s": _fit(row.s), "alpha_gamma": row.alpha_gamma}
    found |= {"transfer": row.transfer.relative_error, "transfer_verdict": row.transfer.verdict}
    found |= {"beta": row.beta.value, "phi": row.phi.value, "chi_slope": row.chi_slope.value}
    found |= {"rank_model": row.rank_models.best, "factor_match": row.factor_match, "predicted": row.predicted_law}
    found |= {"pr_curvature": row.pr_curvature, "pr_gradient": row.pr_gradient, "zeta": row.zeta_bound}
    found |= {"concentration": _middle(a.concentration), "chi": _middle(a.chi)}
    found |= {"chi_hook": _middle(a.chi) * row.samples**2}
    found |= {"r2_h_sigma2": row.r2_h_sigma2, "r2_gn_sigma2": row.r2_gn_sigma2, "r2_h_gn": row.r2_h_gn}
    found |= {"log_correlation": row.log_correlation, "nonpositive": row.num_nonpositive, "directions": len(a.sigma)}
    found |= {"rank_delta": row.effective_rank_delta.entropy, "rank_A": row.effective_rank_A.entropy}
    found |= {"quartiles": [fit.value for fit in row.alpha_quartiles]}
    if row.weight is not None:
        found |= {"weight": [*_fit(row.weight.alpha_weight)[:3], row.weight.alpha_weight.n, row.weight.s_weight.value]}
    if row.layer_norm is not None:
        found |= {"norm_condition": row.layer_norm.condition, "rho_A_slope": row.layer_norm.slope.value}
        found |= {"behind_norm": row.layer_norm.behind_norm}
    if row.softmax is not None:
        found |= {"softmax": [row.softmax.classes, row.softmax.rank, row.softmax.inside, row.softmax.outside]}
    try:
        null = transfer_null(a.sigma, a.h, draws=NULL_DRAWS)
        found |= {"p_permuted": null.p_permuted, "p_sorted": null.p_sorted}
    except FitError:
        pass
    parts = {"gauss_newton": a.h_gauss_newton, **a.h_residual}
    if all(len(part) == len(a.h) for part in parts.values()):
        moves = slopes_by_mechanism(a.sigma, a.h, parts)
        found |= {"mechanisms": {name: [one.shift, one.share] for name, one in moves.items()}}
    if row.data_intervals is not None:
        d = row.data_intervals
        found |= {"alpha_data": list(d.alpha), "gamma_data": list(d.gamma), "s_data": list(d.s)}
    if row.signal is not None:
        one = row.signal
        found |= {"signal": one.verdict, "resolved": [one.resolved, len(one.sigma)], "share": one.median_share}
        found |= {"held_out": [one.alpha.value, *one.alpha.interval], "noise_alpha": noise_alpha(one)}
        found |= {"held_out_fit": list(one.alpha.fit_interval), "held_out_data": list(one.alpha.data_interval)}
    if arrays:
        found |= {"sigma": a.sigma.tolist(), "h": a.h.tolist()}
    return found


def landscape_record(model: nn.Module, landscape: Landscape, *, arrays: bool) -> dict[str, Any]:
    """The loss, and a record per layer."""
    kinds = layer_types(model)
    layers = {name: layer_record(row, kinds.get(name, row.kind), arrays=arrays) for name, row in landscape.items()}
    return {"loss": landscape.meta["loss"], "layers": layers, "skipped": len(landscape.skipped)}


def spectral_drift(before: Landscape, after: Landscape) -> dict[str, list[float]]:
    """Layer → how far the normalised spectra of C_δ and C_A moved between two landscapes: ½ Σ|p_i − q_i|, in [0, 1]."""
    found = {}
    for name in before.keys() & after.keys():
        pair = []
        for which in ("spectrum_delta", "spectrum_A"):
            p, q = (getattr(one[name].arrays, which) for one in (before, after))
            n = min(len(p), len(q))
            known = n > 0 and p[:n].sum() > 0 and q[:n].sum() > 0
            pair.append(float(0.5 * np.abs(p[:n] / p[:n].sum() - q[:n] / q[:n].sum()).sum()) if known else math.nan)
        found[name] = pair
    return found
