"""Our fits against the authors' frozen results, to 1e-10, wherever the raw arrays are there."""

import json
from pathlib import Path

import numpy as np
import pytest

from spectral_ext.spectra import check_transfer, fit_alpha, fit_gamma, fit_rank_models, fit_s, zeta_bound
from spectral_ext.spectra.alignment import curvature_ratio

FOLDER = Path(__file__).parents[2] / "shared" / "oracle"
CLOSE = {"rel": 1e-10, "abs": 1e-10}


def read(name):
    path = FOLDER / f"results_{name}.json"
    if not path.exists():
        pytest.skip("the authors' frozen results are not beside the project")
    return json.loads(path.read_text())


def triangle_layers():
    return [layer for experiment in read("alpha_triangle") for layer in experiment["results"]]


def test_triangle_exponents():
    layers = triangle_layers()
    assert len(layers) == 24
    for layer in layers:
        sigma, h = layer["sigma"], layer["h_exact"]
        alpha, gamma, s = fit_alpha(sigma, h), fit_gamma(sigma), fit_s(h)
        assert alpha.value == pytest.approx(layer["alpha"], **CLOSE), layer["name"]
        assert alpha.r2 == pytest.approx(layer["r2_alpha"], **CLOSE)
        assert gamma.value == pytest.approx(layer["gamma"], **CLOSE)
        assert gamma.r2 == pytest.approx(layer["r2_gamma"], **CLOSE)
        assert s.value == pytest.approx(layer["s_hessian"], **CLOSE)
        assert s.r2 == pytest.approx(layer["r2_s_hessian"], **CLOSE)


def test_triangle_transfer():
    for layer in triangle_layers():
        check = check_transfer(layer["sigma"], layer["h_exact"], draws=50)
        assert check.alpha_gamma == pytest.approx(layer["predicted_s"], **CLOSE)
        assert check.error == pytest.approx(layer["triangle_error"], **CLOSE)
        assert check.relative_error == pytest.approx(layer["triangle_relative_error"], **CLOSE)
        if min(layer["h_exact"]) > 0:
            assert abs(check.s_unsorted / check.alpha_gamma - 1) <= check.bound * (1 + 1e-9)


def test_rank_models():
    raw = {(e["experiment"], layer["name"]): layer["sigma"] for e in read("alpha_triangle") for layer in e["results"]}
    wins = {"power_law": 0, "exponential": 0, "lognormal": 0}
    for layer in read("model_fit_comparison")["layers"]:
        models = fit_rank_models(raw[layer["experiment"], layer["name"]])
        wins[models.best] += 1
        assert models.best == layer["best_model_bic"]
        for name, fit in layer["fits"].items():
            assert models.bic[name] == pytest.approx(fit["bic"], **CLOSE), (layer["name"], name)
            assert models.rss[name] == pytest.approx(fit["rss"], **CLOSE)
            assert models.coefficients[name][0] == pytest.approx(fit["log_c"], **CLOSE)
    assert wins == {"power_law": 1, "exponential": 2, "lognormal": 21}


def single_precision_log(sigma):
    """Some of the frozen fits took log σ in float32; σ whose float64 logarithm is that number."""
    return np.exp(np.log(np.array(sigma, dtype=np.float32)).astype(np.float64))


def test_conv_gap():
    data = read("conv_gap_v2")
    for layer in [*data["conv_results"], data["fc_result"]]:
        alpha = fit_alpha(single_precision_log(layer["sigma"]), layer["h_exact"]).value
        assert alpha == pytest.approx(layer["alpha_exact"], **CLOSE)
        sop, means = (np.array(layer[key], dtype=np.float32) for key in ("h_sum_of_products", "h_product_of_sums"))
        assert (sop / means).tolist() == layer["concentration_ratio"]  # the authors divided in float32
        np.testing.assert_allclose(curvature_ratio(sop, means), layer["concentration_ratio"], rtol=1.2e-7)
        clear = np.array(layer["h_kron"]) > 1e-15  # below, the authors put 1
        chi = curvature_ratio(layer["h_exact"], layer["h_kron"])
        np.testing.assert_allclose(chi[clear], np.array(layer["cos2_theta"])[clear], rtol=1e-10)


def test_participation_bound():
    layers = [layer for experiment in read("intrinsic_dim") for layer in experiment["results"]]
    for layer in layers:
        s, n = layer["alpha_gamma_product"], layer["n_total_directions"]
        assert zeta_bound(s, n) == pytest.approx(layer["predicted_eff_rank"], **CLOSE), layer["name"]
        assert zeta_bound(s, n) <= zeta_bound(s)


@pytest.mark.parametrize(("file", "count"), [("predictions", 10), ("hypothesis", 18)])
def test_alpha_of_ablations(file, count):
    layers = []

    def collect(tree):
        if isinstance(tree, dict) and "sigma" in tree and "h_exact" in tree:
            layers.append(tree)
        elif isinstance(tree, (dict, list)):
            for item in tree.values() if isinstance(tree, dict) else tree:
                collect(item)

    collect(read(file))
    assert len(layers) == count
    for layer in layers:
        fit = fit_alpha(single_precision_log(layer["sigma"]), layer["h_exact"])
        assert fit.value == pytest.approx(layer["alpha"], **CLOSE), layer["name"]
        assert fit.r2 == pytest.approx(layer["r2"], **CLOSE)
        assert fit.n == layer["n_valid"]
