"""A linear layer under a log-softmax: the same curvature as by the rules of the single operations."""

import curvature_cases
import pytest
import torch
import torch.nn.functional as F
from curvature_cases import build
from torch import nn

from spectral_ext import directional_curvature
from spectral_ext.curvature import estimate_memory, tangent_adjoint
from spectral_ext.curvature.softmax_head import find_heads


class Logits(nn.Module):
    """x (B, T, d) → logits (B, T, V)."""

    def __init__(self, features=6, classes=9, bias=True):
        super().__init__()
        self.hidden = nn.Linear(5, features)
        self.head = nn.Linear(features, classes, bias=bias)

    def forward(self, x):
        return self.head(self.hidden(x).tanh())


def data(B=4, T=3):
    return [(torch.randn(B, T, 5).double(), torch.randint(9, (B, T)))]


def heads(monkeypatch):
    """The heads that a measurement finds, and a switch that finds none."""
    found = []

    def spy(*args):
        found.extend(find_heads(*args))
        return list(found)

    monkeypatch.setattr(tangent_adjoint, "find_heads", spy)
    return found, lambda: monkeypatch.setattr(tangent_adjoint, "find_heads", lambda *_: [])


def parts(model, loss, batches, **options):
    options = {"top_k": 4, "method": "tangent_adjoint", "split": True, "self_check": False, **options}
    return {name: layer.parts for name, layer in directional_curvature(model, loss, batches, **options).items()}


def assert_same(found, expected, tolerance=1e-11):
    for name, one in expected.items():
        scale = float(torch.stack(list(one.values())).abs().max())
        for kind, value in one.items():
            assert (found[name][kind] - value).abs().max() < tolerance * scale, (name, kind)


def middle(logits, y):
    return F.cross_entropy(logits.movedim(-1, 1), y)


def shifted(logits, y):
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), y[:, 1:].flatten())


def last(logits, y):
    return F.cross_entropy(logits[:, -1], y[:, -1])


def selected(logits, y):
    return F.cross_entropy(logits[y > 3], y[y > 3])


def tempered(logits, y):
    return F.cross_entropy((logits / 0.7 * 1.5).flatten(0, 1), y.flatten())


def ignored(logits, y):
    return F.cross_entropy(logits.flatten(0, 1), y.masked_fill(y > 5, -100).flatten())


def smoothed(logits, y):
    return F.cross_entropy(
        logits.flatten(0, 1), y.flatten(), label_smoothing=0.2, weight=torch.arange(1.0, 10).double()
    )


def soft(logits, y):
    return F.cross_entropy(logits.flatten(0, 1), F.one_hot(y, 9).flatten(0, 1).double() * 0.6 + 0.1)


def by_hand(logits, y):
    return -logits.log_softmax(-1).gather(-1, y.unsqueeze(-1)).mean()


LOSSES = {f.__name__: f for f in (middle, shifted, last, selected, tempered, ignored, smoothed, soft, by_hand)}


@pytest.mark.filterwarnings("ignore:the loss is neither")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", LOSSES)
def test_losses(name, bias, monkeypatch):
    """The rules of the single operations, which are compared with double backward elsewhere, are the reference."""
    torch.manual_seed(0)
    model, batches = Logits(bias=bias).double(), data()
    found, none = heads(monkeypatch)
    with_heads = parts(model, LOSSES[name], batches)
    assert len(found) == 1
    none()
    assert_same(with_heads, parts(model, LOSSES[name], batches))


def padded_vocabulary(logits, y):
    return F.cross_entropy(logits[..., :8].flatten(0, 1), y.clamp_max(7).flatten())


def capped(logits, y):
    return F.cross_entropy(5 * torch.tanh(logits.flatten(0, 1) / 5), y.flatten())


def with_z_loss(logits, y):
    return middle(logits, y) + 0.1 * logits.logsumexp(-1).square().mean()


def focal(logits, y):
    log_p = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none")
    return ((1 - (-log_p).exp()) ** 2 * log_p).mean()


