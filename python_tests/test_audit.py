"""The audit: verdicts follow from checks, rounding decides, and the frozen results give the verdicts they must."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from spectral_ext.audit import CLAIMS, Check, Claim, Undecided, Verdict, audit, rounds_to
from spectral_ext.audit.theory import counterexample
from spectral_ext.audit.verdict import number_check, range_check, shown

ORACLE = Path(__file__).resolve().parents[1].parent / "shared" / "oracle"
needs_oracle = pytest.mark.skipif(not ORACLE.is_dir(), reason=f"no frozen results at {ORACLE}")


@pytest.mark.parametrize(
    ("value", "published", "holds"),
    [
        (1.949, "1.9", True),
        (1.851, "1.9", True),
        (1.951, "1.9", False),
        (2.5, "2", True),
        (3.5001, "3", False),
        (0.675, "0.68", True),
        (-0.5149, "-0.51", True),
        (-0.5151, "-0.51", False),
        (93.8567, "93.85", False),
        (93.853, "93.85", True),
    ],
)
def test_rounding_decides(value, published, holds):
    assert rounds_to(value, published) is holds


def test_shown_digits_never_contradict_the_verdict():
    assert shown(0.8746, "0.88") == "0.8746"
    assert shown(0.8791, "0.88") == "0.879"


def test_range_bounds_are_rounded_too():
    assert range_check("x", [1.849, 2.4], "1.85", "2.40").holds
    assert not range_check("x", [1.8449, 2.4], "1.85", "2.40").holds


def judged(tmp_path, *checks, **options):
    (tmp_path / "results_x.json").write_text("{}")
    from spectral_ext.audit import Frozen

    answer = checks or Undecided("no data", "the data")
    return Claim("§1", "c", "p", ("x",), "it is so", lambda frozen: answer, **options).judge(Frozen(tmp_path))


def test_verdicts_follow_from_the_checks(tmp_path):
    good, bad = Check("some", "1", True), Check("all", "2", False)
    assert judged(tmp_path, good, bad).verdict is Verdict.HOLDS
    assert judged(tmp_path, bad, bad, good).verdict is Verdict.SELECTION
    assert "only over some" in judged(tmp_path, bad, good).why
    assert judged(tmp_path, bad, bad).verdict is Verdict.CONTRADICTED
    assert judged(tmp_path).verdict is Verdict.UNCHECKABLE


def test_what_cannot_fail_does_not_count_as_holding(tmp_path):
    good, bad = Check("some", "1", True), Check("all", "2", False)
    assert judged(tmp_path, good, by_construction=True).verdict is Verdict.CONSTRUCTION
    assert judged(tmp_path, bad, by_construction=True).verdict is Verdict.CONTRADICTED


def test_each_verdict_says_what_would_overturn_it(tmp_path):
    good, bad = Check("some", "1", True), Check("all", "2", False)
    assert judged(tmp_path, good).overturn == "Results in which this is false: it is so."
    assert judged(tmp_path, bad).overturn == "Results in which this is true: it is so."
    assert judged(tmp_path, bad, overturn="A new definition.").overturn == "A new definition."
    both = judged(tmp_path, bad, good).overturn
    assert "true over all" in both and "false over some: it is so." in both
    assert judged(tmp_path, good, by_construction=True).overturn.startswith("No measurement")
    assert judged(tmp_path).overturn == "This would decide: the data."


def test_the_counterexample_to_theorem_2_meets_its_conditions():
    errors, activations = counterexample()
    gradient = errors.T @ activations / len(errors)
    for matrix in (gradient, errors.T @ errors, activations.T @ activations):
        assert np.abs(matrix - np.diag(np.diag(matrix))).max() < 1e-12
    correlation = np.array([0.9, 0.7, 0.5, 0.3, 0.1])
    np.testing.assert_allclose(np.diag(gradient), correlation**2, rtol=1e-12)
    np.testing.assert_allclose(errors**2 * activations**2, np.broadcast_to(correlation**2, errors.shape), rtol=1e-12)


def test_missing_folder_and_broken_files_are_clear_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        audit(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no results"):
        audit(tmp_path)
    (tmp_path / "results_alpha_triangle.json").write_text("[{")
    with pytest.raises(ValueError, match=r"results_alpha_triangle.json is not valid JSON"):
        audit(tmp_path)
    (tmp_path / "results_alpha_triangle.json").write_text('[{"experiment": "resnet18", "results": [{}]}]')
    with pytest.raises(ValueError, match="not the authors' frozen result"):
        audit(tmp_path)


@pytest.fixture(scope="module")
def findings():
    return {(one.where, one.claim): one for one in audit(ORACLE)}


@pytest.fixture(scope="module")
def find(findings):
    def one(where, part):
        (found,) = [value for (place, claim), value in findings.items() if place == where and part in claim]
        return found

    return one


@needs_oracle
def test_every_claim_is_judged_and_named_once(findings):
    assert len(findings) == len(CLAIMS) > 90
    assert {one.verdict for one in findings.values()} == set(Verdict)


@needs_oracle
def test_every_finding_names_what_would_overturn_it(findings):
    for one in findings.values():
        assert one.overturn.endswith(".") and ": ." not in one.overturn, one
        assert len(one.overturn) > 30, one


@needs_oracle
def test_a_limit_on_the_error_is_no_selection(find):
    found = find("Abstract, Remark 2", "median relative error")
    assert found.verdict is Verdict.CONTRADICTED
    assert found.recomputed.startswith("2.35 %")
    assert "1.90 % over the 20 with at most 5 %" in found.recomputed


@needs_oracle
def test_the_ratio_of_convolutions_is_rescaled_by_rows_and_samples(find):
    """B²·S: with B² alone the median of conv1, of 256 positions, is 2.2."""
    data = json.loads((ORACLE / "results_conv_gap_v2.json").read_text())
    medians = [np.median(one["cos2_theta"]) / 2048**2 / one["L_spatial"] for one in data["conv_results"]]
    found = find("§6.4, App. D", "h_exact/h_Kron")
    assert found.recomputed == f"medians {min(medians):.2g} … {max(medians):.2g}" == "medians 0.0019 … 0.013"
    for one in data["conv_results"]:
        assert max(np.square(one["sigma"]) / np.array(one["h_kron"])) > one["L_spatial"] ** 2  # not Section 2's errors


@needs_oracle
@pytest.mark.parametrize(
    ("where", "part", "verdict"),
    [
        ("App. H", "layer1.0.conv1", Verdict.HOLDS),
        ("App. H", "number of layers", Verdict.CONTRADICTED),
        ("Table 1", "mean α of the convolutions", Verdict.CONTRADICTED),
        ("Table 1", "GPT-2 output head", Verdict.CONTRADICTED),
        ("App. G", "24 layers: winners", Verdict.HOLDS),
        ("App. K", "epoch 0: winners", Verdict.HOLDS),
        ("App. K", "epoch 15: winners", Verdict.CONTRADICTED),
        ("Theorem 9", "PR_h", Verdict.CONSTRUCTION),
        ("Theorem 9", "the bound at", Verdict.CONSTRUCTION),
        ("Abstract, §7.2", "measured layers obey", Verdict.CONTRADICTED),
        ("Theorem 7", "s = αγ", Verdict.CONSTRUCTION),
        ("Theorem 2", "aligned bases", Verdict.CONTRADICTED),
        ("Equation 3, §6.2", "lowers the measured α", Verdict.CONTRADICTED),
        ("Table 3, §7.3", "ResNet-50", Verdict.CONSTRUCTION),
        ("Tables 1, 2", "follow from Table 2", Verdict.CONSTRUCTION),
        ("Corollary 8", "tail exponent", Verdict.UNCHECKABLE),
        ("Abstract, §6.2, Table 2", "up-projections", Verdict.SELECTION),
        ("§3 against §6.5", "requires LayerNorm", Verdict.CONTRADICTED),
        ("§3 against §6.5", "larger output dimension", Verdict.SELECTION),
        ("§7.3", "times one of Muon", Verdict.UNCHECKABLE),
        ("App. E", "convolutions converge", Verdict.HOLDS),
        ("§3", "emerges from about 1.5", Verdict.CONTRADICTED),
        ("§3, App. F", "stable across quartiles", Verdict.UNCHECKABLE),
        ("Table 1", "FC classifier", Verdict.UNCHECKABLE),
        ("App. I", "width 512", Verdict.CONTRADICTED),
        ("App. C", "CIFAR-100, attn_qkv", Verdict.HOLDS),
        ("App. M", "spectral_beta15: gain", Verdict.SELECTION),
        ("Proposition 6", "softmax", Verdict.CONTRADICTED),
        ("App. A", "R²", Verdict.UNCHECKABLE),
        ("§6.4, App. D", "h_exact/h_Kron", Verdict.SELECTION),
    ],
)
def test_known_verdicts(find, where, part, verdict):
    assert find(where, part).verdict is verdict


@needs_oracle
def test_an_edited_number_changes_the_verdict(find, tmp_path):
    """Raise one h of conv1 tenfold: its row of Appendix H and the refit no longer hold, other rows do."""
    for path in ORACLE.glob("*.json"):
        shutil.copyfile(path, tmp_path / path.name)
    file = tmp_path / "results_alpha_triangle.json"
    data = json.loads(file.read_text())
    data[0]["results"][0]["h_exact"][0] *= 10
    file.write_text(json.dumps(data))
    again = {(one.where, one.claim): one for one in audit(tmp_path)}
    row = next(key for key in again if "resnet18 conv1:" in key[1])
    assert find(*row).verdict is Verdict.HOLDS
    assert again[row].verdict is Verdict.CONTRADICTED
    refit = next(key for key in again if "least squares" in key[1])
    assert again[refit].verdict is Verdict.CONTRADICTED
    other = next(key for key in again if "features.0" in key[1])
    assert again[other].verdict is Verdict.HOLDS


@needs_oracle
def test_a_missing_file_makes_its_claims_uncheckable(tmp_path):
    shutil.copyfile(ORACLE / "results_predictions.json", tmp_path / "results_predictions.json")
    found = audit(tmp_path)
    need = [one for one in found if "alpha_triangle" in one.source]
    assert need
    assert all(one.verdict is Verdict.UNCHECKABLE for one in need)
    assert "results_alpha_triangle.json is not in the folder" in need[0].why


def test_number_check_names_value_and_data():
    assert number_check("24 layers", 2.353, "1.9", " %") == Check("24 layers", "2.35 %", False)
