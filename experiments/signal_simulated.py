"""Error rates and coverage of the signal tests where the truth is known, with enough draws to tell.

1. Data intervals: a law h = σ² whose residuals differ between groups, independent, AR(1), with a common factor, or with
   a spread that differs over the directions or over the groups. Coverage of the jackknife of the own-batch α
   (``row.data_intervals``), of the held-out fit (``row.signal.alpha``), and of the least-squares line, at 95 %.
2. Planted signal: a rank-8 gradient in noise at signal-to-noise ratio 3, with curvature c σ_i^1.5 along its directions.
   Where the Hessian has no curvature beside these directions, the angle by which measured directions miss them lowers h
   as σ², and α moves towards 2: the interval then covers the slope along the measured directions, not the planted one.
3. Null: three networks whose population gradient is zero by construction; how often any direction is resolved.

Writes results/signal_simulated.json.

    python experiments/signal_simulated.py [--draws 2000] [--runs 500] [--parts null …]
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from torch import nn

from spectral_ext.signal import cross_fit, fit_alpha_from_groups, own_batch_intervals
from spectral_ext.signal.cross_fitting import top_singular_vectors
from spectral_ext.spectra import FitError, fit_alpha

RESULT = Path(__file__).parent / "results" / "signal_simulated.json"
K = np.arange(1, 21.0)
SIGMA = K**-0.8
KINDS = ("iid", "AR(1) .6", "common factor", "spread over directions", "spread over groups")


def residuals(rng: np.random.Generator, kind: str, groups: int) -> np.ndarray:
    """(J, K) with mean zero; standard deviation 1 but for the two kinds with a spread."""
    e = rng.standard_normal((groups, len(K)))
    if kind == "AR(1) .6":
        for k in range(1, len(K)):
            e[:, k] = 0.6 * e[:, k - 1] + 0.8 * e[:, k]
    elif kind == "common factor":
        e = math.sqrt(0.5) * (e + rng.standard_normal((groups, 1)) * np.linspace(1.4, -1.4, len(K)))
    elif kind == "spread over directions":
        e *= np.linspace(0.2, 2.0, len(K))
    elif kind == "spread over groups":
        e *= np.linspace(0.5, 1.5, groups)[:, None]
    return e


def covers(interval: tuple[float, float], truth: float) -> bool:
    return interval[0] <= truth <= interval[1]


def data_intervals(draws: int, groups: int, seed: int) -> dict:
    found = {}
    for kind in KINDS:
        rng = np.random.default_rng(seed)
        hits = dict.fromkeys(("own batch, of the data", "own batch, of the fit", "held out"), 0)
        fitted = 0
        for _ in range(draws):
            x, y = residuals(rng, kind, groups), residuals(rng, kind, groups)
            sigma = SIGMA * (1 + 0.1 * x)
            h = SIGMA**2 * (1 + 0.3 * (0.5 * x + math.sqrt(0.75) * y))
            hits["own batch, of the data"] += covers(own_batch_intervals(sigma, h).alpha, 2.0)
            hits["own batch, of the fit"] += covers(fit_alpha(sigma.mean(0), h.mean(0)).interval, 2.0)
            try:
                hits["held out"] += covers(fit_alpha_from_groups(sigma, h).interval, 2.0)
                fitted += 1
            except FitError:
                continue
        found[kind] = {key: count / (fitted if key == "held out" else draws) for key, count in hits.items()}
        found[kind]["standard error"] = math.sqrt(0.95 * 0.05 / draws)
    return found


def planted(runs: int, kronecker: bool, groups: int = 8, m: int = 24, n: int = 32, rank: int = 8) -> dict:
    """A rank-8 gradient, its smallest σ three times the edge of the noise, and h = c σ^1.5 along its directions.

    The Hessian is a Kronecker product P ⊗ Q whose eigenvalues go on behind the eighth by the same law, or it has the
    eight directions D_i = u_iv_iᵀ as its only eigenvectors. Each group sees it with a relative error of 30 %.
    """
    rng, generator = np.random.default_rng(1), torch.Generator().manual_seed(1)
    hits, hits_here, fitted, resolved, beyond, values = 0, 0, 0, [], 0, []

    def orthogonal(size: int) -> torch.Tensor:
        return torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator))[0]

    def law(count: int) -> torch.Tensor:
        return 3 * edge * (torch.arange(1, count + 1, dtype=torch.float64) / rank) ** -0.9

    for _ in range(runs):
        U, V = orthogonal(m), orthogonal(n)
        edge = (m**0.5 + n**0.5) / groups**0.5  # largest singular value of the mean's noise
        signal = (U[:, :rank] * law(rank)) @ V[:, :rank].T
        gradients = list(signal + torch.randn(groups, m, n, dtype=torch.float64, generator=generator))
        fit = cross_fit(gradients, top_k=12)
        total, h, exact = sum(gradients), np.zeros((groups, len(fit.sigma))), np.zeros((2, len(fit.sigma)))
        for j, g in enumerate(gradients):
            u, v = top_singular_vectors(total - g, len(fit.sigma))
            left, right = (U.T @ u).square().T, (V.T @ v).square().T
            if kronecker:
                p, q = law(m) ** 0.75, law(n) ** 0.75
                seen = (1 + 0.21 * torch.as_tensor(rng.standard_normal(size)) for size in (m, n))
                h[j] = ((left @ (p * next(seen))) * (right @ (q * next(seen)))).numpy()
                exact[1] += ((left @ p) * (right @ q)).numpy()
            else:
                overlap = ((U[:, :rank].T @ u) * (V[:, :rank].T @ v)).square().T
                h[j] = (overlap @ (law(rank) ** 1.5 * (1 + 0.3 * torch.as_tensor(rng.standard_normal(rank))))).numpy()
                exact[1] += (overlap @ law(rank) ** 1.5).numpy()
            exact[0] += ((signal @ v) * u).sum(0).numpy()
        resolved.append(int(fit.resolved[:rank].sum()))
        beyond += bool(fit.resolved[rank:].any())
        try:
            alpha = fit_alpha_from_groups(fit.folds[:, fit.resolved], h[:, fit.resolved])
        except FitError:
            continue
        fitted += 1
        values.append(alpha.value)
        hits += covers(alpha.interval, 1.5)
        hits_here += covers(alpha.interval, fit_alpha(*exact[:, fit.resolved]).value)
    return {
        "runs": runs,
        "share with at least 7 of 8 resolved": float(np.mean(np.array(resolved) >= 7)),
        "fewest resolved": min(resolved),
        "share with a false direction": beyond / runs,
        "fits": fitted,
        "mean alpha": float(np.mean(values)),
        "coverage of the planted alpha": hits / fitted,
        "coverage of the exact slope along the measured directions": hits_here / fitted,
        "standard error": math.sqrt(0.95 * 0.05 / fitted),
    }


class Convolution(nn.Module):
    """A convolution, averaged over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).mean((2, 3))


