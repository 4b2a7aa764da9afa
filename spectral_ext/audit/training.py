"""Optimizers: Table 3 and Appendix M; and what the text says about itself."""

from __future__ import annotations

import numpy as np

from spectral_ext.audit.frozen import Frozen
from spectral_ext.audit.verdict import Check, Claim, number_check, rounds_to, unfrozen

FILE = "preconditioner_summary"
TABLE_3 = (("ResNet-18 CIFAR-10", "92.7", "93.8", "1.1"), ("ResNet-18 CIFAR-100", "71.5", "75.0", "3.5"),
           ("ResNet-50 CIFAR-100", "72.6", "75.0", "2.4"))  # fmt: skip


def _mean(frozen: Frozen, key: str) -> float:
    return float(np.mean(frozen.load(FILE)["summary"][key]["seeds"]))


def _accuracy(key: str, published: str) -> Claim:
    def check(frozen: Frozen) -> list[Check]:
        seeds = frozen.load(FILE)["summary"][key]["seeds"]
        return [number_check(f"{len(seeds)} seeds", _mean(frozen, key), published)]

    requires = f"the mean of the frozen seeds rounds to {published}"
    return Claim("App. M", f"{key}: mean best accuracy", published, (FILE,), requires, check)


def _gain(key: str, published: str) -> Claim:
    def check(frozen: Frozen) -> list[Check]:
        gain = _mean(frozen, key) - _mean(frozen, "adam_baseline")
        rounded = round(_mean(frozen, key), 2) - round(_mean(frozen, "adam_baseline"), 2)
        return [
            number_check("the means of the seeds", gain, published),
            number_check("the means after rounding to 0.01", round(rounded, 2), published),
        ]

    requires = f"the difference of the two means of the seeds rounds to {published}"
    return Claim("App. M", f"{key}: gain over Adam", f"+{published}", (FILE,), requires, check)


def _within(frozen: Frozen) -> list[Check]:
    names = [name for name in frozen.load(FILE)["summary"] if name != "adam_baseline"]
    gains = {name: _mean(frozen, name) - _mean(frozen, "adam_baseline") for name in names}
    worst = max(gains, key=lambda name: abs(gains[name]))
    value = abs(gains[worst])
    over = f"{len(names)} variants, three seeds each"
    return [Check(over, f"largest {gains[worst]:+.2f} ({worst})", value <= 0.2 or rounds_to(value, "0.2"))]


def _seed_variance(frozen: Frozen) -> list[Check]:
    summary = frozen.load(FILE)["summary"]
    base = np.asarray(summary["adam_baseline"]["seeds"])
    ratios = {
        name: abs(np.mean(row["seeds"]) - base.mean()) / np.std(row["seeds"], ddof=1)
        for name, row in summary.items()
        if name != "adam_baseline"
    }
    worst = max(ratios, key=lambda name: ratios[name])
    over = "each variant: gain over the standard deviation of its seeds"
    return [Check(over, f"at most {ratios[worst]:.2f} ({worst})", ratios[worst] < 1)]


def _table_gain(row: tuple[str, str, str, str]) -> Claim:
    name, adamw, newton, gain = row

    def check(frozen: Frozen) -> list[Check]:
        value = round(float(newton) - float(adamw), 1)
        return [number_check("the table's own two numbers", value, gain, " points")]

    what = f"{name}: printed gain of Spectral Newton over AdamW"
    requires = f"{newton} − {adamw} = {gain}"
    note = "That the printed numbers subtract correctly says nothing about the runs behind them"
    return Claim("Table 3, §7.3", what, f"+{gain} %", (), requires, check, note, by_construction=True)


def _counts(frozen: Frozen) -> list[Check]:
    parts = {n: n + 54 + 14 for n in (19, 20, len(frozen.triangle()))}
    text = "89 and 93 are both printed; " + ", ".join(f"{n} + 54 + 14 = {total}" for n, total in parts.items())
    return [Check("the counts of Appendix H and §7", text, 93 in parts.values())]


CLAIMS = (
    _accuracy("adam_baseline", "93.85"),
    _accuracy("spectral_beta10", "93.90"),
    _accuracy("spectral_beta15", "93.96"),
    _gain("spectral_beta10", "0.05"),
    _gain("spectral_beta15", "0.11"),
    Claim("App. M", "no variant differs from Adam by more than about 0.2 points", "~0.2 %", (FILE,),
          "the mean of every variant lies within 0.2 points, rounded, of Adam's", _within),
    Claim("App. M", "the differences are within seed variance", "within", (FILE,),
          "the gain of every variant is smaller than the standard deviation of its seeds", _seed_variance),
    *(_table_gain(row) for row in TABLE_3),
    unfrozen("Table 3", "Spectral Newton above AdamW at matched epochs", "+1.1, +3.5, +2.4 %",
             "no run behind the table is frozen; it is one seed, without Muon, Shampoo or K-FAC",
             "the accuracies of several seeds of both optimizers, each with its learning rate tuned"),
    unfrozen("§7.3", "a step of Spectral Newton costs about 1.8 times one of Muon", "~1.8×",
             "no timing is frozen, and neither shapes, device nor iterations of the polar decomposition are given",
             "times per step of both optimizers on named shapes and a named device, with their iterations"),
    Claim("Abstract, §1, §7", "s = αγ was validated on 93 layers", "93 (and 89)", ("alpha_triangle",),
          "the layers of the three data sets add up to 93", _counts),
)  # fmt: skip
