"""Hugging Face and timm models built from their configurations, without a download, against double backward."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from curvature_cases import images, randomised
from test_curvature_coverage import by_double_backward

from spectral_ext.curvature import directional_curvature
from spectral_ext.layers import find_layers


def agree(model, loss_fn, batches, method, **options):
    model = randomised(model).double()
    found = directional_curvature(model, loss_fn, batches, top_k=2, split=True, **options)
    layers, _ = find_layers(model, named=found)
    for name, result in found.items():
        along = layers[name].tangents(result.U, result.V)
        _, expected = by_double_backward(model, loss_fn, batches, layers[name].weight, along)
        assert result.method == method, result.reason
        assert (result.h - expected).abs().max() <= 1e-9 * expected.abs().max(), name
    return found


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_bert_classifier_with_its_own_loss(attention):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=16, num_labels=3, attn_implementation=attention,
    )  # fmt: skip
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    batch = {"input_ids": torch.randint(0, 50, (2, 6)), "attention_mask": mask, "labels": torch.tensor([0, 2])}
    model = transformers.BertForSequenceClassification(config).eval()
    found = agree(model, lambda output, batch: output.loss, [batch], "tangent_adjoint")
    key = found["bert.encoder.layer.0.attention.self.key"]
    assert float(key.parts["softmax"].abs().max()) > 0
    head = found["classifier"]
    assert torch.equal(head.parts["gauss_newton"], head.h)  # nothing but the loss is curved after it


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_gpt2_with_tied_embeddings_and_transposed_weights(attention):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=40, n_positions=8, n_embd=8, n_layer=1, n_head=2, attn_implementation=attention, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).eval()
    tokens = torch.randint(0, 40, (2, 6))

    def loss(output, batch):  # the model's own loss is computed in float32
        return F.cross_entropy(output.logits[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten())

    names = [n for n, module in model.named_modules() if type(module).__name__ == "Conv1D"]
    names += ["lm_head", "transformer.wte"]
    found = agree(model, loss, [{"input_ids": tokens}], "tangent_adjoint", layers=names)
    assert len(found) == 6
    assert torch.allclose(found["lm_head"].h, found["transformer.wte"].h)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet10t", "convnext_atto"])
def test_timm(name):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import timm
    except (ImportError, RuntimeError) as why:
        pytest.skip(f"timm cannot be imported: {why}")
    options = {
        "vit_tiny_patch16_224": dict(img_size=16, patch_size=8, depth=2, embed_dim=16, num_heads=2),
        "convnext_atto": dict(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16)),
        "resnet10t": dict(zero_init_last=False),
    }[name]
    model = timm.create_model(name, num_classes=5, **options).eval()
    method = "sqrt_gn" if "resnet" in name else "tangent_adjoint"
    batches = images(size=16 if "vit" in name else 32)
    agree(model, torch.nn.CrossEntropyLoss(), batches, method)
