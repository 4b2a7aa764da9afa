"""What can be measured: kinds of models with the share of their matrices that has a row, and the error of h.

    python -m benchmarks.reach

Every model is small and in float64. Embedding tables are left out unless asked for, and do not count. The error is the
largest |h − ĥ| over max |h| of a layer, ĥ from a double backward per direction. Writes
``benchmarks/results/reach.json``, from which the README's table is made.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.small_resnet import SmallResNet
from spectral_ext import directional_curvature, measure

RESULTS = Path(__file__).parent / "results" / "reach.json"
SIZES = dict(
    vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
    max_position_embeddings=16, bos_token_id=0, eos_token_id=0,
)  # fmt: skip


class Pooled(nn.Module):
    """A head over the mean of a sequence model's output."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        z = self.body(x)
        return self.head((z[0] if isinstance(z, tuple) else z).mean(1))


Case = tuple[nn.Module, Callable[..., Tensor], list[Any]]


def classifier(model: nn.Module, *shape: int, classes: int = 5) -> Case:
    return model, nn.CrossEntropyLoss(), [(torch.randn(8, *shape), torch.randint(classes, (8,)))]


def language_model(kind: str, **sizes: Any) -> Case:
    import transformers

    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **sizes})
    if kind == "GPT2":
        config = transformers.GPT2Config(
            vocab_size=40, n_positions=8, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
        )
    name = "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"

    def loss(output: Any, batch: Any) -> Tensor:
        return F.cross_entropy(output.logits[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten())

    return getattr(transformers, name)(config), loss, [{"input_ids": torch.randint(0, 40, (4, 8))}]


def encoder(kind: str) -> Case:
    import transformers

    config = getattr(transformers, f"{kind}Config")(**SIZES, num_labels=3)
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config)
    batch = {"input_ids": torch.randint(2, 40, (4, 8)), "labels": torch.tensor([0, 1, 2, 0])}
    return model, lambda output, batch: output.loss, [batch]


MODELS: dict[str, Callable[[], Case]] = {
    "ResNet with batch norm": lambda: classifier(SmallResNet(), 1, 28, 28),
    "depthwise, grouped, transposed convolutions": lambda: classifier(
        nn.Sequential(
            nn.Conv2d(4, 8, 3, groups=2), nn.GELU(), nn.Conv2d(8, 8, 3, groups=8), nn.GELU(),
            nn.ConvTranspose2d(8, 6, 2, groups=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
        ), 4, 8, 8,
    ),
    "nn.TransformerEncoderLayer": lambda: classifier(
        Pooled(nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)), 6, 16
    ),
    "nn.LSTM": lambda: classifier(Pooled(nn.LSTM(16, 16, batch_first=True)), 6, 16),
    "GPT-2 (transformers)": lambda: language_model("GPT2"),
    "Llama": lambda: language_model("Llama", num_key_value_heads=1),
    "Mixtral, experts": lambda: language_model(
        "Mixtral", num_key_value_heads=1, num_local_experts=4, experts_implementation="eager"
    ),
    "BERT": lambda: encoder("Bert"),
    "ALBERT, shared layers": lambda: encoder("Albert"),
}  # fmt: skip


def reach(build: Callable[[], Case]) -> dict[str, Any]:
    torch.manual_seed(0)
    model, loss, batches = build()
    model = model.double().eval()
    batches = [
        tuple(x.double() if x.is_floating_point() else x for x in one) if isinstance(one, tuple) else one
        for one in batches
    ]
    landscape = measure(model, loss, batches, top_k=3, progress=False)
    found = directional_curvature(model, loss, batches, top_k=3)
    exact = directional_curvature(model, loss, batches, top_k=3, method="double_backward_weight")
    errors = [float((found[n].h - exact[n].h).abs().max() / exact[n].h.abs().max().clamp_min(1e-300)) for n in found]
    rows = [row for row in landscape.values() if not row.empty_reason]
    tables = {id(one.weight) for one in model.modules() if isinstance(one, nn.Embedding)}
    numel = sum(p.numel() for p in model.parameters() if sum(n > 1 for n in p.shape) > 1 and id(p) not in tables)
    return {
        "rows": len(rows),
        "methods": sorted({row.method for row in rows}),
        "coverage": landscape.meta["coverage"]["covered"] / numel,
        "error": max(errors),
    }


def main() -> None:
    rows = [{"model": name, **reach(build)} for name, build in MODELS.items()]
    for row in rows:
        print(row)
    machine = {"torch": torch.__version__, "python": platform.python_version()}
    RESULTS.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
