"""What tells a right h from a wrong one: sums, references, coupled samples, refusals."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from spectral_ext.curvature import directional_curvature
from spectral_ext.curvature.sums import inner_products, sum_in_float64, weighted_squares

CE = nn.CrossEntropyLoss()


# Long sums


@pytest.mark.parametrize("size", [10, 4096, 4097, 50_000, 3_000_000])
def test_the_error_of_float32_sums_does_not_grow_with_their_length(size):
    torch.manual_seed(0)
    tangents, weight = torch.randn(2, size), torch.rand(size)
    expected = (tangents.double().square() * weight.double()).sum(1)
    assert weighted_squares(tangents, weight).dtype == torch.float64
    assert torch.allclose(weighted_squares(tangents, weight), expected, rtol=5e-7, atol=0)
    assert torch.allclose(sum_in_float64(tangents.square() * weight), expected, rtol=5e-7, atol=0)
    positive = tangents.abs()
    expected = positive.double() @ weight.double()
    assert torch.allclose(inner_products(positive, weight), expected, rtol=5e-7, atol=0)


class LanguageModel(nn.Module):
    def __init__(self, vocabulary):
        super().__init__()
        self.tokens, self.up, self.down = nn.Embedding(vocabulary, 16), nn.Linear(16, 24), nn.Linear(24, 16)
        self.norm, self.head = nn.RMSNorm(16), nn.Linear(16, vocabulary, bias=False)

    def forward(self, x):
        z = self.tokens(x)
        return self.head(self.norm(z + self.down(F.silu(self.up(z)))))


@pytest.mark.parametrize("vocabulary", [100, 5_000, 50_000])
def test_a_large_vocabulary_in_float32_keeps_tangents_without_a_warning(vocabulary):
    torch.manual_seed(0)
    model, ids = LanguageModel(vocabulary), torch.randint(vocabulary, (2, 33))

    def loss(output, target):
        return F.cross_entropy(output.flatten(0, 1), target.flatten())

    data = [(ids[:, :-1], ids[:, 1:])]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = directional_curvature(model, loss, data, top_k=2, layers=["up", "down"])
    exact = directional_curvature(
        model.double(),
        loss,
        data,
        directions={n: (r.U, r.V) for n, r in found.items()},
        method="double_backward_output",
    )
    for name, result in found.items():
        assert result.method == "tangent_adjoint"
        assert torch.allclose(result.h.double(), exact[name].h, rtol=3e-6)


# The reference


def test_a_float32_reference_that_is_wrong_itself_is_replaced_by_float64(monkeypatch):
    from spectral_ext.curvature import self_check

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 9), nn.GELU(), nn.Linear(9, 5))
    data = [(torch.randn(6, 7), torch.randint(0, 5, (6,)))]
    weights = [p.clone() for p in model.parameters()]
    exact, seen = self_check.double_backward, []

    def noisy(plan, few, *args, **kwargs):
        results = exact(plan, few, *args, **kwargs)
        for name, result in results.items():
            weight = plan.layers[name].weight
            seen.append(weight.dtype)
            if weight.dtype == torch.float32:
                result.first = result.first * 1.005
        return results

    monkeypatch.setattr(self_check, "double_backward", noisy)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = directional_curvature(model, CE, data, top_k=3)
    assert set(seen) == {torch.float32, torch.float64}
    for result in found.values():
        assert result.method == "tangent_adjoint" and result.check.error < 1e-5
        assert result.check.reference == "double backward in torch.float64"
    for parameter, before in zip(model.parameters(), weights, strict=True):
        assert isinstance(parameter, nn.Parameter) and parameter.dtype == torch.float32
        assert torch.equal(parameter, before)


@pytest.mark.parametrize("method", ["tangent_adjoint", "sqrt_gn"])
def test_a_fast_method_asked_for_by_name_is_checked_too(method, monkeypatch):
    from spectral_ext.curvature import methods

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 5)).double()
    data = [(torch.randn(6, 7).double(), torch.randint(0, 5, (6,)))]
    assert directional_curvature(model, CE, data, method=method)["0"].check.passed
    right = getattr(methods, method)

    def wrong(plan, directions, done):
        found = right(plan, directions, done)
        found["0"].first = found["0"].first * 1.1
        return found

    monkeypatch.setattr(methods, method, wrong)
    with pytest.raises(ValueError, match=f"method='{method}' is wrong for '0': h differs"):
        directional_curvature(model, CE, data, method=method)
    assert directional_curvature(model, CE, data, method=method, self_check=False)["0"].check is None


# Samples that influence each other


class Mixing(nn.Module):
    def __init__(self, mix):
        super().__init__()
        self.a, self.b, self.mix = nn.Linear(6, 8), nn.Linear(8, 5), mix

    def forward(self, x):
        return self.b(self.mix(self.a(x).relu()).relu())


MIXTURES = {
    "roll by one": lambda h: h + h.roll(1, 0),
    "roll by two": lambda h: h + h.roll(2, 0),
    "flip": lambda h: h + h.flip(0),
    "product over the batch": lambda h: (torch.eye(len(h)) + torch.ones(len(h), len(h)).triu(1) / 9).to(h) @ h,
    "mean": lambda h: h - h.mean(0),
    "sort": lambda h: h.sort(0).values,
    "cumulative sum": lambda h: h.cumsum(0),
    "faint": lambda h: h - 1e-3 * h.mean(0),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("mixture", MIXTURES)
def test_sqrt_gn_refuses_samples_that_influence_each_other(mixture, dtype):
    torch.manual_seed(0)
    model = Mixing(MIXTURES[mixture]).to(dtype)
    data = [(torch.randn(8, 6).to(dtype), torch.randint(5, (8,)))]
    for check in (None, False):
        with pytest.raises(ValueError, match=r"sqrt_gn.*'a': the model couples the samples"):
            directional_curvature(model, CE, data, method="sqrt_gn", self_check=check, layers="a")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = directional_curvature(model, CE, data, layers="a")["a"]
    assert found.method == "tangent_adjoint" and "couples" in found.reason


def test_sqrt_gn_refuses_a_loss_that_couples_a_sample_with_its_mirror_image():
    torch.manual_seed(0)
    model, data = Mixing(lambda h: h).double(), [(torch.randn(8, 6).double(), torch.randint(5, (8,)))]
    with pytest.raises(ValueError, match="the loss couples the samples"):
        directional_curvature(
            model, lambda o, t: CE(o, t) + (o * o.flip(0)).sum(1).mean(), data, method="sqrt_gn", self_check=False
        )


# Scales, sizes and arguments


@pytest.mark.parametrize("exponent", [-30, -20, 20, 30])
def test_h_scales_with_the_loss(exponent):
    torch.manual_seed(0)
    model, scale = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 4)), 10.0**exponent
    x, y = torch.randn(32, 8), torch.randint(4, (32,))
    plain = directional_curvature(model, CE, [(x, y)], top_k=3)
    directions = {name: (r.U, r.V) for name, r in plain.items()}
    found = directional_curvature(model, lambda o, t: CE(o, t) * scale, [(x, y)], directions=directions)
    for name, result in found.items():
        assert torch.allclose(result.h.double() / scale, plain[name].h.double(), rtol=1e-5)


def test_underflow_is_named():
    model, data = nn.Linear(8, 4), [(torch.randn(32, 8), torch.randint(4, (32,)))]
    found = directional_curvature(nn.Sequential(model), lambda o, t: CE(o, t) * 1e-40, data)
    assert not found and "its gradient underflows float32" in found.skipped["0"]


def test_layers_without_entries_are_skipped_and_named():
    class Pruned(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 0), nn.Linear(0, 5), nn.Linear(5, 3)

        def forward(self, x):
            return self.c(torch.tanh(self.b(self.a(x))) + x[:, :5])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of initialising nothing
        model = Pruned()
    data = [(torch.randn(16, 6), torch.randint(3, (16,)))]
    found = directional_curvature(model, CE, data)
    assert list(found) == ["c"] and all("has no entries" in found.skipped[name] for name in "ab")
    with pytest.raises(ValueError, match="a: its weight has no entries"):
        directional_curvature(model, CE, data, layers=["a", "b"])
    with pytest.raises((KeyError, ValueError), match=r"no entries|not a measurable"):
        directional_curvature(model, CE, data, directions={"a": (torch.ones(0, 1), torch.ones(6, 1))})


def test_options_are_judged_before_the_first_loss():
    calls = []

    def loss(output, target):
        calls.append(1)
        return CE(output, target)

    model, data = nn.Sequential(nn.Linear(8, 4)), [(torch.randn(6, 8), torch.randint(4, (6,)))]
    bad = (torch.ones(1, 1), torch.ones(1, 1))
    for options in (
        {"method": "sqrt"}, {"memory_budget": -1}, {"memory_budget": "x"}, {"top_k": 0}, {"self_check": "yes"},
        {"directions": {"0": bad}}, {"split": 3},
    ):  # fmt: skip
        with pytest.raises((ValueError, TypeError)):
            directional_curvature(model, loss, data, **options)
    assert not calls


def test_measure_keeps_the_other_layers_where_one_cannot_be_measured():
    from spectral_ext import measure

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 30), nn.ReLU(), nn.Linear(30, 4)).double()
    data = [(torch.randn(200, 6).double(), torch.randint(4, (200,)))]
    with pytest.warns(UserWarning, match="0 is not measured"):
        landscape = measure(model, CE, data, method="finite_difference", top_k=3, split=False, progress=False)
    assert "do not converge" in landscape["0"].empty_reason
    assert landscape["2"].empty_reason in (None, "") and landscape["2"].method == "finite_difference"
