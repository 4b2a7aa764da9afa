"""Float64 where the terms of h cancel, and which layers the self-check compares."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from spectral_ext.curvature import directional_curvature, verification
from spectral_ext.curvature.representatives import representatives

CE = nn.CrossEntropyLoss()


def nearly_flat(output, target):
    """Its second derivative 1 − cos z ≈ z²/2 is what is left of two terms near 1."""
    return (output * output / 2 + output.cos()).mean()


class Small(nn.Module):
    """Outputs near 0.01, by way of what a raised graph must convert: casts, constants, a table and fresh numbers."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(12, 10, bias=False), nn.Linear(10, 8, bias=False)
        self.register_buffer("table", torch.linspace(0.5, 1.5, 10))
        self.mix = torch.eye(10) + 0.1

    def forward(self, x):
        h = torch.tanh(self.a(x)).to(self.table.dtype) * self.table
        h = (h.float() if h.dtype == torch.float32 else h) @ self.mix.to(h.dtype)
        h = h + torch.arange(10).to(h.dtype) * 1e-3 * torch.ones(10, dtype=h.dtype)
        return self.b(h) * 0.02


def small():
    torch.manual_seed(0)
    return Small(), [(torch.randn(16, 12), torch.zeros(16))]


class Deep(nn.Module):
    """Seven equal blocks, of which the fourth has another activation."""

    def __init__(self, depth=7):
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(6, 9), "down": nn.Linear(9, 6)}) for _ in range(depth)
        )
        self.last = nn.Linear(6, 4)

    def forward(self, x):
        x = self.first(x)
        for i, block in enumerate(self.blocks):
            x = x + block["down"]((F.softplus if i == 3 else F.gelu)(block["up"](x)))
        return self.last(x)


def deep():
    torch.manual_seed(0)
    return Deep().double(), [(torch.randn(9, 5).double(), torch.randint(4, (9,)))]


def in_double(model, data, found):
    directions = {name: (r.U.double(), r.V.double()) for name, r in found.items()}
    double = copy.deepcopy(model).double()
    data = [tuple(t.double() for t in batch) for batch in data]
    return directional_curvature(double, nearly_flat, data, directions=directions, method="double_backward_weight")


@pytest.mark.parametrize("self_check", [None, False])
@pytest.mark.parametrize("method", ["auto", "tangent_adjoint"])
def test_directions_whose_terms_cancel_are_measured_in_float64(method, self_check, monkeypatch):
    model, data = small()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = directional_curvature(
            model, nearly_flat, data, top_k=5, method=method, self_check=self_check, split=True, layers="b"
        )
    exact = in_double(model, data, found)
    monkeypatch.setattr(verification, "CANCELLATION", 1e30)
    plain = directional_curvature(
        model, nearly_flat, data, directions={"b": (found["b"].U, found["b"].V)}, method=method, self_check=False
    )
    assert plain["b"].notes == []
    result, truth = found["b"], exact["b"].h
    assert result.method == "tangent_adjoint" and result.h.dtype == torch.float32
    assert result.notes == ["all directions in float64 arithmetic, because the terms of h cancel"]
    assert torch.allclose(result.h.double(), truth, rtol=2e-6, atol=0)
    assert float((plain["b"].h.double() / truth - 1).abs().max()) > 1e-4  # what float32 makes of it
    assert torch.allclose(sum(result.parts.values()), result.h, rtol=1e-5)


def test_only_the_directions_that_cancel_are_repeated(monkeypatch):
    model, data = small()
    monkeypatch.setattr(verification, "_cancelling", lambda result: [1, 3])
    found = directional_curvature(model, nearly_flat, data, top_k=5, self_check=False)
    exact = in_double(model, data, found)
    for name, result in found.items():
        assert result.notes == ["k = 2, 4 in float64 arithmetic, because the terms of h cancel"]
        error = (result.h.double() / exact[name].h - 1).abs()
        assert float(error[[1, 3]].max()) < 2e-6 < float(error[[0, 2, 4]].max())


def test_a_layer_that_fails_its_check_is_measured_in_float64_without_a_warning(monkeypatch):
    from spectral_ext.curvature import methods

    right = methods.tangent_adjoint

    def coarse(plan, directions, done, in_float64=False):
        found = right(plan, directions, done, in_float64=in_float64)
        for result in found.values():
            result.first = result.first * (1.0 if in_float64 else 1.01)
            result.parts = {kind: h * (1.0 if in_float64 else 1.01) for kind, h in result.parts.items()}
        return found

    model, data = deep()
    exact = directional_curvature(model, CE, data, top_k=3, method="double_backward_output", layers="first")["first"]
    monkeypatch.setattr(methods, "tangent_adjoint", coarse)
    data = [(data[0][0].float(), data[0][1])]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = directional_curvature(model.float(), CE, data, top_k=3, layers="first")["first"]
    assert found.method == "tangent_adjoint" and found.check.passed
    assert found.notes == ["all directions in float64 arithmetic, because float32 failed the check"]
    assert torch.allclose(found.h.double(), exact.h, rtol=1e-5)


