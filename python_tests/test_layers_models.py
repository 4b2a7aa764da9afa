"""Whole models: every matrix has a row, and h of every layer is that of double backward in float64."""

import pytest
import torch
import torch.nn.functional as F
from test_curvature_coverage import by_double_backward
from torch import nn

from spectral_ext import directional_curvature, measure
from spectral_ext.layers import find_layers

LOSS = nn.CrossEntropyLoss()


class Pooled(nn.Module):
    """A head over the mean of a sequence model's output."""

    def __init__(self, body):
        super().__init__()
        self.body, self.head = body, nn.Linear(16, 5)

    def forward(self, x):
        z = self.body(x)
        return self.head((z[0] if isinstance(z, tuple) else z).mean(1))


class Bare(nn.Module):
    """Matrices without a module, a stack of matrices, a module that is called twice, a shared and a computed weight."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, 16, 16) / 4)
        self.stack = nn.Parameter(torch.randn(3, 16, 16) / 4)
        self.twice, self.one, self.other = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.other.weight = self.one.weight
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(16, 5))

    def forward(self, x):
        x = torch.tanh(x.mean(1) @ self.table[0])
        x = torch.tanh(torch.einsum("bi,eij->bj", x, self.stack))
        return self.normed(torch.tanh(self.other(torch.tanh(self.one(self.twice(torch.tanh(self.twice(x))))))))


def convolutions():
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=2), nn.GELU(), nn.Conv2d(8, 8, 3, groups=8), nn.GELU(),
        nn.ConvTranspose2d(8, 6, 2, groups=2), nn.GELU(), nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular"),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
    )  # fmt: skip


def sequences():
    return [(torch.randn(4, 6, 16).double(), torch.randint(0, 5, (4,)))]


def images():
    return [(torch.randn(4, 4, 8, 8).double(), torch.randint(0, 5, (4,)))]


TORCH = {
    "transformer encoder": (
        lambda: Pooled(nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)), sequences,
        {"body.self_attn.in_proj_weight", "body.self_attn.out_proj"},
    ),
    "lstm": (lambda: Pooled(nn.LSTM(16, 16, batch_first=True)), sequences, {"body.weight_ih_l0", "body.weight_hh_l0"}),
    "gru": (lambda: Pooled(nn.GRU(16, 16, batch_first=True)), sequences, {"body.weight_ih_l0", "body.weight_hh_l0"}),
    "convolutions": (convolutions, images, {"0", "2", "4", "6", "9"}),
    "bare": (Bare, sequences, {"table", "stack", "twice", "one", "normed.parametrizations.weight.original1"}),
}  # fmt: skip


def check(model, loss_fn, batches, expected, on_request=(), tolerance=1e-9):
    model = model.double().eval()
    found = measure(model, loss_fn, batches, top_k=2, progress=False)
    layers, _ = find_layers(model)
    assert expected <= set(found) == set(layers)
    tables = {id(p) for n, p in model.named_parameters() if n.removesuffix(".weight") in on_request}
    matrices = [p for p in model.parameters() if sum(s > 1 for s in p.shape) > 1 and id(p) not in tables]
    covered = {id(layers[name].weight) for name, row in found.items() if not row.empty_reason}
    assert sum(p.numel() for p in matrices if id(p) in covered) >= 0.99 * sum(p.numel() for p in matrices)
    curvature = directional_curvature(model, loss_fn, batches, top_k=2)
    for name, result in curvature.items():
        along = layers[name].tangents(result.U, result.V)
        gradient, h = by_double_backward(model, loss_fn, batches, layers[name].weight, along)
        assert (result.h - h).abs().max() <= tolerance * h.abs().max().clamp_min(1e-12), name
        sigma = torch.linalg.svdvals(layers[name].matrix(gradient))[: len(result.sigma)]
        torch.testing.assert_close(result.sigma, sigma, rtol=max(tolerance, 1e-7), atol=1e-12)
        assert abs(found[name].arrays.h[0] - float(result.h[0])) <= tolerance * float(result.h.abs().max())
        if layers[name].no_factors:
            assert any("no Kronecker factors" in note and layers[name].no_factors in note for note in found[name].notes)
    return found


@pytest.mark.filterwarnings("ignore:.*nested tensor")
@pytest.mark.parametrize("name", TORCH)
def test_models_of_torch(name):
    torch.manual_seed(0)
    build, batches, expected = TORCH[name]
    found = check(build(), LOSS, batches(), expected)
    assert "Rows cover" in str(found) and found.meta["coverage"]["covered"] > 0


SIZES = dict(
    vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
    max_position_embeddings=16,
)  # fmt: skip
FAMILIES = {
    "GPT2LMHeadModel": (
        "GPT2Config", dict(vocab_size=40, n_positions=8, n_embd=8, n_layer=1, n_head=2),
        {"transformer.h.0.attn.c_attn", "transformer.h.0.mlp.c_fc"}, ("transformer.wte", "transformer.wpe"),
    ),
    "LlamaForCausalLM": (
        "LlamaConfig", dict(SIZES, num_key_value_heads=1), {"lm_head", "model.layers.0.mlp.down_proj"},
        ("model.embed_tokens",),
    ),
    "MixtralForCausalLM": (
        "MixtralConfig", dict(SIZES, num_key_value_heads=1, num_local_experts=4, experts_implementation="eager"),
        {"model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.experts.down_proj"}, ("model.embed_tokens",),
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FAMILIES)
def test_language_models(name):
    transformers = pytest.importorskip("transformers")
    config, sizes, expected, tables = FAMILIES[name]
    torch.manual_seed(0)
    model = getattr(transformers, name)(getattr(transformers, config)(**sizes, bos_token_id=0, eos_token_id=0))

    def loss(output, batch):  # the model's own loss is computed in float32
        return F.cross_entropy(output.logits[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten())

    # Norms and routers of transformers compute in float32 whatever the weights are.
    batches = [{"input_ids": torch.randint(0, 40, (3, 6))}]
    found = check(model, loss, batches, expected, tables, tolerance=1e-6)
    assert all("name it in layers=" in found.skipped[table] for table in tables)
    if name == "GPT2LMHeadModel":
        fc = found["transformer.h.0.mlp.c_fc"]
        assert fc.shape == (32, 8) and fc.beta.r2 is not None and len(fc.arrays.h_kron) == 2


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["Bert", "Albert", "T5"])
def test_encoders_with_their_own_loss(name):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    ids = torch.randint(2, 40, (3, 6))
    batch = {"input_ids": ids, "labels": torch.tensor([0, 1, 2])}
    if name == "T5":
        sizes = dict(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, decoder_start_token_id=0)
        model, batch["labels"] = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes)), ids
    else:
        config = getattr(transformers, f"{name}Config")(**{**SIZES, "num_hidden_layers": 2}, num_labels=3)
        model = getattr(transformers, f"{name}ForSequenceClassification")(config)
    tables = {n for n, module in model.named_modules() if isinstance(module, nn.Embedding)}
    check(model, lambda output, batch: output.loss, [batch], set(), tables, tolerance=1e-6)
