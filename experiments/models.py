"""Which models have rows: model families built small from their configurations, each with random weights.

For every family: the share of its matrix parameters (embeddings apart) that have a row in ``measure``, and the largest
relative error of h in float32 against double backward in float64 along the same directions, in evaluation mode, over
all layers: max_k |h_k − h_k⁶⁴| / max_k |h_k⁶⁴| of each layer.

    python -m experiments.models                  # the families whose library is installed
    python -m experiments.models gpt2 resnet18    # some of them
    python -m experiments.models --table          # the table for the documentation, from the results on disk

Results go to ``experiments/results/models.json``, one entry per family; a run replaces the entries that it measures.

One file, although long: it is one table of families.

One file: each family is one entry of a table.
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_ext import directional_curvature, measure
from spectral_ext.layers import find_layers
from spectral_ext.measurement.batches import as_batches, batch_loss, tensors
from spectral_ext.measurement.environment import measurement

RESULTS = Path(__file__).parent / "results" / "models.json"
SIZE = dict(
    vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
    max_position_embeddings=32, bos_token_id=0, eos_token_id=1, pad_token_id=None,
)  # fmt: skip
GROUPED = dict(SIZE, num_key_value_heads=2, head_dim=8)
EXPERTS = dict(GROUPED, num_experts_per_tok=2, experts_implementation="eager")
IMAGE = dict(image_size=32, patch_size=8, num_channels=3)
ENCODER = dict(SIZE, pad_token_id=0, num_labels=3)


@dataclass(frozen=True)
class Family:
    """One model and a batch for it."""

    name: str
    library: str
    build: Callable[[], tuple[nn.Module, Callable[..., Tensor], Any]]


def _first(output: Any) -> Tensor:
    """The logits, or the first floating-point tensor of the output."""
    found = getattr(output, "logits", None)
    return found if found is not None else next(t for t in tensors(output) if t.is_floating_point())


def classification(output: Any, target: Tensor) -> Tensor:
    logits = _first(output)
    return F.cross_entropy(logits if logits.dim() == 2 else logits.flatten(2).mean(2), target)


def next_token(output: Any, batch: Any) -> Tensor:
    logits, ids = _first(output), batch["labels_of_batch"] if "labels_of_batch" in batch else batch["input_ids"]
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def mean_square(output: Any, batch: Any) -> Tensor:
    """For models without a head: the mean square distance of the output from fixed numbers."""
    values = _first(output)
    goal = torch.linspace(-1, 1, values[0].numel(), dtype=values.dtype).cos().view_as(values[0])
    return (values - goal).square().mean()


def tokens() -> dict[str, Tensor]:
    return {"input_ids": torch.randint(2, 40, (4, 8))}


def images(size: int = 32, channels: int = 3) -> tuple[Tensor, Tensor]:
    return torch.randn(4, channels, size, size), torch.randint(3, (4,))


def hf(
    name: str, model: str, config: str, options: dict[str, Any], loss: Callable = next_token, batch: Callable = tokens
) -> Family:
    def build() -> tuple[nn.Module, Callable[..., Tensor], Any]:
        library = importlib.import_module("transformers")
        configured = getattr(library, config)(**options)
        configured._attn_implementation = "eager"
        return getattr(library, model)(configured), loss, batch()

    return Family(name, "transformers", build)


def causal(name: str, prefix: str, **options: Any) -> Family:
    return hf(name, f"{prefix}ForCausalLM", f"{prefix}Config", {**SIZE, **options})


def encoder(name: str, prefix: str, **options: Any) -> Family:
    return hf(
        name, f"{prefix}ForSequenceClassification", f"{prefix}Config", {**ENCODER, **options},
        lambda output, batch: F.cross_entropy(output.logits, torch.arange(4) % 3),
    )  # fmt: skip


def vision(name: str, prefix: str, size: int = 32, **options: Any) -> Family:
    return hf(
        name, f"{prefix}ForImageClassification", f"{prefix}Config", {"num_labels": 3, "image_size": size, **options},
        lambda output, batch: F.cross_entropy(output.logits, torch.arange(4) % 3),
        lambda: {"pixel_values": images(size)[0]},
    )  # fmt: skip


def module(name: str, library: str, make: Callable[[Any], nn.Module], size: int = 32, loss: Any = None) -> Family:
    def build() -> tuple[nn.Module, Callable[..., Tensor], Any]:
        return make(importlib.import_module(library)), loss or classification, images(size)

    return Family(name, library.split(".")[0], build)


class Pooled(nn.Module):
    """A linear head over the mean of a sequence model's output."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.body(x)
        return self.head((z[0] if isinstance(z, tuple) else z).mean(1))


class Seq2Seq(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Transformer(16, 2, 1, 1, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x, x.roll(1, 1)).mean(1))