def test_float64_arithmetic_keeps_to_the_memory_budget_and_to_pieces():
    model, data = small()
    x, y = data[0]
    whole = directional_curvature(model, nearly_flat, data, top_k=4)
    directions = {name: (r.U, r.V) for name, r in whole.items()}
    pieces = [(x[:5], y[:5]), (x[5:], y[5:])]
    cut = directional_curvature(model, nearly_flat, pieces, directions=directions)
    from spectral_ext.curvature import estimate_memory

    budget = estimate_memory(model, nearly_flat, data[0]).total(1)
    tight = directional_curvature(model, nearly_flat, data, directions=directions, memory_budget=budget)
    for name, result in whole.items():
        assert "float64 arithmetic" in cut[name].notes[0] and "float64 arithmetic" in tight[name].notes[0]
        assert torch.allclose(cut[name].h, result.h, rtol=3e-6)
        assert torch.allclose(tight[name].h, result.h, rtol=3e-6)


def test_a_wrong_method_is_not_excused_by_float64(monkeypatch):
    from spectral_ext.curvature import methods

    right = methods.tangent_adjoint

    def wrong(*args, **kwargs):
        found = right(*args, **kwargs)
        for result in found.values():
            result.first = result.first * 1.01
        return found

    monkeypatch.setattr(methods, "tangent_adjoint", wrong)
    model, data = small()
    with pytest.warns(UserWarning, match="b: tangent_adjoint is not used: h differs"):
        found = directional_curvature(model, nearly_flat, data, top_k=3, layers="b")
    assert found["b"].method == "double_backward_output"


# Which layers are compared


def test_three_layers_of_each_kind_are_compared_and_the_others_name_them():
    model, data = deep()
    found = directional_curvature(model, CE, data, top_k=2)
    compared = {name for name, result in found.items() if result.check is not None}
    # sqrt_gn measures the last block's down, which therefore is of another kind.
    blocks = {*(f"blocks.{i}.up" for i in (0, 3, 6)), *(f"blocks.{i}.down" for i in (0, 2, 5, 6))}
    assert compared == {"first", "last", *blocks}
    assert all(found[name].check.passed and not found[name].notes for name in compared)
    assert found["blocks.2.up"].notes == [
        "the self-check compares blocks.0.up, blocks.3.up, blocks.6.up for all layers of its kind"
    ]
    every = directional_curvature(model, CE, data, top_k=2, self_check=True)
    assert all(result.check.passed for result in every.values())
    none = directional_curvature(model, CE, data, top_k=2, self_check=False)
    for name, result in found.items():
        assert torch.equal(result.h, every[name].h) and torch.equal(result.h, none[name].h)
        assert none[name].check is None and none[name].notes == []


def test_a_layer_that_fails_has_all_of_its_kind_compared(monkeypatch):
    from spectral_ext.curvature import methods

    right = methods.tangent_adjoint

    def wrong(*args, **kwargs):
        found = right(*args, **kwargs)
        for name in found.keys() & {"blocks.3.up", "blocks.4.up"}:
            found[name].first = found[name].first * 1.1
        return found

    monkeypatch.setattr(methods, "tangent_adjoint", wrong)
    model, data = deep()
    with pytest.warns(UserWarning, match="h differs from double backward") as caught:
        found = directional_curvature(model, CE, data, top_k=2)
    fallen = {name for name, result in found.items() if result.method.startswith("double_backward")}
    assert fallen == {"blocks.3.up", "blocks.4.up"}
    assert all(any(str(w.message).startswith(f"{name}:") for w in caught) for name in fallen)
    assert all(found[f"blocks.{i}.up"].check is not None for i in range(7))
    assert found["blocks.1.down"].check is None


def test_representatives_cover_kinds_and_operations():
    names = [f"blocks.{i}.{part}" for i in range(7) for part in ("up", "down")]
    kinds = {name: name[-2:] for name in names}
    plain = {name: ["mm", "gelu"] for name in names}
    chosen = representatives(kinds, plain)
    assert chosen == {f"blocks.{i}.{part}" for i in (0, 3, 6) for part in ("up", "down")}
    special = {**plain, "blocks.1.up": ["mm", "erf"], "blocks.2.up": ["erf"], "blocks.4.down": ["cdist"]}
    assert representatives(kinds, special) == chosen | {"blocks.1.up", "blocks.4.down"}
    assert representatives(dict(list(kinds.items())[:4]), plain) == set(names[:4])
