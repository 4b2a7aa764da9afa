"""Rank profiles of the gradient: §8 (Figure 6), Appendices G, K and L."""

from __future__ import annotations

from collections import Counter

from spectral_ext.audit.frozen import Frozen
from spectral_ext.audit.verdict import Check, Claim, unfrozen
from spectral_ext.spectra import fit_rank_models

MODELS = ("power_law", "exponential", "lognormal")
APPENDIX_K = {0: (2, 2, 11), 5: (2, 3, 10), 10: (3, 3, 9), 15: (5, 5, 5), 20: (6, 4, 5), 25: (4, 5, 6)}


def _counts(winners: Counter[str]) -> tuple[int, ...]:
    return tuple(winners.get(model, 0) for model in MODELS)


def _slashes(counts: tuple[int, ...]) -> str:
    return " / ".join(map(str, counts))


def _cifar(frozen: Frozen) -> list[Check]:
    counts = _counts(Counter(fit_rank_models(one.sigma).best for one in frozen.triangle()))
    return [Check("our own BIC on the raw σ of 24 layers", _slashes(counts), counts == (1, 2, 21))]


def _bic(frozen: Frozen) -> list[Check]:
    raw = {(one.experiment, one.name): one.sigma for one in frozen.triangle()}
    stored = frozen.load("model_fit_comparison")["layers"]
    gaps = [
        abs(fit_rank_models(raw[row["experiment"], row["name"]]).bic[model] - row["fits"][model]["bic"])
        for row in stored
        for model in MODELS
    ]
    return [Check(f"{len(gaps)} values of BIC", f"largest difference {max(gaps):.0e}", max(gaps) <= 1e-10)]


def _tiny(phase: str, published: tuple[int, ...]) -> Claim:
    def check(frozen: Frozen) -> list[Check]:
        rows = frozen.load("depth_scaling")["rmt"]["rows"]
        counts = _counts(Counter(row["best_model_bic"] for row in rows if row["phase"] == phase))
        return [Check("the stored winners (no raw σ is frozen)", _slashes(counts), counts == published)]

    requires = "the stored winners of the 54 layers have the printed counts"
    what = f"Tiny-ImageNet {phase}, 54 layers: winners"
    return Claim("App. G", what, _slashes(published), ("depth_scaling",), requires, check)


def _trajectory(frozen: Frozen) -> dict[int, tuple[int, ...]]:
    return {row["epoch"]: _counts(Counter(row["wins"])) for row in frozen.load("depth_scaling")["trajectory_wins"]}


def _exponential_growth(frozen: Frozen) -> list[Check]:
    wins = _trajectory(frozen)
    text = f"{wins[0][1]} at epoch 0, {wins[25][1]} at epoch 25"
    return [Check("the stored trajectory of ResNet-50", text, (wins[0][1], wins[25][1]) == (6, 15))]


def _two_starts(frozen: Frozen) -> list[Check]:
    rows = frozen.load("depth_scaling")["rmt"]["rows"]
    table = _counts(Counter(row["best_model_bic"] for row in rows if row["phase"] == "init"))
    start = _trajectory(frozen)[0]
    return [Check("the two frozen records of epoch 0", f"{_slashes(table)} and {_slashes(start)}", table == start)]


def _resnet_peak(frozen: Frozen) -> list[Check]:
    wins = _trajectory(frozen)
    peak = max(wins, key=lambda epoch: wins[epoch][0])
    text = f"power law peaks at epoch {peak} ({wins[peak][0]} of 54)"
    lowest = min(wins, key=lambda epoch: wins[epoch][2])
    return [
        Check("the power-law wins", text, peak <= 5),
        Check("the log-normal wins", f"lowest at epoch {lowest} ({wins[lowest][2]} of 54)", lowest <= 5),
    ]


def _vgg(frozen: Frozen) -> dict[int, tuple[int, ...]]:
    """Winners by epoch, from the stored BIC of each layer."""
    return {
        row["epoch"]: _counts(Counter(min(one["bic"], key=one["bic"].get) for one in row["layers"]))
        for row in frozen.load("vgg16_trajectory")["trajectory"]
    }


