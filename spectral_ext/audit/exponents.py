"""The values of α: abstract, §3, Tables 1 and 2, Appendices A, E and F."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from spectral_ext.audit.frozen import Frozen, Layer, median
from spectral_ext.audit.verdict import Check, Claim, decimals, range_check, rounds_to, unfrozen
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
    layers = [
        one
        for name in ("resnet18", "vgg11")
        for one in _convolutions(frozen, name)
        if one.name not in ("conv1", "features.0")
    ]
    inside = [x for x in layers if 1.85 <= x.alpha <= 2.15]
    values = [x.alpha for x in layers]
    text = f"{len(inside)} of {len(layers)} inside, median {median(values):.2f}, up to {max(values):.2f}"
    return [Check("the interior convolutions of ResNet-18 and VGG-11", text, len(inside) == len(layers))]


def _power_law_r2(frozen: Frozen) -> list[Check] | str:
    values = [fit_alpha(one.sigma, one.h).r2 for one in _convolutions(frozen, "resnet18")]
    if len(values) < 21:
        span = f"{min(values):.3f} … {max(values):.3f}"
        return f"{len(values)} of the 21 layers are frozen: log-log R² {span}, median {median(values):.3f}"
    return [Check(f"{len(values)} layers", f"median {median(values):.3f}", rounds_to(median(values), "0.98"))]


def _head_range(frozen: Frozen) -> list[Check]:
    heads = [x for name in ("resnet18", "vgg11") for x in frozen.triangle(name) if x.is_head]
    heads += [x for x in frozen.conv_gap() if x.is_head]
    vgg = [x for x in heads if x.experiment == "vgg11_triangle"]
    return [
        range_check("the CIFAR-10 heads of ResNet-18 and VGG-11", [x.alpha for x in heads], "1.23", "1.65"),
        range_check(
            "the VGG-11 head alone (the row names VGG-11 and ResNet-50)", [x.alpha for x in vgg], "1.23", "1.65"
        ),
    ]


def _dense(frozen: Frozen) -> str:
    each = ", ".join(f"{row['alpha']:.2f}" for row in frozen.dimension("scaling_test"))
    return f"the MLP of Table 1 is not frozen; the four MLPs of Appendix I have {each}"


def _gpt2_mean(names: Sequence[str], published: str) -> Claim:
    def check(frozen: Frozen) -> list[Check]:
        kept = [one for one in frozen.triangle("gpt2") if any(name in one.name for name in names)]
        mean = float(np.mean([one.alpha for one in kept]))
        text = f"{mean:.{decimals(published) + 1}f}, from {min(x.alpha for x in kept):.2f}"
        ablation = [x.alpha for name, x in frozen.ablation("task_structure", "GPT2_LM").items() if "mlp" in name]
        checks = [Check(f"the {len(kept)} GPT-2 layers of App. H", text, rounds_to(mean, published))]
        if "mlp" in names:
            other = float(np.mean(ablation))
            over = "the two MLP layers of the ablation's language model"
            checks.append(Check(over, f"{other:.{decimals(published) + 1}f}", rounds_to(other, published)))
        return checks

    what = "MLP" if "mlp" in names else "output head"
    return Claim(
        "Table 1", f"GPT-2 {what}: mean α", published, (TRIANGLE, "hypothesis"), check,
        "Appendix H prints α = 2.08, 2.04 and 2.02 for GPT-2 layers that Table 1 puts at 1.00 and 4.53",
    )  # fmt: skip


def _attention(frozen: Frozen) -> str:
    layers = frozen.ablation("task_structure", "GPT2_LM")
    each = ", ".join(f"{name} {layers[name].alpha:.2f}" for name in ("attn_qkv", "attn_proj"))
    return f"two of the twelve layers are frozen: {each}"


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
    closer = [name for name, row in convolutions.items() if abs(row[-1] - 2) < abs(row[0] - 2)]
    over = "the appendix's own table, |α − 2| at epoch 20 against epoch 0"
    return [
        Check(over, f"smaller in {len(closer)} of {len(convolutions)} layers", len(closer) == len(convolutions)),
    ]


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
        Check("conv1 alone", str(start["conv1"]), rounds_to(start["conv1"], "1.5")),
    ]


def _quartiles(frozen: Frozen) -> list[Check]:
    steady = all(len({round(value) for value in row}) == 1 for row in APPENDIX_F.values())
    text = ", ".join(f"{name} spans {max(row) - min(row):.2f}" for name, row in APPENDIX_F.items())
    return [Check("the appendix's own table: every quarter rounds to the same integer", text, steady)]


CLAIMS = (
    Claim("Table 1", "ResNet-18 / VGG-11, CIFAR-10: mean α of the convolutions", "1.97–2.17", (TRIANGLE, GAP),
          _mean_conv_alpha),
    Claim("Table 1", "the same: standard deviation", "0.08–0.12", (TRIANGLE,), _std_conv_alpha),
    Claim("Fig. 2", "interior convolutions cluster in α ∈ [1.85, 2.15]", "1.85–2.15", (TRIANGLE,), _interior),
    Claim("§3", "R² of h ∝ σ², median over ResNet-18 layers", "0.98", (TRIANGLE,), _power_law_r2,
          "Appendix A gives 0.998 for the same layers, as a linear R²"),
    Claim("Table 1", "pure MLP, dense layers: mean α", "2.18", ("intrinsic_dim",), _dense),
    Claim("Table 1", "FC classifier, CIFAR-10: α", "1.23–1.65", (TRIANGLE, GAP), _head_range),
    Claim("Table 1", "GPT-2 attention: mean α", "1.30", ("hypothesis",), _attention),
    Claim("Tables 1, 2", "the GPT-2 means of Table 1 follow from Table 2", "1.30, 1.00", (), _tables_agree),
    _gpt2_mean(("mlp",), "1.00"),
    _gpt2_mean(("output_head",), "4.53"),
    Claim("Abstract, §3", "transformer layers cluster near α ≈ 1", "≈ 1", (TRIANGLE, "hypothesis", "predictions"),
          _transformers_at_one),
    unfrozen("Table 1", "ResNet-50, Tiny-ImageNet: 49 convolutions, and the head", "1.94, 0.90",
             "no α of this network is frozen"),
    unfrozen("Table 1", "ResNet-50, ImageNet-1K: 14 convolutions, and the head", "2.10, 2.83",
             "no result on ImageNet-1K is frozen"),
    unfrozen("Table 2", "GPT-2 layers by type: means, ranges, n = 6 each", "1.43, 1.17, 0.84, 1.15",
             "24 layers, of which one a type is frozen (GPT2_LM)"),
    unfrozen("§2", "finite differences give R² ≈ 0.17 and 50 % spurious negatives", "0.17, 50 %",
             "no such run is frozen"),
    unfrozen("App. A", "R²(h, σ²), R²(h_GN, σ²), R²(h, h_GN)", "0.998, 0.992, 0.996",
             "no h_GN is frozen, and 10 of the 21 layers"),
    Claim("App. E", "convolutions converge to α ≈ 2 in training", "E0–E20", (), _dynamics),
    Claim("App. E", "FC layers decrease as softmax concentration develops", "1.99 → 1.57", (), _fc_decreases),
    Claim("§3", "α emerges from about 1.5 at initialization", "~1.5", (), _emerges),
    Claim("§3, App. F", "α is stable across quartiles of k", "stable", (), _quartiles),
)  # fmt: skip
