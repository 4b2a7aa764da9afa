"""Landscapes on disk: exact round trips, and a clear word on every file that is not one."""

import csv
import io
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from processes import CONTEXT

from spectral_ext.landscape import COLUMNS, Landscape, LandscapeFileError, files, storage, write_atomically
from spectral_ext.landscape.synthetic import synthetic_landscape

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def saved(tmp_path):
    return synthetic_landscape(3).save(tmp_path)


def test_round_trip_is_exact(saved):
    landscape = synthetic_landscape(3)
    for path in (saved, saved.parent):
        again = Landscape.load(path)
        assert again.skipped == landscape.skipped
        assert again.meta == landscape.meta
        for name, row in landscape.items():
            np.testing.assert_array_equal(again[name].arrays.sigma_all, row.arrays.sigma_all)
            for part, values in row.arrays.h_residual.items():
                np.testing.assert_array_equal(again[name].arrays.h_residual[part], values)
            assert repr(again[name]) == repr(row)
    assert again.save(saved.parent / "again").read_text() == saved.read_text()


def test_the_file_is_strict_json(saved):
    def refuse(constant):
        raise AssertionError(constant)

    document = json.loads(saved.read_text(), parse_constant=refuse)
    assert document["schema"] == "spectral-ext/landscape"
    assert document["version"] == 1
    assert not list(saved.parent.glob("*.partial"))


def test_truncated(saved):
    text = saved.read_text()
    for size in (0, 10, len(text) // 2, len(text) - 3):
        saved.write_text(text[:size])
        with pytest.raises(LandscapeFileError, match="truncated"):
            Landscape.load(saved)


def test_edited(saved):
    document = json.loads(saved.read_text())
    document["body"]["layers"][0]["alpha"]["value"] = 2.0
    saved.write_text(json.dumps(document))
    with pytest.raises(LandscapeFileError, match="changed after it was written"):
        Landscape.load(saved)


def test_another_version(saved):
    document = json.loads(saved.read_text())
    document["version"] = 7
    saved.write_text(json.dumps(document))
    with pytest.raises(LandscapeFileError, match=r"has version 7 and this program reads 1"):
        Landscape.load(saved)


@pytest.mark.parametrize("content", ['{"schema": "other"}', "[1, 2]", "{}", "3"])
def test_another_kind_of_file(saved, content):
    saved.write_text(content)
    with pytest.raises(LandscapeFileError, match="schema"):
        Landscape.load(saved)


def test_binary_file(saved):
    saved.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(LandscapeFileError, match="not complete JSON"):
        Landscape.load(saved)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no landscape at"):
        Landscape.load(tmp_path)


def test_a_row_of_the_wrong_shape_names_its_place(saved):
    from spectral_ext.landscape.storage import read_document, write_document

    body = read_document(saved)
    body["layers"][1]["alpha"]["value"] = "two"
    write_document(saved, body)
    with pytest.raises(LandscapeFileError, match=r"layer 1\.alpha\.value: expected a number, found two"):
        Landscape.load(saved)
    body["layers"][1]["alpha"].pop("value")
    write_document(saved, body)
    with pytest.raises(LandscapeFileError, match=r"layer 1\.alpha lacks value: it was written by another version"):
        Landscape.load(saved)


def signed(path, change, **over):
    """The file with its body changed and a right checksum, as a careful hand would leave it."""
    body = json.loads(path.read_text())["body"]
    body = change(body) or body
    document = {"schema": "spectral-ext/landscape", "version": 1, "sha256": storage._digest(body), "body": body} | over
    path.write_text(json.dumps(document))


def test_a_missing_field_with_a_default_loads_and_an_unknown_one_is_refused(saved):
    want = Landscape.load(saved)["blocks.0.conv"]

    def older(body):
        for name in ("softmax", "notes", "log_correlation"):
            del body["layers"][0][name]
        del body["layers"][0]["arrays"]["gn_sample"]
        del body["layers"][0]["alpha"]["reason"]

    signed(saved, older)
    row = Landscape.load(saved)["blocks.0.conv"]
    assert row.alpha == want.alpha
    assert row.softmax is None
    assert row.notes == []
    assert len(row.arrays.gn_sample) == 0
    assert np.isnan(row.log_correlation)
    signed(saved, lambda body: body["layers"][0].update(novelty=1))
    with pytest.raises(LandscapeFileError, match=r"layer 0 has the unknown novelty: .*measure again"):
        Landscape.load(saved)


def set_in(body, place, value):
    *path, last = place
    for key in path:
        body = body[key]
    body[last] = value


LAYER = ("layers", 0)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ((*LAYER, "arrays", "sigma"), [1.0], "sigma has 1 values, but h has 20"),
        ((*LAYER, "arrays", "h"), [], "h has none"),
        ((*LAYER, "arrays", "h_residual"), {"norm": [1.0]}, r"h_residual\['norm'\] has 1"),
        ((*LAYER, "arrays", "sigma_all"), [1.0], "prediction.sigma has 48 values"),
        ((*LAYER, "arrays", "sigma"), [10**400] * 20, "too large"),
        ((*LAYER, "arrays", "sigma"), [[1.0]] * 20, "expected a number"),
        ((*LAYER, "depth"), 10**70, "found a number of more than 60 digits"),
        ((*LAYER, "depth"), True, "expected int"),
        ((*LAYER, "shape"), [-1, 3], "must not be negative"),
        ((*LAYER, "name"), "\ud800", "UTF-8"),
        ((*LAYER, "rank_models", "best"), "cubic", "rank_models does not hold"),
        ((*LAYER, "rank_models", "coefficients"), {}, "rank_models does not hold"),
        (("layers", 1, "name"), "blocks.0.conv", "stands there twice"),
        (("layers",), None, "layers: expected a list"),
        (("meta",), [1], "meta: expected an object"),
        (("meta", "notes"), 5, "notes: expected a list"),
        (("meta", "deep"), json.loads("[" * 60 + "]" * 60), "at most 20 levels"),
        (("skipped",), [1], "skipped: expected an object"),
        (("extra",), 1, "has the unknown extra"),
    ],
)
def test_a_wrong_body_under_a_right_checksum_names_file_place_and_remedy(saved, place, value, message):
    signed(saved, lambda body: set_in(body, place, value))
    with pytest.raises(LandscapeFileError, match=message) as caught:
        Landscape.load(saved)
    assert str(saved) in str(caught.value)
    assert "measure again" in str(caught.value)


