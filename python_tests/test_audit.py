"""The audit: verdicts follow from checks, rounding decides, and the frozen results give the verdicts they must."""

import json
import shutil
from pathlib import Path

import pytest

from spectral_ext.audit import CLAIMS, Check, Claim, Verdict, audit, rounds_to
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


def judged(tmp_path, *checks):
    (tmp_path / "results_x.json").write_text("{}")
    from spectral_ext.audit import Frozen

    return Claim("§1", "c", "p", ("x",), lambda frozen: checks if checks else "no data").judge(Frozen(tmp_path))


def test_verdicts_follow_from_the_checks(tmp_path):
    good, bad = Check("some", "1", True), Check("all", "2", False)
    assert judged(tmp_path, good, bad).verdict is Verdict.HOLDS
    assert judged(tmp_path, bad, bad, good).verdict is Verdict.SELECTION
    assert "only over some" in judged(tmp_path, bad, good).why
    assert judged(tmp_path, bad, bad).verdict is Verdict.CONTRADICTED
    assert judged(tmp_path).verdict is Verdict.UNCHECKABLE


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
def test_median_error_holds_only_over_a_selection(find):
    found = find("Abstract, Remark 2", "median relative error")
    assert found.verdict is Verdict.SELECTION
    assert found.recomputed == "2.35 %"
    assert "20 layers" in found.why


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
        ("Theorem 9", "PR_h", Verdict.SELECTION),
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