def _vgg_row(epoch: int, published: tuple[int, ...]) -> Claim:
    def check(frozen: Frozen) -> list[Check]:
        counts = _vgg(frozen)[epoch]
        return [Check("15 layers, from their stored BIC", _slashes(counts), counts == published)]

    requires = "the model of lowest stored BIC has the printed counts over the 15 layers"
    what = f"VGG-16, epoch {epoch}: winners"
    return Claim("App. K", what, _slashes(published), ("vgg16_trajectory",), requires, check)


def _vgg_transition(frozen: Frozen) -> list[Check]:
    late = {epoch: counts for epoch, counts in _vgg(frozen).items() if epoch >= 15}
    text = ", ".join(f"epoch {epoch}: {counts[2]} of {sum(counts)} log-normal" for epoch, counts in late.items())
    ended = [2 * counts[2] < sum(counts) for counts in late.values()]
    return [Check("epochs 15 to 25: log-normal has lost its majority", text, all(ended))]


def _vgg_peak(frozen: Frozen) -> list[Check]:
    wins = _vgg(frozen)
    peak = max(wins, key=lambda epoch: wins[epoch][0])
    return [Check("the stored trajectory", f"epoch {peak}, {wins[peak][0]} of 15", 15 <= peak <= 20)]


def _lognormal_mostly(frozen: Frozen) -> list[Check]:
    fits = [fit_rank_models(one.sigma) for one in frozen.triangle()]
    wins = sum(fit.best == "lognormal" for fit in fits)
    clear = sum(fit.best == "lognormal" and fit.margin > 2 for fit in fits)
    return [Check("24 layers", f"{wins} of 24 ({clear} by more than 2)", 2 * wins > len(fits))]


CLAIMS = (
    Claim("App. G", "the stored BIC values follow from the raw σ", "24 × 3 values",
          ("model_fit_comparison", "alpha_triangle"), "every BIC that we fit equals the stored one to 1e-10", _bic),
    Claim("App. G", "CIFAR-10 triangle, 24 layers: winners", "1 / 2 / 21", ("alpha_triangle",),
          "our BIC gives the counts 1 / 2 / 21", _cifar),
    Claim("§8", "BIC favours log-normal on most CIFAR layers", "most", ("alpha_triangle",),
          "log-normal has the lowest BIC in more than half of the layers", _lognormal_mostly),
    _tiny("init", (12, 3, 39)),
    _tiny("trained", (0, 15, 39)),
    Claim("App. G", "exponential wins grow from epoch 0 to 25", "6 → 15", ("depth_scaling",),
          "the stored trajectory has 6 exponential layers at epoch 0 and 15 at epoch 25", _exponential_growth),
    Claim("App. G", "its table and its text agree on epoch 0", "3 and 6 exponential", ("depth_scaling",),
          "both frozen records of epoch 0 have the same counts", _two_starts),
    Claim("§8", "ResNet-50: the transition peaks by epoch 5", "≤ 5", ("depth_scaling",),
          "the power-law wins of the stored trajectory are highest at epoch 5 or before", _resnet_peak),
    *(_vgg_row(epoch, counts) for epoch, counts in APPENDIX_K.items()),
    Claim("§8, App. K", "VGG-16 ends in a mixed power-law/exponential regime", "by epoch 15–25",
          ("vgg16_trajectory",), "log-normal has less than half of the layers at every epoch from 15 on",
          _vgg_transition),
    Claim("App. K", "VGG-16: power law peaks at epoch 15–20", "15–20", ("vgg16_trajectory",),
          "the power-law wins are highest at epoch 15 or 20", _vgg_peak),
    unfrozen("App. L", "correlation of log h_Kron and log σ², factor-to-gradient match, effective ranks",
             "0.974, 87 %, 4.7, 19.4", "no Kronecker factor and no spectrum of these 15 layers is frozen",
             "σ_k, h_Kron and the eigenvalues of C_δ and C_A of the 15 layers"),
)  # fmt: skip