def sequence(name: str, make: Callable[[], nn.Module], width: int = 16) -> Family:
    def build() -> tuple[nn.Module, Callable[..., Tensor], Any]:
        return Pooled(make(), width), classification, (torch.randn(4, 6, 16), torch.randint(3, (4,)))

    return Family(name, "torch", build)


class Graph(nn.Module):
    """Two graph convolutions over a fixed ring of 12 nodes, and the mean."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second
        ring = torch.arange(12)
        self.register_buffer("edges", torch.stack([ring, ring.roll(1)]))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x, self.edges)), self.edges)


def graph(name: str, layer: str, **options: Any) -> Family:
    def build() -> tuple[nn.Module, Callable[..., Tensor], Any]:
        kind = getattr(importlib.import_module("torch_geometric.nn"), layer)
        model = Graph(kind(8, 16, **options), kind(16, 3, **options))
        return model, F.cross_entropy, (torch.randn(12, 8), torch.randint(3, (12,)))

    return Family(name, "torch_geometric", build)


def diffusion(name: str, make: Callable[[Any], nn.Module], arguments: Callable[[], dict[str, Any]]) -> Family:
    def build() -> tuple[nn.Module, Callable[..., Tensor], Any]:
        return make(importlib.import_module("diffusers")), mean_square, arguments()

    return Family(name, "diffusers", build)


def transformer_encoder() -> nn.Module:
    return nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True), 2, enable_nested_tensor=False
    )


def speech() -> dict[str, Tensor]:
    return {"input_features": torch.randn(4, 8, 16), "decoder_input_ids": torch.randint(2, 40, (4, 6))}


def pairs() -> dict[str, Tensor]:
    return {"input_ids": torch.randint(2, 40, (4, 8)), "decoder_input_ids": torch.randint(2, 40, (4, 8))}


def pictures_and_text() -> dict[str, Tensor]:
    return {"input_ids": torch.randint(2, 40, (4, 8)), "pixel_values": torch.randn(4, 3, 32, 32)}


TOWER = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
FAMILIES = [
    # decoders
    hf("gpt2", "GPT2LMHeadModel", "GPT2Config", dict(vocab_size=40, n_positions=16, n_embd=32, n_layer=2, n_head=4)),
    causal("llama", "Llama", **GROUPED),
    causal("mistral", "Mistral", **GROUPED),
    causal("qwen2", "Qwen2", **GROUPED),
    causal("qwen3", "Qwen3", **GROUPED),
    causal("gemma", "Gemma", **GROUPED),
    causal("gemma2", "Gemma2", **GROUPED),
    causal("phi3", "Phi3", **dict(GROUPED, pad_token_id=0)),
    causal("gpt-neox", "GPTNeoX"),
    causal("opt", "OPT", ffn_dim=48, word_embed_proj_dim=32, pad_token_id=0),
    causal("bloom", "Bloom", n_layer=2, n_head=4),
    causal("falcon", "Falcon"),
    hf("gpt-j", "GPTJForCausalLM", "GPTJConfig",
       dict(vocab_size=40, n_positions=16, n_embd=32, n_layer=2, n_head=4, rotary_dim=8)),
    causal("stablelm", "StableLm", **GROUPED),
    causal("olmo2", "Olmo2", **GROUPED),
    causal("cohere", "Cohere", **GROUPED),
    causal("granite", "Granite", **GROUPED),
    causal("smollm3", "SmolLM3", **GROUPED),
    causal("mamba", "Mamba", state_size=8, conv_kernel=3, time_step_rank=4, use_mambapy=False),
    causal("mixtral", "Mixtral", **dict(EXPERTS, num_local_experts=4)),
    causal("qwen3-moe", "Qwen3Moe", **dict(EXPERTS, num_experts=4, moe_intermediate_size=24)),
    causal("gpt-oss", "GptOss", **dict(EXPERTS, num_local_experts=4)),
    # encoders
    encoder("bert", "Bert"),
    encoder("roberta", "Roberta"),
    encoder("electra", "Electra", embedding_size=32),
    encoder("albert", "Albert", embedding_size=32),
    encoder("deberta-v2", "DebertaV2", relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8),
    encoder("modernbert", "ModernBert"),
    encoder("distilbert", "DistilBert", dim=32, hidden_dim=48, n_layers=2, n_heads=4),
    # encoder and decoder
    hf("t5", "T5ForConditionalGeneration", "T5Config",
       dict(vocab_size=40, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4), batch=pairs),
    hf("bart", "BartForConditionalGeneration", "BartConfig",
       dict(vocab_size=40, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=32),
       batch=pairs),
    hf("whisper", "WhisperForConditionalGeneration", "WhisperConfig",
       dict(vocab_size=40, num_mel_bins=8, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_source_positions=8,
            max_target_positions=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1),
       mean_square, speech),
    # images
    vision("vit", "ViT", patch_size=8, **TOWER),
    vision("deit", "DeiT", patch_size=8, **TOWER),
    vision("beit", "Beit", patch_size=8, **TOWER),
    vision("swin", "Swin", patch_size=2, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4),
    vision("convnext-v2", "ConvNextV2", hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1]),
    vision("dinov2", "Dinov2", patch_size=8, **{k: v for k, v in TOWER.items() if k != "intermediate_size"}),
    hf("clip", "CLIPModel", "CLIPConfig",
       dict(text_config=dict(TOWER, vocab_size=40, max_position_embeddings=16, eos_token_id=1),
            vision_config=dict(TOWER, image_size=32, patch_size=8), projection_dim=16),
       lambda output, batch: F.cross_entropy(output.logits_per_image, torch.arange(4)), pictures_and_text),
    # torch's own
    sequence("torch transformer encoder", transformer_encoder),
    Family("torch transformer", "torch",
           lambda: (Seq2Seq(), classification, (torch.randn(4, 6, 16), torch.randint(3, (4,))))),
    sequence("torch lstm", lambda: nn.LSTM(16, 16, 2, batch_first=True)),
    sequence("torch gru", lambda: nn.GRU(16, 16, bidirectional=True, batch_first=True), 32),
    # torchvision
    module("resnet18", "torchvision.models", lambda m: m.resnet18(num_classes=3)),
    module("vgg11-bn", "torchvision.models", lambda m: nn.Sequential(
        m.vgg11_bn(num_classes=3).features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 3))),
    module("densenet", "torchvision.models", lambda m: m.DenseNet(8, (2, 2), 16, num_classes=3)),
    module("mobilenet-v3", "torchvision.models", lambda m: m.mobilenet_v3_small(num_classes=3, width_mult=0.5), 64),
    module("efficientnet-b0", "torchvision.models", lambda m: m.efficientnet_b0(num_classes=3), 64),
    module("regnet-y", "torchvision.models", lambda m: m.regnet_y_400mf(num_classes=3), 64),
    module("shufflenet-v2", "torchvision.models", lambda m: m.shufflenet_v2_x0_5(num_classes=3), 64),
    module("torchvision vit", "torchvision.models",
           lambda m: m.VisionTransformer(32, 8, 2, 4, 32, 48, num_classes=3)),
    module("torchvision swin", "torchvision.models",
           lambda m: m.SwinTransformer([2, 2], 16, [1, 1], [2, 2], [4, 4], num_classes=3, stochastic_depth_prob=0.0)),
    module("torchvision convnext", "torchvision.models", lambda m: m.convnext.ConvNeXt(
        [m.convnext.CNBlockConfig(16, 32, 1), m.convnext.CNBlockConfig(32, None, 1)], num_classes=3)),
    # timm
    module("timm vit", "timm", lambda m: m.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=48, num_heads=3, num_classes=3)),
    module("timm mixer", "timm", lambda m: m.models.MlpMixer(
        num_classes=3, img_size=32, patch_size=8, num_blocks=2, embed_dim=32)),
    module("timm resnetv2 (weight standardisation)", "timm", lambda m: m.models.ResNetV2(
        layers=(1, 1), channels=(32, 64), num_classes=3, stem_type="same")),
    module("timm convmixer", "timm", lambda m: m.models.ConvMixer(32, 2, 3, 4, num_classes=3)),
    module("timm poolformer", "timm", lambda m: m.models.MetaFormer(
        depths=(1, 1), dims=(16, 32), num_classes=3)),
    # graphs
    graph("pyg gcn", "GCNConv"),
    graph("pyg gat", "GATConv", heads=1),
    graph("pyg sage", "SAGEConv"),
    graph("pyg transformer", "TransformerConv"),
    # diffusion
    diffusion("diffusers unet", lambda m: m.UNet2DModel(
        sample_size=16, block_out_channels=(32, 32), norm_num_groups=8, attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1), lambda: {"sample": torch.randn(2, 3, 16, 16), "timestep": torch.tensor([3, 7])}),
    diffusion("diffusers dit", lambda m: m.DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=8, in_channels=4, num_layers=2, sample_size=8, patch_size=2,
        num_embeds_ada_norm=10, norm_num_groups=8),
        lambda: {"hidden_states": torch.randn(2, 4, 8, 8), "timestep": torch.tensor([3, 7]),
                 "class_labels": torch.tensor([1, 2])}),
]  # fmt: skip


def is_table(owner: nn.Module) -> bool:
    return "Embedding" in type(owner).__name__


def matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters with two dimensions above 1, by name, without embeddings, what is tied to them, and gains and
    biases of norms.
    """
    tables = {
        id(parameter)
        for owner in model.modules()
        if is_table(owner) or "Norm" in type(owner).__name__
        for parameter in owner.parameters(recurse=False)
    }
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if sum(size > 1 for size in parameter.shape) > 1 and id(parameter) not in tables and "bias" not in name
    }


