"""Gradients with NaN or infinity: an error that names the parameter, or a step that changes nothing; captured steps."""

import copy
import math

import pytest
import torch
from torch import nn

from spectral_ext.optim import NonFiniteGradientError, SpectralNewton


class TestNonFinite:
    def model(self):
        return nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3))

    def set_gradients(self, model, bad=None):
        for name, p in model.named_parameters():
            p.grad = torch.randn_like(p)
            if name == bad:
                p.grad.view(-1)[1] = math.inf if "bias" in name else math.nan

    @pytest.mark.parametrize("bad", ["0.weight", "1.bias"])
    def test_raise_names_the_parameter_and_changes_nothing(self, bad):
        model = self.model()
        optimizer = SpectralNewton(model)
        self.set_gradients(model)
        optimizer.step()
        before, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict()["state"])
        self.set_gradients(model, bad)
        with pytest.raises(NonFiniteGradientError, match=f"'{bad}' is not finite"):
            optimizer.step()
        self.assert_same(model, optimizer, before, state)

    @pytest.mark.parametrize("capturable", [False, True])
    @pytest.mark.parametrize("momentum_mode", ["ema", "sum"])
    @pytest.mark.parametrize("bad", ["0.weight", "1.bias"])
    def test_skip_changes_nothing_and_goes_on(self, bad, capturable, momentum_mode):
        model = self.model()
        settings = {"nonfinite": "skip", "capturable": capturable, "momentum_mode": momentum_mode}
        optimizer = SpectralNewton(model, **settings)
        self.set_gradients(model)
        optimizer.step()
        before, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict()["state"])
        self.set_gradients(model, bad)
        optimizer.step()
        self.assert_same(model, optimizer, before, state)
        self.set_gradients(model)
        optimizer.step()
        assert all(not torch.equal(p, before[name]) and p.isfinite().all() for name, p in model.named_parameters())

    @pytest.mark.parametrize("capturable", [False, True])
    @pytest.mark.parametrize("dtype, value", [(torch.float16, 6e4), (torch.float32, 3e38)])
    def test_large_gradients_are_finite(self, capturable, dtype, value):
        model = self.model().to(dtype)
        optimizer = SpectralNewton(model, nonfinite="skip", capturable=capturable)
        before = model[0].weight.detach().clone()
        for p in model.parameters():
            p.grad = torch.full_like(p, value)
        optimizer.step()
        assert not torch.equal(model[0].weight, before) and model[0].weight.isfinite().all()

    @staticmethod
    def assert_same(model, optimizer, before, state):
        for name, p in model.state_dict().items():
            assert torch.equal(p, before[name]), name
        for index, entries in optimizer.state_dict()["state"].items():
            for key, value in entries.items():
                assert torch.equal(value, state[index][key]), (index, key)

    def test_capturable_steps_equal_ordinary_ones(self):
        models = [self.model() for _ in range(2)]
        models[1].load_state_dict(models[0].state_dict())
        optimizers = [
            SpectralNewton(models[0], 0.02),
            SpectralNewton(models[1], torch.tensor(0.02), capturable=True, nonfinite="skip"),
        ]
        for _ in range(3):
            self.set_gradients(models[0])
            for p, q in zip(models[0].parameters(), models[1].parameters()):
                q.grad = p.grad.clone()
            for optimizer in optimizers:
                optimizer.step()
        for p, q in zip(models[0].parameters(), models[1].parameters()):
            torch.testing.assert_close(p, q)
