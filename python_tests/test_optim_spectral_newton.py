"""SpectralNewton's step against a plain transcription of its formula in float64, and its options one by one."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from spectral_ext import reference
from spectral_ext.optim import SpectralNewton

LR, DECAY = 0.02, 0.1


def weight_and_gradients(*shape, steps=3):
    return nn.Parameter(torch.randn(*shape, dtype=torch.float64)), torch.randn(steps, *shape, dtype=torch.float64)


def run(optimizer, weight, gradients):
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    return weight.detach()


def plain(weight, gradients, alpha=2.0, damping=0.1, mode="rms", mu=0.95, momentum_mode="ema", nesterov=True, c=1.0):
    """The class docstring, line by line."""
    w, buffer = weight.detach().clone(), torch.zeros_like(weight)
    for g in gradients:
        new = g if momentum_mode == "sum" else (1 - mu) * g
        buffer = mu * buffer + new
        direction = new + mu * buffer if nesterov else buffer
        update = reference.spectral_newton(direction, alpha, damping, damping_mode=mode)
        factor = c(update, direction) if callable(c) else c
        w = (1 - LR * DECAY) * w - LR * factor * update
    return w


def shape_factor(update, direction, alpha=2.0, damping=0.1):
    """0.2·√max(m, n) over the least upper bound of the spectral norm of T(D): max T, or ‖T(D)‖_F."""
    m, n = direction.shape
    d = damping * (direction.square().sum() / min(m, n)) ** (alpha / 2)
    peak = (d / (alpha - 1)) ** (1 / alpha)
    return 0.2 * max(m, n) ** 0.5 / min(peak / (peak**alpha + d), update.norm())


@pytest.mark.parametrize("mode", ["absolute", "spectral", "rms"])
@pytest.mark.parametrize("momentum_mode, nesterov", list(itertools.product(["ema", "sum"], [True, False])))
@pytest.mark.parametrize("alpha", [0.7, 2.0])
def test_the_step_is_the_formula(mode, momentum_mode, nesterov, alpha):
    weight, gradients = weight_and_gradients(5, 7)
    expected = plain(weight, gradients, alpha, 0.3, mode, 0.9, momentum_mode, nesterov)
    settings = {"momentum_mode": momentum_mode, "nesterov": nesterov, "weight_decay": DECAY, "update_scale": None}
    settings["tolerance"] = None
    optimizer = SpectralNewton([weight], LR, alpha, 0.3, mode, 0.9, **settings)
    torch.testing.assert_close(run(optimizer, weight, gradients), expected)


def test_the_default_step_is_scaled_by_shape():
    weight, gradients = weight_and_gradients(5, 7)
    expected = plain(weight, gradients, c=shape_factor)
    torch.testing.assert_close(run(SpectralNewton([weight], LR, weight_decay=DECAY), weight, gradients), expected)


def test_without_momentum_and_maximize():
    weight, gradients = weight_and_gradients(5, 7)
    expected = plain(weight, -gradients, mu=0.0, nesterov=False)
    settings = {"momentum": 0.0, "maximize": True, "update_scale": None, "weight_decay": DECAY}
    optimizer = SpectralNewton([weight], LR, **settings)
    assert optimizer.state[weight] == {}
    torch.testing.assert_close(run(optimizer, weight, gradients), expected)


@pytest.mark.parametrize("alpha", [0.6, 1.0, 1.5, 2.0, 3.5])
@pytest.mark.parametrize("mode", ["absolute", "spectral", "rms"])
@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (1, 6), (6, 1)])
def test_the_spectral_scale_bounds_the_spectral_norm(alpha, mode, shape):
    weight, gradients = weight_and_gradients(*shape, steps=1)
    before = weight.detach().clone()
    settings = {"momentum": 0.0, "update_scale": "spectral", "weight_decay": 0.0}
    run(SpectralNewton([weight], 1.0, alpha, 0.1, mode, **settings), weight, gradients)
    norm = torch.linalg.matrix_norm(weight.detach() - before, 2) / math.sqrt(max(1, shape[0] / shape[1]))
    assert 0.05 < norm <= 1 + 1e-3
    if mode == "spectral" and alpha <= 1:
        assert norm > 0.97


@pytest.mark.parametrize("rank", [1, 2, 8, 64])
@pytest.mark.parametrize("shape", [(64, 64), (64, 160), (160, 64)])
def test_the_default_scale_bounds_the_spectral_norm_by_shape(shape, rank):
    """A Frobenius norm of 0.2·√(mn) on a gradient of rank 1 would be a spectral norm √min(m, n) times Muon's."""
    m, n = shape
    weight = nn.Parameter(torch.zeros(m, n))
    weight.grad = torch.randn(m, rank) @ torch.randn(rank, n)
    SpectralNewton([weight], 1.0, weight_decay=0.0).step()
    norm = torch.linalg.matrix_norm(weight.detach(), 2) / (0.2 * max(m, n) ** 0.5)
    assert norm <= 1.001 and norm >= 1 / math.sqrt(min(rank, 8)) - 1e-3
    assert weight.square().mean().sqrt() <= 0.2