def cover(family: Family) -> dict[str, Any]:
    """The entry of one family."""
    torch.manual_seed(0)
    model, loss_fn, batch = family.build()
    model.eval()
    start = time.perf_counter()
    found = measure(model, loss_fn, [batch], top_k=3, progress=False)
    seconds = time.perf_counter() - start
    layers, _ = find_layers(model)
    rows = {id(layers[name].weight): row for name, row in found.items()}
    every = matrices(model)
    idle = [name for name, p in every.items() if id(p) in rows and rows[id(p)].empty_reason]
    left_out = [name for name, p in every.items() if id(p) not in rows]
    total = sum(p.numel() for p in every.values())
    error, worst = largest_error(model, loss_fn, batch)
    return {
        "library": family.library,
        "parameters": sum(p.numel() for p in model.parameters()),
        "matrices": len(every),
        "share": sum(p.numel() for name, p in every.items() if name not in left_out) / total,
        "with_factors": sum(1 for row in found.values() if len(row.arrays.h_kron)),
        "rows": len(found),
        "zero_gradient": idle,
        "left_out": left_out,
        "error": error,
        "worst_layer": worst,
        "seconds": seconds,
    }


def largest_error(model: nn.Module, loss_fn: Callable[..., Tensor], batch: Any) -> tuple[float, str]:
    """max over layers of max_k |h_k − h_k⁶⁴| / max_k |h_k⁶⁴|, and the layer; h⁶⁴ by double backward."""
    found = directional_curvature(model, loss_fn, [batch], top_k=3)
    wide = copy.deepcopy(model).double()
    with measurement(wide):
        (data,) = as_batches([_double(batch)], wide)
        layers, _ = find_layers(wide)
        loss = batch_loss(wide, loss_fn, data)
        names = [name for name in found if name in layers]
        weights = [layers[name].weight for name in names]
        gradients = torch.autograd.grad(loss, weights, create_graph=True)
        worst = 0.0, ""
        for name, weight, gradient in zip(names, weights, gradients, strict=True):
            along = layers[name].tangents(*(t.double() for t in (found[name].U, found[name].V) if t is not None))
            h = torch.stack([_second(gradient, weight, D) for D in along])
            error = float((found[name].h.double() - h).abs().max() / h.abs().max())
            if not error <= worst[0]:
                worst = error, name
    return worst


