"""directional_curvature: methods, directions, the split, precision, what is restored."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from curvature_cases import C, build, images, mlp, resnet, token_loss, tokens, vectors
from test_curvature_coverage import by_double_backward
from torch import nn

from spectral_ext.curvature import MECHANISMS, directional_curvature

CE = nn.CrossEntropyLoss()
FAST = ("tangent_adjoint", "sqrt_gn")
ALL = (*FAST, "double_backward_output", "double_backward_weight")


@pytest.mark.parametrize("method", ALL)
def test_methods_agree_and_say_who_they_are(method):
    model, loss, batches = build("resnet, batch norm in eval mode")
    expected = directional_curvature(model, loss, batches, top_k=4, method="double_backward_weight")
    found = directional_curvature(model, loss, batches, top_k=4, method=method)
    assert list(found) == list(expected)
    for name, result in found.items():
        assert result.method == method
        assert torch.allclose(result.h, expected[name].h, rtol=1e-9, atol=1e-9 * float(expected[name].h.abs().max()))


def test_interface():
    model, loss, batches = build("resnet, batch norm in eval mode")
    found = directional_curvature(model, loss, batches, top_k=4)
    assert found["0"].U.shape == (4, 4) and found["0"].V.shape == (27, 4)
    assert found["0"].sigma.shape == found["0"].h.shape == (4,)
    assert (found["0"].sigma.diff() <= 0).all()
    assert found["0"].check.passed and found["0"].check.k == (0, 3)
    assert found["0"].parts is None
    assert "BatchNorm2d" in found.skipped["1"]
    assert found.samples == 4 and found.mode == "eval"
    assert found.loss == pytest.approx(float(loss(model(batches[0][0]), batches[0][1])))
    with pytest.raises(KeyError, match="BatchNorm2d"):
        found["1"]
    with pytest.raises(KeyError, match="no layer named"):
        found["nothing"]
    assert "sqrt_gn" in repr(found)


def test_top_k_is_limited_by_the_rank_of_the_gradient():
    """Cross entropy gives the head's gradient rank C − 1; the C-th singular direction would be rounding error."""
    model, loss, batches = build("mlp gelu(approximate='none')")
    found = directional_curvature(model, loss, batches, top_k=100, layers="4")["4"]
    assert len(found.h) == found.U.shape[1] == found.V.shape[1] == C - 1
    assert "numerical rank 4" in found.notes[0]


@pytest.mark.parametrize("method", ALL)
def test_any_directions(method):
    model, loss, batches = build("vgg, max pool, in-place relu")
    weight = model[3].weight
    m, n = weight.shape[0], weight[0].numel()
    U, V, dense = torch.randn(m, 3).double(), torch.randn(n, 3).double(), torch.randn(4, *weight.shape).double()
    gradient, expected = by_double_backward(
        model, loss, batches, weight, torch.einsum("mk,nk->kmn", U, V).reshape(-1, *weight.shape)
    )
    found = directional_curvature(model, loss, batches, directions={"3": (U, V)}, method=method)
    assert list(found) == ["3"] and "no directions" in found.skipped["0"]
    assert torch.allclose(found["3"].h, expected, rtol=1e-9)
    assert torch.allclose(found["3"].sigma, torch.einsum("mk,mn,nk->k", U, gradient.flatten(1), V), rtol=1e-9)
    _, expected = by_double_backward(model, loss, batches, weight, dense)
    found = directional_curvature(model, loss, batches, directions={"3": dense.flatten(2)}, method=method)
    assert torch.allclose(found["3"].h, expected, rtol=1e-9)
    assert found["3"].U is None and found["3"].directions.shape == dense.shape


def test_dense_directions_in_every_kind_of_layer():
    for name in (
        "depthwise and dilated convolution, relu6",
        "conv1d and conv3d",
        "gpt, tied embeddings, fused attention",
    ):
        model, loss, batches = build(name)
        for layer, module in model.named_modules():
            if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
                dense = torch.randn(2, *module.weight.shape).double()
                _, expected = by_double_backward(model, loss, batches, module.weight, dense)
                found = directional_curvature(model, loss, batches, directions={layer: dense})
                assert torch.allclose(found[layer].h, expected, rtol=1e-9, atol=1e-13), (name, layer)


