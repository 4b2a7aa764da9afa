"""Mechanisms and controlled ablations: Theorem 3, Proposition 6, §6.5, Appendix C."""

from __future__ import annotations

from spectral_ext.audit.frozen import Frozen, Layer
from spectral_ext.audit.verdict import Check, Claim, rounds_to

FILE = "hypothesis"
VIT, GPT = ("output_dim", "CIFAR-10", "CIFAR-100"), ("task_structure", "GPT2_LM", "GPT2_Classification")
APPENDIX_C = (
    (VIT, "attn_qkv", "2.25", "1.74", "-0.51"),
    (VIT, "mlp_up", "2.12", "1.62", "-0.50"),
    (GPT, "mlp_up", "0.73", "1.59", "0.86"),
    (GPT, "mlp_down", "1.15", "1.85", "0.69"),
)


def _row(group: tuple[str, str, str], name: str, *published: str) -> Claim:
    def check(frozen: Frozen) -> list[Check]:
        before, after = (frozen.ablation(group[0], setting)[name].alpha for setting in group[1:])
        values = (before, after, after - before)
        wrong = [p for v, p in zip(values, published) if not rounds_to(v, p)]
        text = ", ".join(f"{v:.3f}" for v in values) + (f" (not {', '.join(wrong)})" if wrong else "")
        return [Check("15 directions, h > 0", text, not wrong)]

    return Claim("App. C", f"{group[1]} → {group[2]}, {name}: α, α, Δα", ", ".join(published), (FILE,), check)


def _output_dimension(frozen: Frozen) -> list[Check]:
    few, many = (frozen.ablation(VIT[0], setting) for setting in VIT[1:])

    def check(over: str, names: list[str]) -> Check:
        text = ", ".join(f"{name} {few[name].alpha:.2f} → {many[name].alpha:.2f}" for name in names)
        return Check(over, text, all(many[name].alpha < 2 and many[name].alpha < few[name].alpha for name in names))

    return [
        check("all five layers", list(few)),
        check("the four below the head", [name for name in few if name != "head"]),
    ]


def _binary(frozen: Frozen) -> list[Check]:
    before, after = (frozen.ablation(GPT[0], setting) for setting in GPT[1:])
    text = ", ".join(f"{name} {before[name].alpha:.2f} → {after[name].alpha:.2f}" for name in before)
    return [Check("all four layers", text, all(abs(after[n].alpha - 2) < abs(before[n].alpha - 2) for n in before))]


def _vit_two(frozen: Frozen) -> list[Check]:
    first = frozen.predictions("vit_tiny")
    second = list(frozen.ablation(*VIT[:2]).values())

    def check(over: str, layers: list[Layer]) -> Check:
        text = ", ".join(f"{one.name} {one.alpha:.2f}" for one in layers)
        return Check(over, text, all(rounds_to(one.alpha, "2") for one in layers))

    return [
        check("both frozen ViT-Tiny runs", [*first, *second]),
        check("both runs without the head", [one for one in (*first, *second) if not one.is_head]),
    ]


def _heads(frozen: Frozen) -> list[Check]:
    heads = [one for one in [*frozen.triangle(), *frozen.conv_gap()] if one.is_head]
    heads += [frozen.ablation(VIT[0], setting)["head"] for setting in VIT[1:]]
    above = [one for one in heads if one.alpha > 2]
    text = ", ".join(f"{one.experiment} {one.alpha:.2f}" for one in heads)
    return [Check(f"the {len(heads)} frozen softmax heads", text, len(above) == len(heads))]


def _layernorm(frozen: Frozen) -> list[Check]:
    gpt = [one for one in frozen.triangle("gpt2") if "mlp.0" in one.name]
    ablation = [frozen.ablation(GPT[0], GPT[1])[name] for name in ("attn_qkv", "mlp_up")]

    def check(over: str, layers: list[Layer]) -> Check:
        text = ", ".join(f"{one.name} {one.alpha:.2f}" for one in layers)
        return Check(over, text, all(rounds_to(one.alpha, "1") for one in layers))

    return [
        check("the frozen GPT-2 layers that read a LayerNorm", [*gpt, *ablation]),
        check("those of the ablation's language model", ablation),
    ]


def _necessary(frozen: Frozen) -> list[Check]:
    plain = [one for name in ("resnet18", "vgg11") for one in frozen.triangle(name)]
    below = [one for one in plain if one.alpha < 2]
    text = "α < 2 without any LayerNorm: " + ", ".join(f"{one.name} {one.alpha:.2f}" for one in below)
    return [Check(f"the {len(plain)} layers of ResNet-18 and VGG-11", text, not below)]


CLAIMS = (
    *(_row(*row) for row in APPENDIX_C),
    Claim("§6.5", "100 classes pull α below 2", "α < 2", (FILE,), _output_dimension),
    Claim("§6.5", "binary classification raises GPT-2's α toward 2", "toward 2", (FILE,), _binary),
    Claim("§6.5", "ViT-Tiny on CIFAR-10 has LayerNorm, yet α ≈ 2", "≈ 2", (FILE, "predictions"), _vit_two),
    Claim("§6.5", "α < 2 requires LayerNorm and a large output dimension", "α ≥ 2", ("alpha_triangle",), _necessary),
    Claim("Theorem 3", "LayerNorm brings α toward 1", "≈ 1", (FILE, "alpha_triangle"), _layernorm),
    Claim("Proposition 6", "softmax heads have α > 2", "> 2", (FILE, "alpha_triangle", "conv_gap_v2"), _heads),
)  # fmt: skip