def null(runs: int, groups: int = 8) -> dict:
    """Targets are the network's own output plus noise that is independent of the input: E[gradient] = 0."""
    torch.manual_seed(3)
    nets = {
        "linear": nn.Linear(12, 8, bias=False),
        "MLP": nn.Sequential(nn.Linear(12, 10, bias=False), nn.Tanh(), nn.Linear(10, 8, bias=False)),
        "convolution": Convolution(),
    }
    found = {}
    for kind, net in nets.items():
        net.double()
        weight = next(net.parameters())
        shape = (3, 5, 5) if kind == "convolution" else (12,)
        scale = torch.arange(1, shape[-1] + 1, dtype=torch.float64) ** -0.5
        clean = 0
        for _ in range(runs):
            gradients = []
            for _ in range(groups):
                x = torch.randn(24, *shape, dtype=torch.float64) * scale
                output = net(x)
                spread = torch.arange(1, output.shape[1] + 1) ** -0.5
                target = output.detach() + torch.randn_like(output) * spread
                loss = (output - target).square().sum(1).mean() / 2
                gradients.append(torch.autograd.grad(loss, weight)[0].flatten(1))
            clean += cross_fit(gradients, top_k=6).num_resolved == 0
        found[kind] = {"runs": runs, "share without a resolved direction": clean / runs}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--parts", nargs="*", help="names of the parts to run, for instance null; others are kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    parts = {
        "draws": lambda: options.draws,
        "coverage at .95, 8 groups": lambda: data_intervals(options.draws, 8, seed=1),
        "planted, Kronecker Hessian": lambda: planted(options.runs, True),
        "planted, Hessian of rank 8": lambda: planted(options.runs, False),
        "null": lambda: null(options.runs),
    }
    found = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for name in options.parts or parts:
        found[name] = parts[name]()
        print(name, json.dumps(found[name], indent=1), flush=True)
        RESULT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