def test_split_is_the_gauss_newton_matrix_and_the_rest():
    """gauss_newton against its definition: (J D)ᵀ H_L (J D) through the logits, by jvp."""
    model, loss, batches = build("gpt, tied embeddings, attention by hand")
    found = directional_curvature(model, loss, batches, top_k=3, split=True, layers=["qkv", "up", "proj"])
    (x, y), parameters = batches[0], {k: v.detach() for k, v in model.named_parameters()}
    for name, result in found.items():
        for k in range(3):
            D = torch.outer(result.U[:, k], result.V[:, k])

            def logits(W, name=name):
                return torch.func.functional_call(model, {**parameters, f"{name}.weight": W}, (x,))

            out, tangent = torch.func.jvp(logits, (parameters[f"{name}.weight"],), (D,))
            H = torch.func.jvp(torch.func.grad(lambda o: token_loss(o, y)), (out,), (tangent,))[1]
            assert float(result.parts["gauss_newton"][k]) == pytest.approx(float((H * tangent).sum()), rel=1e-9)
    assert set(found["qkv"].parts) == set(MECHANISMS)
    assert float(found["qkv"].parts["softmax"].abs().max()) > 0
    assert float(found["up"].parts["softmax"].abs().max()) == 0
    assert float(found["up"].parts["activation"].abs().max()) > 0
    assert float(found["proj"].parts["norm"].abs().max()) > 0


def test_train_mode_batch_norm_adds_a_norm_part():
    model, loss, batches = build("resnet, batch norm in train mode")
    found = directional_curvature(model, loss, batches, top_k=2, split=True)
    assert found.mode == "train"
    assert float(found["0"].parts["norm"].abs().max()) > 0


def test_float32_is_within_1e_4_of_float64_and_alpha_within_5e_4():
    torch.manual_seed(1)
    model = resnet(nn.BatchNorm2d).double()
    x, y = torch.randn(256, 3, 8, 8).double(), torch.randint(0, C, (256,))
    reference = directional_curvature(model, CE, [(x, y)], top_k=4)
    directions = {name: (r.U, r.V) for name, r in reference.items()}
    found = directional_curvature(model.float(), CE, [(x.float(), y)], directions=directions)
    for name, result in found.items():
        expected = reference[name]
        assert result.h.dtype == torch.float32
        assert abs(float(result.h[-1]) / float(expected.h[-1]) - 1) <= 1e-4, name
        alpha = [
            np.polyfit(r.sigma.double().abs().log().numpy(), r.h.double().abs().log().numpy(), 1)[0]
            for r in (result, expected)
        ]
        assert abs(alpha[0] - alpha[1]) <= 5e-4, name


def test_batches_are_weighted_by_their_size():
    model, loss = mlp(nn.GELU()).double(), CE
    ((x, y),) = vectors(9)
    whole = directional_curvature(model, loss, [(x, y)], top_k=3)
    cut = directional_curvature(model, loss, [(x[:5], y[:5]), (x[5:6], y[5:6]), (x[6:], y[6:])], top_k=3)
    for name in whole:
        assert torch.allclose(whole[name].h, cut[name].h, rtol=1e-9)
        assert torch.allclose(whole[name].sigma, cut[name].sigma, rtol=1e-9)


def state(model):
    return (
        [(name, module.training, dict(module._forward_hooks)) for name, module in model.named_modules()],
        [b.clone() for b in model.buffers()],
        [(p.requires_grad, p.grad, p.clone()) for p in model.parameters()],
        torch.get_rng_state(),
        torch.get_float32_matmul_precision(),
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.backends.mha.get_fastpath_enabled(),
        torch.is_grad_enabled(),
        [getattr(m, "track_running_stats", None) for m in model.modules()],
        torch.backends.cuda.flash_sdp_enabled(),
    )


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_left_as_it_was(fails):
    model, loss, batches = build("resnet, batch norm in train mode")
    model[3].eval()
    model[0].bias.grad = torch.ones(4).double()
    model[0].register_forward_hook(lambda *_: None)
    torch.set_float32_matmul_precision("medium")
    before = state(model)
    try:
        with torch.no_grad():
            if fails:
                calls = []

                def failing(y, t):
                    calls.append(1)
                    return loss(y, t) if len(calls) < 4 else 1 / 0

                with pytest.raises(ZeroDivisionError):
                    directional_curvature(model, failing, batches, method="double_backward_output")
            else:
                directional_curvature(model, loss, batches, top_k=2, progress=True)
        assert same(before, state(model))
    finally:
        torch.set_float32_matmul_precision("highest")


def test_allow_tf32_set_by_the_user_is_respected():
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        directional_curvature(mlp(nn.ReLU()).double(), CE, vectors(), top_k=2)
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")