@pytest.mark.parametrize("loss", [padded_vocabulary, capped, with_z_loss, focal], ids=lambda f: f.__name__)
def test_what_is_no_head(loss, monkeypatch):
    """Something curved, or a choice of classes, between the product and the loss."""
    torch.manual_seed(0)
    found, _ = heads(monkeypatch)
    model, batches = Logits().double(), data()
    result = directional_curvature(model, loss, batches, top_k=3, method="tangent_adjoint")
    assert not found and all(layer.check.passed for layer in result.values())


def test_two_heads_on_one_input(monkeypatch):
    torch.manual_seed(0)

    class Two(Logits):
        def __init__(self):
            super().__init__()
            self.other = nn.Linear(6, 9)

        def forward(self, x):
            h = self.hidden(x).tanh()
            return self.head(h), self.other(h)

    found, _ = heads(monkeypatch)
    model = Two().double()
    result = directional_curvature(
        model, lambda o, y: middle(o[0], y) + 0.3 * middle(o[1], y), data(), top_k=3, method="tangent_adjoint"
    )
    assert len(found) == 2 and all(layer.check.passed for layer in result.values())


def test_tied_embedding_is_no_head(monkeypatch):
    found, _ = heads(monkeypatch)
    model, loss, batches = build("gpt, tied embeddings, attention by hand")
    table = next(name for name, module in model.named_modules() if isinstance(module, nn.Embedding))
    result = directional_curvature(model, loss, batches, layers=table, top_k=3, method="tangent_adjoint")
    assert not found and all(layer.check.passed for layer in result.values())


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_directions_in_the_head(dense, transposed, monkeypatch):
    class Conv1D(nn.Module):
        nf = 9

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 9))

        def forward(self, x):
            return (x.flatten(0, -2) @ self.weight).unflatten(0, x.shape[:-1])

    torch.manual_seed(0)
    model, batches = Logits(), data()
    if transposed:
        model.head = Conv1D()
    model.double()
    U, V = torch.randn(9, 3).double(), torch.randn(6, 3).double()
    along = {"head": torch.randn(3, *model.head.weight.shape).double() if dense else (U, V)}
    found, none = heads(monkeypatch)
    with_head = parts(model, middle, batches, directions=along)
    assert len(found) == 1
    none()
    assert_same(with_head, parts(model, middle, batches, directions=along))
    checked = directional_curvature(model, middle, batches, directions=along, method="double_backward_weight")["head"]
    assert torch.allclose(with_head["head"]["gauss_newton"], checked.h, rtol=1e-10)


def test_small_variances_are_not_lost_in_float32():
    """A confident model: the variance of the logit tangents is 10⁻⁷ of their square."""
    torch.manual_seed(0)
    model, batches = Logits(), [(x.float(), y) for x, y in data(16)]
    with torch.no_grad():
        model.head.weight.mul_(60)
    batches = [(x, model(x).argmax(-1)) for x, _ in batches]
    found = parts(model, middle, batches)
    U_V = directional_curvature(model, middle, batches, top_k=4, self_check=False, method="tangent_adjoint")
    along = {name: (layer.U.double(), layer.V.double()) for name, layer in U_V.items()}
    exact = parts(model.double(), middle, [(x.double(), y) for x, y in batches], directions=along)
    for name, one in exact.items():
        truth = one["gauss_newton"]
        assert ((found[name]["gauss_newton"] - truth).abs() < 2e-4 * truth.abs().max()).all()


def test_memory_estimate_knows_that_no_logit_tangents_are_written():
    model = Logits(6, 9).double()
    narrow = estimate_memory(model, middle, data(16)[0]).per_direction["hidden"]
    wide = Logits(6, 2000).double()
    assert estimate_memory(wide, middle, data(16)[0]).per_direction["hidden"] == narrow


def test_every_case_of_the_table_has_the_same_parts(monkeypatch):
    for name in ("gpt, tied embeddings, fused attention", "relu, kl", "odd operations", "batches of different sizes"):
        assert name in curvature_cases.CASES
        model, loss, batches = build(name)
        with monkeypatch.context() as patch:
            found, none = heads(patch)
            with_heads = parts(model, loss, batches)
            assert found
            none()
            assert_same(with_heads, parts(model, loss, batches))
