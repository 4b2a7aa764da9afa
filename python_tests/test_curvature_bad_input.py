"""directional_curvature: what it refuses, and what the refusal says."""

import pytest
import torch
from curvature_cases import C, build, mlp, vectors
from torch import nn

from spectral_ext.curvature import directional_curvature

CE = nn.CrossEntropyLoss()


def refuse(error, match, model=None, loss=CE, batches=None, **options):
    model = mlp(nn.ReLU()).double() if model is None else model
    with pytest.raises(error, match=match):
        directional_curvature(model, loss, vectors() if batches is None else batches, **options)


def test_bad_arguments():
    U, V = torch.ones(9, 2), torch.ones(7, 2)
    refuse(ValueError, "method must be", method="fast")
    refuse(ValueError, "top_k", top_k=0)
    refuse(KeyError, "no module with parameters", layers="features.*")
    refuse(ValueError, "no layer can be measured: 0: BatchNorm1d", model=nn.Sequential(nn.BatchNorm1d(7)))
    refuse(KeyError, "'9' is not a measurable layer", directions={"9": (U, V)})
    refuse(ValueError, r"directions\['0'\].*not a pair", directions={"0": (V, U)})
    refuse(ValueError, r"directions\['0'\].*not a pair", directions={"0": (U, V, V)})
    refuse(ValueError, r"directions\['0'\] has shape", directions={"0": torch.ones(2, 3, 4)})
    refuse(ValueError, r"directions\['0'\] hold NaN", directions={"0": (U * float("nan"), V)})


def test_bad_data():
    ((x, y),) = vectors()
    refuse(ValueError, "batches is empty", batches=iter([]))
    refuse(TypeError, "looks like one pair", batches=(x, y))
    refuse(ValueError, "no samples", batches=[(x[:0], y[:0])])
    refuse(ValueError, "loss on batch 1 is nan", batches=[(x, y), (x * float("nan"), y)])
    refuse(ValueError, "reduction='none'", loss=nn.CrossEntropyLoss(reduction="none"))
    refuse(TypeError, "not a tensor", loss=lambda output, target: 1.0)
    refuse(ValueError, "no gradient", loss=lambda output, target: CE(output.detach(), target))


def test_bad_models():
    refuse(
        TypeError,
        "bfloat16.*float32",
        model=mlp(nn.ReLU()).bfloat16(),
        batches=[(torch.ones(2, 7).bfloat16(), torch.ones(2).long())],
    )
    refuse(ValueError, "1 drops out at random", model=nn.Sequential(nn.Linear(7, 5), nn.Dropout(0.5)).double())
    refuse(
        ValueError,
        "drops out",
        model=nn.TransformerEncoderLayer(8, 2, 8),
        batches=[(torch.ones(2, 3, 8), torch.ones(2).long())],
    )
    norm = nn.Sequential(nn.Linear(7, C), nn.BatchNorm1d(C)).double()
    refuse(ValueError, "1 normalises over one value", model=norm, batches=vectors(1))
    frozen = mlp(nn.ReLU()).requires_grad_(False)
    refuse(ValueError, "does not require a gradient", model=frozen)
    with torch.autocast("cpu"):
        refuse(RuntimeError, "autocast")


def test_random_model_is_noticed():
    class Noise(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(7, 6), nn.Linear(6, C)

        def forward(self, x):
            return self.b((self.a(x) * torch.rand(6)).tanh())

    refuse(ValueError, "not deterministic", model=Noise().double())


def test_layers_without_a_gradient_are_listed():
    model = nn.ModuleDict(
        {"a": nn.Linear(7, 6), "b": nn.Linear(6, C), "unused": nn.Linear(3, 3), "dead": nn.Linear(7, C)}
    )
    model.forward = lambda x: model["b"](model["a"](x).tanh()) + 0 * model["dead"](x)
    found = directional_curvature(model.double(), CE, vectors(), top_k=2)
    assert list(found) == ["a", "b"]
    assert "does not depend" in found.skipped["unused"]
    assert "gradient is zero" in found.skipped["dead"]


def test_methods_that_do_not_apply_say_why():
    model, loss, batches = build("layer norm")
    with pytest.raises(ValueError, match=r"not exact for .0.: .*layer_norm.* follows it in 1"):
        directional_curvature(model, loss, batches, method="sqrt_gn")
    model, loss, batches = build("data-dependent control flow")
    with pytest.raises(ValueError, match="cannot be traced"):
        directional_curvature(model, loss, batches, method="tangent_adjoint")
    model, loss, batches = build("a module used twice")
    with pytest.raises(ValueError, match="'body' is called 2 times"):
        directional_curvature(model, loss, batches, method="double_backward_output")