def _second(gradient: Tensor, weight: Tensor, D: Tensor) -> Tensor:
    if not gradient.requires_grad:
        return gradient.new_zeros(())
    (product,) = torch.autograd.grad((gradient * D).sum(), weight, retain_graph=True, allow_unused=True)
    return gradient.new_zeros(()) if product is None else (product * D).sum()


def _double(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return tree.double() if tree.is_floating_point() else tree
    if isinstance(tree, dict):
        return {name: _double(value) for name, value in tree.items()}
    return tuple(_double(value) for value in tree)


def table(results: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "| model | library | matrices | share with rows | with factors | largest error of h |",
        "|---|---|---|---|---|---|",
    ]
    for family in FAMILIES:
        if (one := results.get(family.name)) is not None:
            lines.append(
                f"| {family.name} | {one['library']} | {one['matrices']} | {100 * one['share']:.1f} % | "
                f"{one['with_factors']} of {one['rows']} | {one['error']:.0e} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="families; all whose library is installed if none is named")
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the table of the results on disk")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - {family.name for family in FAMILIES}
    if unknown:
        parser.error(f"unknown families: {', '.join(sorted(unknown))}")
    results: dict[str, Any] = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
    if arguments.table:
        print(table(results))
        return
    failed = []
    for family in FAMILIES:
        if arguments.names and family.name not in arguments.names:
            continue
        try:
            importlib.import_module(family.library)
        except ImportError:
            print(f"{family.name}: {family.library} is not installed")
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = cover(family)
            except Exception as error:
                print(f"{family.name}: {type(error).__name__}: {str(error).splitlines()[0][:200]}", flush=True)
                failed.append(family.name)
                continue
        results[family.name] = found
        wrong = found["share"] < 0.99 or not found["error"] <= 1e-5
        mark = "  <-- below 99 % or above 1e-5" if wrong else ""
        print(
            f"{family.name}: {100 * found['share']:.2f} % of {found['matrices']} matrices, error {found['error']:.1e} "
            f"({found['worst_layer']}), {found['seconds']:.1f} s, left out {found['left_out'][:3]}{mark}",
            flush=True,
        )
        arguments.json.parent.mkdir(exist_ok=True)
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
        gc.collect()
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