def test_the_closed_form_at_alpha_two():
    weight, gradients = weight_and_gradients(5, 7, steps=1)
    update = reference.spectral_newton(gradients[0], 2.0, 0.3)
    expected = weight.detach() - update * 2 * math.sqrt(0.3)
    settings = {"momentum": 0.0, "update_scale": "spectral", "weight_decay": 0.0}
    result = run(SpectralNewton([weight], 1.0, 2.0, 0.3, "absolute", **settings), weight, gradients)
    torch.testing.assert_close(result, expected)


def test_a_callable_scale():
    weight, gradients = weight_and_gradients(5, 7)
    expected = plain(weight, gradients, c=3.0)
    optimizer = SpectralNewton([weight], LR, weight_decay=DECAY, update_scale=lambda update: 3.0)
    torch.testing.assert_close(run(optimizer, weight, gradients), expected)


def test_a_callable_scale_is_one_factor_a_matrix():
    """(4,) for (4, 3, 4) would broadcast over the columns."""
    weight, gradients = weight_and_gradients(4, 3, 4, steps=1)
    expected = weight.detach() * (1 - LR * DECAY)
    settings = {"batch_dims": 1, "weight_decay": DECAY, "tolerance": None}
    with pytest.raises(ValueError, match=r"shape \(4,\) for updates of shape \(4, 3, 4\).*keepdim"):
        run(SpectralNewton([weight], LR, update_scale=lambda T: T.norm(dim=(-2, -1)), **settings), weight, gradients)
    optimizer = SpectralNewton(
        [weight], LR, update_scale=lambda T: 1 / torch.linalg.vector_norm(T, dim=(-2, -1), keepdim=True), **settings
    )
    steps = (run(optimizer, weight, gradients) - expected) / LR
    torch.testing.assert_close(torch.linalg.vector_norm(steps, dim=(-2, -1)), torch.ones(4, dtype=torch.float64))


def test_convolutions_experts_and_fused_weights_are_matrices_of_their_own():
    shapes = {"conv": (4, 3, 2, 2), "experts": (3, 4, 5), "qkv": (6, 4), "grouped": (6, 5)}
    weights = {name: weight_and_gradients(*shape) for name, shape in shapes.items()}
    expected = {}
    for name, (weight, gradients) in weights.items():
        cut = {
            "conv": lambda t: [t.flatten(1)],
            "experts": lambda t: list(t),
            "qkv": lambda t: list(t.split(2)),
            "grouped": lambda t: list(t.split((1, 3, 2))),
        }[name]
        pieces = [plain(w, g, c=shape_factor) for w, g in zip(cut(weight), zip(*(cut(g) for g in gradients)))]
        expected[name] = (torch.stack(pieces) if name == "experts" else torch.cat(pieces)).reshape(weight.shape)
    optimizer = SpectralNewton(
        [(name, weight) for name, (weight, _) in weights.items()],
        LR,
        weight_decay=DECAY,
        batch_dims={"experts": 1},
        split={"qkv": 3, "grouped": (1, 3, 2)},
    )
    for step in range(3):
        for weight, gradients in weights.values():
            weight.grad = gradients[step]
        optimizer.step()
    for name, (weight, _) in weights.items():
        torch.testing.assert_close(weight.detach(), expected[name], msg=name)


def test_per_parameter_settings_as_lists_and_patterns():
    cases = [(1.0, 0.2, "rms"), (2.0, 0.1, "spectral"), (3.0, 0.4, "absolute")]
    for as_mapping in (False, True):
        weights = [weight_and_gradients(4, 5) for _ in cases]
        expected = [plain(w, g, *case) for (w, g), case in zip(weights, cases)]
        keys = ("alpha", "damping", "damping_mode")
        values = [dict(zip("abc", column)) if as_mapping else list(column) for column in zip(*cases)]
        settings = dict(zip(keys, values)) | {"update_scale": None, "weight_decay": DECAY, "tolerance": None}
        optimizer = SpectralNewton([(name, w) for name, (w, _) in zip("abc", weights)], LR, **settings)
        for step in range(3):
            for weight, gradients in weights:
                weight.grad = gradients[step]
            optimizer.step()
        for (weight, _), want in zip(weights, expected):
            torch.testing.assert_close(weight.detach(), want)


