"""α from a landscape: numbers, fits, recommendations; and the scalar control."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from spectral_ext.landscape import Landscape, LayerLandscape
from spectral_ext.landscape.synthetic import synthetic_row
from spectral_ext.optim import ScalarSpectralAdam, SpectralNewton


def net():
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.Linear(6, 8), nn.Linear(8, 4))


def fit(value):
    return SimpleNamespace(value=value, interval=(value - 0.1, value + 0.1), r2=0.9)


def test_numbers_fits_and_recommendations():
    landscape = {
        "0": SimpleNamespace(alpha=fit(1.83), recommendation=SimpleNamespace(alpha=2.0)),
        "2": SimpleNamespace(alpha=fit(0.84)),
    }
    group = SpectralNewton.from_landscape(net(), landscape).param_groups[0]
    assert dict(zip(group["param_names"], group["alpha"])) == {"0.weight": 2.0, "2.weight": 0.84}
    group = SpectralNewton.from_landscape(net(), landscape, measured=True).param_groups[0]
    assert group["alpha"] == [1.83, 0.84]
    group = SpectralNewton(net(), alpha="landscape", landscape={"0": 1.5, "2": 1.0}).param_groups[0]
    assert group["alpha"] == [1.5, 1.0]


def test_the_step_uses_the_measured_exponent():
    model, twin = net(), net()
    twin.load_state_dict(model.state_dict())
    one = SpectralNewton.from_landscape(model, {"0": 1.3, "2": 0.8}, 0.02)
    two = SpectralNewton(twin, 0.02, {"0": 1.3, "2": 0.8})
    for _ in range(2):
        for p, q in zip(model.parameters(), twin.parameters()):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        one.step()
        two.step()
    for p, q in zip(model.parameters(), twin.parameters()):
        assert torch.equal(p, q)


def test_a_missing_layer_is_an_error_or_takes_the_default():
    with pytest.raises(KeyError, match=r"no layer for '2\.weight'.*default_alpha"):
        SpectralNewton.from_landscape(net(), {"0": 2.0})
    group = SpectralNewton.from_landscape(net(), {"0": 2.0}, default_alpha=1.0).param_groups[0]
    assert group["alpha"] == [2.0, 1.0]


def test_names_inside_wrappers():
    model = torch.nn.ModuleDict({"module": torch.compile(net())})
    group = SpectralNewton.from_landscape(model, {"0": 1.5, "2": 1.0}).param_groups[0]
    assert group["param_names"][0] == "module._orig_mod.0.weight" and group["alpha"] == [1.5, 1.0]


@pytest.mark.parametrize("value", [0.0, -0.5, float("nan"), 6.5])
def test_an_exponent_out_of_range_names_the_layer(value):
    with pytest.raises(ValueError, match=r"2\.weight"):
        SpectralNewton.from_landscape(net(), {"0": 2.0, "2": value})


def test_a_measured_landscape_of_the_package_is_read():
    rows = {"0": synthetic_row("0", alpha=1.5, noise=0.01), "2": synthetic_row("2", alpha=2.0, noise=0.01)}
    landscape = Landscape(rows)
    group = SpectralNewton.from_landscape(net(), landscape).param_groups[0]
    assert group["alpha"] == [landscape[name].recommendation.alpha for name in ("0", "2")]
    assert group["alpha"] == pytest.approx([1.5, 2.0], abs=0.05)
    group = SpectralNewton.from_landscape(net(), landscape, measured=True).param_groups[0]
    assert group["alpha"] == [landscape["0"].alpha.value, landscape["2"].alpha.value]
    rates = [group["lr"] for group in ScalarSpectralAdam(net(), landscape, 1.0).param_groups]
    s = [row.alpha.value * row.gamma.value for row in rows.values()]
    assert rates == pytest.approx([2 * s[0] / sum(s), 2 * s[1] / sum(s), 1.0])
    rows["2"] = LayerLandscape("2", "Linear", (8, 6), 1)
    with pytest.raises(ValueError, match=r"2\.weight"):
        SpectralNewton.from_landscape(net(), Landscape(rows))


def test_scalar_rates_follow_s():
    model = net()
    rows = {"0": 1.0, "2": SimpleNamespace(alpha=fit(2.0), gamma=fit(1.5))}
    optimizer = ScalarSpectralAdam(model, rows, 0.01, 0.5)
    rates = {group["layer"]: group["lr"] for group in optimizer.param_groups}
    assert rates == pytest.approx({"0": 0.01 * (1 / 2) ** 0.5, "2": 0.01 * (3 / 2) ** 0.5, "3": 0.01})
    assert {len(group["params"]) for group in optimizer.param_groups} == {2}


def test_beta_zero_is_adam():
    model, twin = net(), net()
    twin.load_state_dict(model.state_dict())
    one, two = ScalarSpectralAdam(model, {"0": 1.0, "2": 3.0}, 0.01, 0.0), torch.optim.Adam(twin.parameters(), 0.01)
    for _ in range(3):
        for p, q in zip(model.parameters(), twin.parameters()):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        one.step()
        two.step()
    for p, q in zip(model.parameters(), twin.parameters()):
        assert torch.equal(p, q)
