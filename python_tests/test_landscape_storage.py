"""Landscapes on disk: exact round trips, and a clear word on every file that is not one."""

import json

import numpy as np
import pytest

from spectral_ext.landscape import Landscape, LandscapeFileError
from spectral_ext.landscape.synthetic import synthetic_landscape


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