def test_a_list_for_the_matrices_of_a_model():
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, 3))
    group = SpectralNewton(model, alpha=[1.0, 1.5], batch_dims=(0, 0)).param_groups[0]
    assert dict(zip(group["param_names"], group["alpha"])) == {"0.weight": 1.0, "2.weight": 1.5}
    with pytest.raises(ValueError, match=r"alpha has 3 values for the 2 parameters from '0\.weight' on"):
        SpectralNewton(model, alpha=[1.0, 1.5, 2.0])


def test_the_rest_is_torch_adamw():
    model, twin = (nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)) for _ in range(2))
    twin.load_state_dict(model.state_dict())
    optimizer = SpectralNewton(model, 0.1, adamw_lr=0.01, adamw_weight_decay=0.2, adamw_betas=(0.8, 0.9))
    rest = [p for name, p in twin.named_parameters() if name != "0.weight"]
    peer = torch.optim.AdamW(rest, 0.01, betas=(0.8, 0.9), weight_decay=0.2)
    assert [g["lr"] for g in optimizer.param_groups] == [0.1, 0.01]
    for _ in range(4):
        for p, q in zip(model.parameters(), twin.parameters()):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        optimizer.step()
        peer.step()
    for (name, p), q in zip(model.named_parameters(), twin.parameters()):
        assert torch.equal(p, q) is (name != "0.weight"), name


def test_a_mixed_group_becomes_two_and_plain_tensors_work():
    matrix, vector = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(3))
    optimizer = SpectralNewton([{"params": [vector, matrix], "lr": 0.3, "alpha": [1.0, 1.5]}], adamw_lr=0.1)
    first, second = optimizer.param_groups
    assert first["params"][0] is matrix and first["alpha"] == 1.5 and first["lr"] == 0.3
    assert second["params"][0] is vector and second["use_adamw"] and second["alpha"] is None


def test_zero_gradients_give_zero_updates_and_decay_applies():
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
    optimizer = SpectralNewton(model, LR, weight_decay=DECAY)
    before = copy.deepcopy(model.state_dict())
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.state_dict().items():
        torch.testing.assert_close(p, before[name] * (1 - LR * DECAY))
    for scale in (None, "spectral", "match_rms_adamw"):
        weight = nn.Parameter(torch.ones(3, 4))
        weight.grad = torch.zeros(3, 4)
        SpectralNewton([weight], weight_decay=0.0, update_scale=scale).step()
        assert torch.equal(weight, torch.ones(3, 4))


@pytest.mark.parametrize("update_scale", ["match_rms_adamw", "spectral"])
@pytest.mark.parametrize("mode", ["rms", "spectral"])
@pytest.mark.parametrize("alpha", [0.6, 2.0, 3.0])
@pytest.mark.parametrize(
    "dtype, scale",
    [(torch.float16, 2.0**-12), (torch.float16, 2.0**9)]
    + [(dtype, 2.0**power) for dtype in (torch.bfloat16, torch.float32) for power in (-110, -66, 60, 110)]
    + [(torch.float32, 2.0**-140)],
    ids=str,
)
def test_the_scale_of_the_gradient_does_not_matter(dtype, scale, alpha, mode, update_scale):
    """T goes as the gradient's power 1 − α and leaves the range of the dtype long before the gradient does."""
    gradient = torch.randint(-63, 64, (2, 6, 9)).to(dtype)
    settings = {"alpha": alpha, "damping_mode": mode, "update_scale": update_scale, "weight_decay": 0.0}
    steps = []
    for factor in (1.0, scale):
        for batch_dims in (0, 1):
            weight = nn.Parameter(torch.zeros(2, 6, 9, dtype=dtype))
            weight.grad = gradient * factor
            SpectralNewton([weight], 1.0, momentum=0.0, batch_dims=batch_dims, **settings).step()
            steps.append(weight.detach())
    close = {torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float32: 1e-4 if scale > 2.0**-120 else 3e-2}[dtype]
    torch.testing.assert_close(steps[0], steps[2], rtol=close, atol=close)
    torch.testing.assert_close(steps[1], steps[3], rtol=close, atol=close)