def test_sqrt_gn_refuses_coupled_samples():
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(7, 6), nn.Linear(6, C)

        def forward(self, x):
            x = self.a(x)
            return self.b((x - x.mean(0)).relu())

    model = Centred().double()
    with pytest.raises(ValueError, match="couples the samples"):
        directional_curvature(model, CE, vectors(), method="sqrt_gn")
    found = directional_curvature(model, CE, vectors(), top_k=5, layers="a")
    assert found["a"].method == "tangent_adjoint" and "couples" in found["a"].reason
    model, loss, batches = build("loss couples samples")
    found = directional_curvature(model, loss, batches, top_k=5)
    assert {r.method for r in found.values()} == {"tangent_adjoint"}


def test_a_wrong_rule_is_caught_and_named(monkeypatch):
    """The self-check: break f″ of GELU and see double backward take over."""
    from spectral_ext.curvature.rules import RULES, elementwise

    def broken(op):
        push = elementwise.smooth(op)
        return lambda d: (push(d)[0], None if push(d)[1] is None else 1.1 * push(d)[1])

    gelu = torch.ops.aten.gelu.default
    model, loss, batches = build("mlp gelu(approximate='none')")
    expected = directional_curvature(model, loss, batches, top_k=3)
    monkeypatch.setitem(RULES, gelu, type(RULES[gelu])(broken, "activation"))
    with pytest.warns(UserWarning, match="0: tangent_adjoint is not used: h differs"):
        found = directional_curvature(model, loss, batches, top_k=3)
    assert found["0"].method == "double_backward_output" and "failed its check" in found["0"].reason
    assert not found["0"].check.passed
    assert torch.allclose(found["0"].h, expected["0"].h, rtol=1e-9)
    assert found["4"].method == "tangent_adjoint"
    with pytest.raises(ValueError, match="wrong for '0'"):
        directional_curvature(model, loss, batches, top_k=3, method="tangent_adjoint", self_check=True)


def test_operations_without_double_backward_are_still_measured():
    class Reference(nn.Module):
        def forward(self, x):
            return F.relu6(x + 3) / 6

    models = [
        nn.Sequential(nn.Linear(7, 8), act, nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, C))
        for act in (nn.Hardsigmoid(), Reference())
    ]
    models[1].load_state_dict(models[0].state_dict())
    found, expected = (directional_curvature(model.double(), CE, vectors_of(7), top_k=3) for model in models)
    assert "not checked" in found["0"].reason
    for name in found:
        assert torch.allclose(found[name].h, expected[name].h, rtol=1e-9)


def vectors_of(seed):
    torch.manual_seed(seed)
    return vectors()


def test_traces_are_shared_between_batches_of_one_shape(monkeypatch):
    from spectral_ext.curvature import chunks

    calls = []
    monkeypatch.setattr(chunks, "trace", lambda *a, _trace=chunks.trace: calls.append(1) or _trace(*a))
    model, loss, _ = build("layer norm")
    directional_curvature(model, loss, vectors(4) + vectors(4) + vectors(3), top_k=2)
    assert len(calls) == 2


def test_agrees_with_curvlinops():
    curvlinops = pytest.importorskip("curvlinops")
    model, loss, batches = build("resnet, batch norm in eval mode")
    found = directional_curvature(model, loss, batches, top_k=4)
    for name in ("0", "3.conv2", "7"):
        weight, result = model.get_submodule(name).weight, found[name]
        H = curvlinops.HessianLinearOperator(model, loss, {f"{name}.weight": weight} if False else [weight], batches)
        D = torch.einsum("mk,nk->mnk", result.U, result.V).reshape(*weight.shape, -1)
        (product,) = H @ [D]
        assert torch.allclose((D * product).flatten(0, -2).sum(0), result.h, rtol=1e-8)


def test_tokens_of_a_larger_gpt_with_many_outputs_take_tangents():
    model, _, _ = build("gpt, tied embeddings, fused attention")
    found = directional_curvature(model, token_loss, tokens(3), top_k=2, layers="down")
    assert "outputs" not in found["down"].reason or found["down"].method == "tangent_adjoint"
    assert found["down"].check.error < 1e-9


def test_images_in_channels_last_and_non_contiguous_weights():
    model, loss, batches = build("resnet, batch norm in eval mode")
    expected = directional_curvature(model, loss, batches, top_k=3)
    ((x, y),) = batches
    model = model.to(memory_format=torch.channels_last)
    found = directional_curvature(model, loss, [(x.to(memory_format=torch.channels_last), y)], top_k=3)
    for name in expected:
        assert torch.allclose(found[name].h, expected[name].h, rtol=1e-9)
    assert images()[0][0].is_contiguous()