@pytest.mark.parametrize("version", [True, 1.0, "1", None, 2, [1]])
def test_only_the_whole_number_1_is_version_1(saved, version):
    signed(saved, lambda body: None, version=version)
    with pytest.raises(LandscapeFileError, match="has version"):
        Landscape.load(saved)


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000 + b"]" * 100_000,
        b'{"schema": "spectral-ext/landscape", "version": ' + b"9" * 5_000 + b"}",
        b'{"schema": "spectral-ext/landscape", "version": 1, "body": NaN}',
        b"\0" * 100,
        b"\xef\xbb\xbf{}",
    ],
    ids=["deep", "long integer", "NaN", "zeros", "byte order mark"],
)
def test_json_that_breaks_parsers(saved, content):
    saved.write_bytes(content)
    with pytest.raises(LandscapeFileError, match=r"truncated\?.*measure again"):
        Landscape.load(saved)


def test_a_folder_or_device_in_place_of_the_file(tmp_path):
    (tmp_path / "landscape.json").mkdir()
    with pytest.raises(LandscapeFileError, match="not a regular file"):
        Landscape.load(tmp_path)
    with pytest.raises(LandscapeFileError, match="not a regular file"):
        Landscape.load("/dev/null")


def test_planted_links_are_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "landscape.json").symlink_to(victim)
    (tmp_path / "landscape.json.partial").symlink_to(victim)
    path = synthetic_landscape(1).save(tmp_path)
    assert victim.read_text() == "precious"
    assert not path.is_symlink()
    assert len(Landscape.load(path)) == 2


def test_a_full_disk_leaves_the_old_file_and_nothing_else(saved, monkeypatch):
    before = saved.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        synthetic_landscape(1).save(saved.parent)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["landscape.json"]


def test_new_files_have_the_users_mode(tmp_path):
    old = os.umask(0o027)
    try:
        assert write_atomically(tmp_path / "a" / "b", "text").stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(old)


def save_again_and_again(folder, layers):
    landscape, end, count = synthetic_landscape(layers), time.time() + 2, 0
    while time.time() < end or count < 3:
        landscape.save(folder)
        count += 1


def test_two_writers_and_a_reader(tmp_path):
    path = synthetic_landscape(2).save(tmp_path)
    writers = [CONTEXT.Process(target=save_again_and_again, args=(tmp_path, layers)) for layers in (1, 3)]
    for writer in writers:
        writer.start()
    reads = set()
    while any(writer.is_alive() for writer in writers):
        reads.add(len(Landscape.load(path)))
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert reads <= {2, 3, 4}
    assert [one.name for one in tmp_path.iterdir()] == ["landscape.json"]


def test_csv_holds_every_column_with_all_digits(tmp_path):
    landscape = synthetic_landscape(3)
    rows = list(csv.DictReader(io.StringIO(landscape.to_csv(tmp_path / "all.csv"))))
    assert (tmp_path / "all.csv").read_text() == landscape.to_csv()
    assert [row["name"] for row in rows] == list(landscape)
    assert set(rows[0]) == {"name", *(column.key for column in COLUMNS)}
    assert float(rows[0]["alpha"]) == landscape["blocks.0.conv"].alpha.value
    assert rows[-1]["empty_reason"] == "its gradient is zero"


def test_rows_under_another_name_are_not_written(tmp_path):
    rows = dict(synthetic_landscape(3))
    first, second = list(rows)[:2]
    rows[second] = rows[first]
    with pytest.raises(ValueError, match=f"row '{first}' is stored under '{second}'"):
        Landscape(rows).save(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["sigma", "sigma_all"])
def test_a_negative_singular_value_is_refused(saved, name):
    document = json.loads(saved.read_text())
    document["body"]["layers"][0]["arrays"][name][-1] = -1.0
    document["sha256"] = storage._digest(document["body"])
    saved.write_text(json.dumps(document))
    with pytest.raises(LandscapeFileError, match=f"layer 0.arrays: {name} holds a negative number"):
        Landscape.load(saved)


def test_a_repeated_key_is_refused(saved):
    text = saved.read_text()
    saved.write_text(text.replace('"schema":', '"schema": "spectral-ext/landscape", "schema":', 1))
    with pytest.raises(LandscapeFileError, match="the key 'schema' stands twice"):
        Landscape.load(saved)


def test_an_impossible_path_names_itself_and_the_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "below", tmp_path / ("x" * 300)):
        with pytest.raises(OSError, match=r"cannot write .*: .*; choose a folder"):
            synthetic_landscape(1).save(folder)
    with pytest.raises(ValueError, match="null character"):
        synthetic_landscape(1).save("a\0b")