@pytest.mark.parametrize("capturable", [False, True])
def test_a_matrix_without_gradient_is_not_moved_by_its_momentum(capturable):
    experts, linear = nn.Parameter(torch.zeros(3, 4, 5)), nn.Parameter(torch.zeros(4, 5))
    settings = {"capturable": capturable, "nonfinite": "skip"}
    optimizer = SpectralNewton([("e", experts), ("l", linear)], LR, batch_dims={"e": 1}, weight_decay=0.0, **settings)
    experts.grad, linear.grad = torch.randn(3, 4, 5), torch.randn(4, 5)
    optimizer.step()
    before = experts.detach().clone(), linear.detach().clone()
    momentum = optimizer.state[experts]["momentum_buffer"].clone()
    experts.grad[1] = 0
    experts.grad[2, 0] = 0
    linear.grad.zero_()
    optimizer.step()
    moved = (experts.detach() != before[0]).flatten(1).any(1)
    assert moved.tolist() == [True, False, True] and torch.equal(linear, before[1])
    torch.testing.assert_close(optimizer.state[experts]["momentum_buffer"][1], 0.95 * momentum[1])
    optimizer.param_groups[0]["weight_decay"] = DECAY
    optimizer.step()
    torch.testing.assert_close(linear.detach(), before[1] * (1 - LR * DECAY))


def test_momentum_that_has_decayed_into_denormals_does_no_harm():
    """An element of the gradient so small that the momentum of the rest underflows beside it."""
    weight = nn.Parameter(torch.zeros(4, 5))
    optimizer = SpectralNewton([weight], LR, weight_decay=0.0)
    weight.grad = torch.randn(4, 5)
    for step in range(2100):
        optimizer.step()
        weight.grad = torch.zeros(4, 5)
        weight.grad[0, 0] = 1e-44
        assert weight.isfinite().all(), step


def test_parameters_without_gradient_are_left_alone():
    a, b = (nn.Parameter(torch.ones(3, 4)) for _ in range(2))
    optimizer = SpectralNewton([a, b], LR, weight_decay=DECAY)
    optimizer.step()
    a.grad = torch.randn(3, 4)
    optimizer.step()
    assert torch.equal(b, torch.ones(3, 4)) and not torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dtypes_are_kept_and_the_update_is_right(dtype):
    weight, gradients = weight_and_gradients(8, 12, steps=1)
    expected = plain(weight, gradients, c=shape_factor)
    low = nn.Parameter(weight.detach().to(dtype))
    optimizer = SpectralNewton([low], LR, weight_decay=DECAY)
    run(optimizer, low, gradients.to(dtype))
    assert low.dtype == dtype and optimizer.state[low]["momentum_buffer"].dtype == torch.float32
    tolerance = {torch.bfloat16: 2e-2, torch.float16: 3e-3, torch.float32: 1e-5}[dtype]
    torch.testing.assert_close(low.detach().double(), expected, atol=tolerance, rtol=tolerance)


def test_channels_last_weights_take_the_same_steps():
    first, second = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
    second.load_state_dict(first.state_dict())
    second.to(memory_format=torch.channels_last)
    one, two = SpectralNewton(first, LR), SpectralNewton(second, LR)
    for _ in range(3):
        x = torch.randn(4, 3, 6, 6)
        for model, optimizer in ((first, one), (second, two)):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    assert second.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(first.weight, second.weight)


def test_odd_strides_and_gradients_of_another_layout():
    gradient = torch.randn(6, 4)
    weights = [nn.Parameter(torch.ones(6, 4)), nn.Parameter(torch.ones(4, 6).t())]
    for weight in weights:
        weight.grad = gradient.clone()
        SpectralNewton([weight], LR).step()
    torch.testing.assert_close(*weights)


def test_it_minimises_and_the_loss_scale_does_not_matter():
    x = torch.randn(256, 10)
    y = (x @ torch.randn(10, 5)).argmax(1)
    results = []
    for loss_scale in (1.0, 2.0**10):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 5))
        optimizer = SpectralNewton(model, 0.04, adamw_eps=0.0)
        for _ in range(40):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            (loss_scale * loss).backward()
            optimizer.step()
        results.append(loss.item())
    assert results[0] < 0.3
    assert results[1] == pytest.approx(results[0], rel=1e-2)
