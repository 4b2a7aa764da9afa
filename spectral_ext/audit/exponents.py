"""The values of α: abstract, §3, Tables 1 and 2, Appendices A, E and F."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from spectral_ext.audit.frozen import Frozen, Layer, median
from spectral_ext.audit.verdict import Check, Claim, Undecided, decimals, range_check, rounds_to, unfrozen
from spectral_ext.spectra import fit_alpha

TRIANGLE, GAP = "alpha_triangle", "conv_gap_v2"

APPENDIX_E = {  # α at epochs 0, 1, 5, 10, 15, 20
    "conv1": (1.45, 1.83, 1.78, 1.79, 1.79, 1.81),
    "layer2.conv2": (1.85, 1.89, 1.87, 1.99, 1.94, 2.12),
    "layer4.conv2": (1.90, 1.92, 1.98, 1.88, 1.80, 1.90),
    "fc": (1.99, 1.05, 1.33, 1.16, 1.31, 1.57),
}
APPENDIX_F = {"layer2.conv2": (2.07, 2.35, 2.56, 2.59), "layer3.conv2": (2.07, 2.07, 2.79, 1.93)}


def _convolutions(frozen: Frozen, experiment: str) -> list[Layer]:
    return [layer for layer in frozen.triangle(experiment) if layer.is_convolution and not layer.is_head]


def _mean_conv_alpha(frozen: Frozen) -> list[Check]:
    groups = {name: [one.alpha for one in _convolutions(frozen, name)] for name in ("resnet18", "vgg11")}
    means = [float(np.mean(group)) for group in groups.values()]
    text = ", ".join(f"{name} {np.mean(g):.3f} (n = {len(g)})" for name, g in groups.items())
    stated = range_check("the convolutions of the triangle", means, "1.97", "2.17")
    gap = [one.alpha for one in frozen.conv_gap() if not one.is_head]
    other = range_check(
        f"the {len(gap)} convolutions of the conv-gap experiment", [float(np.mean(gap))], "1.97", "2.17"
    )
    return [Check(stated.over, text, stated.holds), other]


def _std_conv_alpha(frozen: Frozen) -> list[Check]:
    spread = [float(np.std([x.alpha for x in _convolutions(frozen, name)], ddof=1)) for name in ("resnet18", "vgg11")]
    return [range_check("the convolutions of ResNet-18 and of VGG-11, each", spread, "0.08", "0.12")]


def _interior(frozen: Frozen) -> list[Check]:
    layers = [one for name in ("resnet18", "vgg11") for one in _convolutions(frozen, name) if not one.is_boundary]
    inside = [x for x in layers if 1.85 <= x.alpha <= 2.15]
    values = [x.alpha for x in layers]
    text = f"{len(inside)} of {len(layers)} inside, median {median(values):.2f}, up to {max(values):.2f}"
    return [Check("the interior convolutions of ResNet-18 and VGG-11", text, len(inside) == len(layers))]


def _power_law_r2(frozen: Frozen) -> list[Check] | Undecided:
    values = [fit_alpha(one.sigma, one.h).r2 for one in _convolutions(frozen, "resnet18")]
    if len(values) < 21:
        span = f"{min(values):.3f} … {max(values):.3f}"
        return Undecided(
            f"{len(values)} of the 21 layers are frozen: log-log R² {span}, median {median(values):.3f}",
            "σ_k and h_k of all 21 layers",
        )
    return [Check(f"{len(values)} layers", f"median {median(values):.3f}", rounds_to(median(values), "0.98"))]


def _head_range(frozen: Frozen) -> list[Check] | Undecided:
    head = next(one for one in frozen.triangle("vgg11") if one.is_head)
    check = range_check("the head of VGG-11, one of the two that the row names", [head.alpha], "1.23", "1.65")
    if not check.holds:
        return [check]
    others = [one for one in (*frozen.triangle("resnet18"), *frozen.conv_gap()) if one.is_head]
    text = " and ".join(f"{one.alpha:.2f}" for one in others)
    return Undecided(
        f"the row names VGG-11 and ResNet-50: VGG-11's head has {head.alpha:.3f}, inside the range, and ResNet-50's is "
        f"not frozen (the two frozen heads of ResNet-18, which the row does not name, have {text})",
        "σ_k and h_k of ResNet-50's head on CIFAR-10",
    )


def _dense(frozen: Frozen) -> Undecided:
    each = ", ".join(f"{row['alpha']:.2f}" for row in frozen.dimension("scaling_test"))
    return Undecided(
        f"the MLP of Table 1 is not frozen; the four MLPs of Appendix I have {each}",
        "σ_k and h_k of the dense layers of Table 1's MLP",
    )


def _mlp_up(frozen: Frozen) -> list[Check]:
    language = frozen.ablation("task_structure", "GPT2_LM")["mlp_up"]
    others = [frozen.ablation("task_structure", "GPT2_Classification")["mlp_up"]]
    others += [frozen.ablation("output_dim", setting)["mlp_up"] for setting in ("CIFAR-10", "CIFAR-100")]
    others += [one for one in frozen.predictions("vit_tiny") if one.name == "vit_mlp_up"]
    others += [one for one in frozen.triangle("gpt2") if one.name.endswith("mlp.0")]

    def check(over: str, layers: list[Layer]) -> Check:
        text = ", ".join(f"{one.experiment} {one.name} {one.alpha:.2f}" for one in layers)
        below = sum(one.alpha < 1 for one in layers)
        return Check(over, f"{below} of {len(layers)} below 1: {text}", below == len(layers))

    return [
        check(f"the {1 + len(others)} frozen up-projections", [language, *others]),
        check("the up-projection of the ablation's language model, the setting of Table 2", [language]),
    ]


def _gpt2_mean(names: Sequence[str], published: str) -> Claim:
    what = "MLP" if "mlp" in names else "output head"

    def check(frozen: Frozen) -> list[Check]:
        kept = [one for one in frozen.triangle("gpt2") if any(name in one.name for name in names)]
        mean = float(np.mean([one.alpha for one in kept]))
        text = f"{mean:.{decimals(published) + 1}f}, from {min(x.alpha for x in kept):.2f}"
        ablation = [x.alpha for name, x in frozen.ablation("task_structure", "GPT2_LM").items() if "mlp" in name]
        over = f"the frozen GPT-2 {what} layers of App. H (n = {len(kept)})"
        checks = [Check(over, text, rounds_to(mean, published))]
        if "mlp" in names:
            other = float(np.mean(ablation))
            over = "the two MLP layers of the ablation's language model"
            checks.append(Check(over, f"{other:.{decimals(published) + 1}f}", rounds_to(other, published)))
        return checks

    return Claim(
        "Table 1", f"GPT-2 {what}: mean α", published, (TRIANGLE, "hypothesis"),
        f"the mean α of the GPT-2 {what} layers rounds to {published}", check,
        "Appendix H prints α = 2.08, 2.04 and 2.02 for GPT-2 layers that Table 1 puts at 1.00 and 4.53",
    )  # fmt: skip


def _attention(frozen: Frozen) -> Undecided:
    layers = frozen.ablation("task_structure", "GPT2_LM")
    each = ", ".join(f"{name} {layers[name].alpha:.2f}" for name in ("attn_qkv", "attn_proj"))
    return Undecided(f"two of the twelve layers are frozen: {each}", "σ_k and h_k of the twelve attention layers")


def _tables_agree(frozen: Frozen) -> list[Check]:
    attention, mlp = round((1.43 + 1.17) / 2, 6), round((0.84 + 1.15) / 2, 6)
    text = f"{attention:.3f} and {mlp:.3f}"
    return [Check("the means of Table 2's own rows", text, rounds_to(attention, "1.30") and rounds_to(mlp, "1.00"))]


def _transformers_at_one(frozen: Frozen) -> list[Check]:
    triangle = [one for one in frozen.triangle("gpt2") if not one.is_head]
    ablation = list(frozen.ablation("task_structure", "GPT2_LM").values())
    vit = [one for one in frozen.predictions("vit_tiny") if one.name != "vit_patch_embed"]

    def check(over: str, layers: list[Layer]) -> Check:
        values = [one.alpha for one in layers]
        near = sum(rounds_to(v, "1") for v in values)
        return Check(over, f"{near} of {len(values)} round to 1, median {median(values):.2f}", near == len(values))

    return [
        check(
            f"all {len(triangle) + len(ablation) + len(vit)} frozen transformer layers", [*triangle, *ablation, *vit]
        ),
        check("the four layers of the ablation's language model", ablation),
    ]


def _dynamics(frozen: Frozen) -> list[Check]:
    convolutions = {name: row for name, row in APPENDIX_E.items() if name != "fc"}
    change = {name: round(abs(row[-1] - 2) - abs(row[0] - 2), 6) for name, row in convolutions.items()}
    nearer, equal, farther = (
        [name for name, moved in change.items() if wanted(moved)]
        for wanted in (lambda x: x < 0, lambda x: x == 0, lambda x: x > 0)
    )
    near = all(rounds_to(value, "2") for row in convolutions.values() for value in row[2:])
    ties = f" ({', '.join(equal)}, undecided at two digits)" if equal else ""
    text = f"epoch 20 against epoch 0: {len(nearer)} nearer to 2, {len(equal)} equal{ties}, {len(farther)} farther"
    return [Check("the appendix's own printed table", text, near and not farther)]


def _fc_decreases(frozen: Frozen) -> list[Check]:
    row = APPENDIX_E["fc"]
    return [
        Check(
            "every step of the appendix's own table", ", ".join(map(str, row)), all(a >= b for a, b in pairwise(row))
        ),
        Check("the first and the last epoch", f"{row[0]} to {row[-1]}", row[-1] < row[0]),
    ]


def _emerges(frozen: Frozen) -> list[Check]:
    start = {name: row[0] for name, row in APPENDIX_E.items() if name != "fc"}
    text = ", ".join(f"{name} {value}" for name, value in start.items())
    return [
        Check("the appendix's three convolutions at epoch 0", text, all(rounds_to(v, "1.5") for v in start.values())),
    ]


def _quartiles(frozen: Frozen) -> Undecided:
    spans = ", ".join(f"{name} {max(row) - min(row):.2f}" for name, row in APPENDIX_F.items())
    fits = [fit_alpha(one.sigma[10:], one.h[10:]) for one in _convolutions(frozen, "resnet18")]
    half = median([(fit.interval[1] - fit.interval[0]) / 2 for fit in fits])
    return Undecided(
        f"the paper states no tolerance and no error: α spans {spans} over the quarters, as much as the differences "
        f"of 0.50 to 0.86 that App. C reads as effects, but the 95 % interval of α from ten directions is ± {half:.2f} "
        f"(median over the lower half of {len(fits)} frozen convolutions)",
        "σ_k and h_k of the 50 directions of both layers, and the difference between quarters that counts as stable",
    )


CLAIMS = (
    Claim("Table 1", "ResNet-18 / VGG-11, CIFAR-10: mean α of the convolutions", "1.97–2.17", (TRIANGLE, GAP),
          "the mean α of the convolutions of each network lies in 1.97–2.17", _mean_conv_alpha),
    Claim("Table 1", "the same: standard deviation", "0.08–0.12", (TRIANGLE,),
          "the standard deviation of α over the convolutions of each network lies in 0.08–0.12", _std_conv_alpha),
    Claim("Fig. 2", "interior convolutions cluster in α ∈ [1.85, 2.15]", "1.85–2.15", (TRIANGLE,),
          "every interior convolution has α in [1.85, 2.15]", _interior),
    Claim("§3", "R² of h ∝ σ², median over ResNet-18 layers", "0.98", (TRIANGLE,),
          "the median R² over the 21 layers rounds to 0.98", _power_law_r2,
          "Appendix A gives 0.998 for the same layers, as a linear R²"),
    Claim("Table 1", "pure MLP, dense layers: mean α", "2.18", ("intrinsic_dim",),
          "the mean α of its layers rounds to 2.18", _dense),
    Claim("Table 1", "FC classifier, CIFAR-10: α", "1.23–1.65", (TRIANGLE, GAP),
          "α of the heads of VGG-11 and ResNet-50 lies in 1.23–1.65", _head_range),
    Claim("Table 1", "GPT-2 attention: mean α", "1.30", ("hypothesis",),
          "the mean α of the twelve layers rounds to 1.30", _attention),
    Claim("Tables 1, 2", "the GPT-2 means of Table 1 follow from Table 2", "1.30, 1.00", (),
          "the means of Table 2's rows round to the entries of Table 1", _tables_agree, by_construction=True),
    _gpt2_mean(("mlp",), "1.00"),
    _gpt2_mean(("output_head",), "4.53"),
    Claim("Abstract, §3", "transformer layers cluster near α ≈ 1", "≈ 1", (TRIANGLE, "hypothesis", "predictions"),
          "α of every transformer layer rounds to 1", _transformers_at_one),
    Claim("Abstract, §6.2, Table 2", "MLP up-projections have α < 1", "< 1; 0.84, from 0.69 to 1.04",
          (TRIANGLE, "hypothesis", "predictions"), "every MLP up-projection has α < 1", _mlp_up,
          "The range that Table 2 prints already reaches 1.04"),
    unfrozen("Table 1", "ResNet-50, Tiny-ImageNet: 49 convolutions, and the head", "1.94, 0.90",
             "no α of this network is frozen", "σ_k and h_k of the 50 layers"),
    unfrozen("Table 1", "ResNet-50, ImageNet-1K: 14 convolutions, and the head", "2.10, 2.83",
             "no result on ImageNet-1K is frozen", "σ_k and h_k of the 15 layers"),
    unfrozen("Table 2", "GPT-2 layers by type: means, ranges, n = 6 each", "1.43, 1.17, 0.84, 1.15",
             "of the six layers of each type one is frozen (GPT2_LM)", "σ_k and h_k of the 24 layers"),
    unfrozen("§2", "finite differences give R² ≈ 0.17 and 50 % spurious negatives", "0.17, 50 %",
             "no such run is frozen", "h_k by finite differences, with their step and precision, beside h_k by HVP"),
    unfrozen("App. A", "R²(h, σ²), R²(h_GN, σ²), R²(h, h_GN)", "0.998, 0.992, 0.996",
             "no h_GN is frozen, and σ and h of only 10 of the 21 layers", "σ_k, h_k and h_GN of the 21 layers"),
    Claim("App. E", "convolutions converge to α ≈ 2 in training", "E0–E20", (),
          "α of every convolution rounds to 2 from epoch 5 on, and none ends farther from 2 than it began", _dynamics),
    Claim("App. E", "FC layers decrease as softmax concentration develops", "1.99 → 1.57", (),
          "α of the FC layer never rises from one printed epoch to the next", _fc_decreases),
    Claim("§3", "α emerges from about 1.5 at initialization", "~1.5", (),
          "α of every printed convolution rounds to 1.5 at epoch 0", _emerges),
    Claim("§3, App. F", "α is stable across quartiles of k", "stable", (TRIANGLE,), "", _quartiles),
)  # fmt: skip
