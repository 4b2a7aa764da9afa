"""h behind operations without a second derivative, and behind functions that hide it."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable

from spectral_ext.curvature import directional_curvature
from spectral_ext.curvature.extrapolation import derivative_at_zero

CE = nn.CrossEntropyLoss()


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        y = torch.sigmoid(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        return g * y * (1 - y)


class Detached(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        y = torch.sigmoid(x)
        ctx.y = y.detach()
        return y

    @staticmethod
    def backward(ctx, g):
        return g * ctx.y * (1 - ctx.y)


class OutsideTorch(torch.autograd.Function):
    """Cannot be traced."""

    @staticmethod
    def forward(ctx, x):
        ctx.y = torch.from_numpy(1 / (1 + np.exp(-x.detach().numpy())))
        return ctx.y.clone()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.y * (1 - ctx.y)


@torch.library.custom_op("spectral_ext_tests::sigmoid", mutates_args=())
def library_sigmoid(x: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(x)


library_sigmoid.register_fake(torch.empty_like)


def _save(ctx, inputs, output):
    ctx.y = output.detach()


library_sigmoid.register_autograd(lambda ctx, g: g * ctx.y * (1 - ctx.y), setup_context=_save)


class Apply(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def network(function, activation=nn.Tanh):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), activation(), nn.Linear(8, 8), Apply(function), nn.Linear(8, 3))
    return net, (torch.randn(16, 6).double(), torch.randint(3, (16,)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("function", [Once.apply, Detached.apply, library_sigmoid])
def test_fused_functions_have_the_h_of_the_plain_one(function, activation, dtype):
    plain, (x, y) = network(torch.sigmoid, activation)
    expected = directional_curvature(plain.double(), CE, [(x, y)], top_k=3)
    fused, _ = network(function, activation)
    directions = {name: (r.U, r.V) for name, r in expected.items()}
    found = directional_curvature(fused.to(dtype), CE, [(x.to(dtype), y)], directions=directions)
    for name, result in found.items():
        assert result.method == "tangent_adjoint"
        scale = float(expected[name].h.abs().max())
        assert torch.allclose(
            result.h.double(), expected[name].h, rtol=0, atol=scale * (1e-11 if dtype == torch.float64 else 2e-6)
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_central_differences_where_nothing_else_is_right(dtype):
    plain, (x, y) = network(torch.sigmoid)
    expected = directional_curvature(plain.double(), CE, [(x, y)], top_k=3)
    model, _ = network(OutsideTorch.apply)
    directions = {name: (r.U, r.V) for name, r in expected.items()}
    found = directional_curvature(model.to(dtype), CE, [(x.to(dtype), y)], directions=directions, split=True)
    for name in ("0", "2"):
        result = found[name]
        assert result.method == "finite_difference" and result.parts is None
        assert "OutsideTorch has no second derivative" in result.reason
        error = (result.h.double() - expected[name].h).abs()
        assert (error <= 1e-6 * expected[name].h.abs().max()).all()
        assert (
            error <= 10 * result.error.double() + (1e-6 if dtype == torch.float32 else 0) * expected[name].h.abs().max()
        ).all()
    assert found["4"].method == "double_backward_output"  # nothing of the function lies behind it
    assert all(parameter.dtype == dtype for parameter in model.parameters())
    with pytest.raises(ValueError, match=r"double_backward_output' is wrong for '[02]': OutsideTorch has no second"):
        directional_curvature(model, CE, [(x.to(dtype), y)], method="double_backward_output")


def test_double_backward_by_name_refuses_once_differentiable_functions():
    model, (x, y) = network(Once.apply, nn.ReLU)
    for method in ("double_backward_output", "double_backward_weight"):
        with pytest.raises(ValueError, match=r"Once: its backward pass is once_differentiable.*finite_difference"):
            directional_curvature(model.double(), CE, [(x, y)], method=method)


def test_kinks_make_central_differences_unusable_and_the_layer_is_named():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 30), nn.ReLU(), nn.Linear(30, 3)).double()
    x, y = torch.randn(200, 6).double(), torch.randint(3, (200,))
    with pytest.warns(UserWarning, match="0 is not measured: central differences of the gradient do not converge"):
        found = directional_curvature(model, CE, [(x, y)], method="finite_difference", top_k=2)
    assert list(found) == ["2"] and "do not converge" in found.skipped["0"]
    with (
        pytest.warns(UserWarning, match="not measured"),
        pytest.raises(ValueError, match=r"0 cannot be measured: .* give the operation a backward pass"),
    ):
        directional_curvature(model, CE, [(x, y)], method="finite_difference", layers="0")


def test_torch_operations_without_a_second_derivative():
    class Distances(nn.Module):
        def __init__(self, mode):
            super().__init__()
            self.a, self.b, self.mode = nn.Linear(6, 8), nn.Linear(8, 3), mode
            self.register_buffer("centres", torch.randn(8, 8))

        def forward(self, x):
            return self.b(torch.cdist(self.a(x), self.centres, compute_mode=self.mode))

    torch.manual_seed(0)
    model, plain = Distances("donot_use_mm_for_euclid_dist"), Distances("use_mm_for_euclid_dist")
    plain.load_state_dict(model.state_dict())
    data = [(torch.randn(16, 6).double(), torch.randint(3, (16,)))]
    found = directional_curvature(model.double(), CE, data, top_k=2)
    directions = {name: (r.U, r.V) for name, r in found.items()}
    expected = directional_curvature(plain.double(), CE, data, directions=directions)
    assert torch.allclose(found["a"].h, expected["a"].h, rtol=1e-8)


def test_derivative_at_zero_states_its_error():
    value, error = derivative_at_zero(lambda t: np.sin(t) + t**3, 0.3, 1e-16)
    assert abs(value - 1) <= 3 * error <= 1e-9
    _, error = derivative_at_zero(lambda t: float(t > 1e-6), 0.3, 1e-16)  # a jump next to 0
    assert error > 0.1


def test_backward_hooks_of_the_user_are_no_function_to_doubt():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    data = [(torch.randn(16, 6), torch.randint(3, (16,)))]
    plain = directional_curvature(model, nn.CrossEntropyLoss(), data, top_k=2, method="double_backward_output")
    model[2].register_full_backward_hook(lambda *_: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = directional_curvature(model, nn.CrossEntropyLoss(), data, top_k=2, method="double_backward_output")
    torch.testing.assert_close(found["0"].h, plain["0"].h, rtol=1e-6, atol=0)
