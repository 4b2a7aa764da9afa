"""Two landscapes side by side."""

import math

import pytest
from rich.console import Console

from spectral_ext.landscape import Landscape
from spectral_ext.landscape.synthetic import synthetic_landscape, synthetic_row
from spectral_ext.report import compare, print_comparison, write_comparison
from spectral_ext.spectra import Fit


def test_pairs_are_the_common_layers_in_the_first_order():
    a, b = synthetic_landscape(4), synthetic_landscape(2, seed=9)
    assert [pair.name for pair in compare(a, b)] == ["blocks.0.conv", "blocks.1.fc", "head"]


def test_change_and_its_interval():
    a, b = synthetic_row("x", alpha=2.0, seed=1), synthetic_row("x", alpha=1.0, seed=2)
    (pair,) = compare(Landscape({"x": a}), Landscape({"x": b}))
    assert pair.change == pytest.approx(b.alpha.value - a.alpha.value)
    halves = [(row.alpha.interval[1] - row.alpha.interval[0]) / 2 for row in (a, b)]
    assert pair.half_width == pytest.approx(math.hypot(*halves))
    assert pair.clear


def test_a_difference_inside_its_interval_is_not_clear():
    a, b = synthetic_row("x"), synthetic_row("x")
    a.alpha, b.alpha = Fit(2.0, (1.7, 2.3), 0.9, 20), Fit(2.3, (2.0, 2.6), 0.9, 20)
    (pair,) = compare(Landscape({"x": a}), Landscape({"x": b}))
    assert not pair.clear


def test_no_common_layer_is_an_error():
    a, b = (Landscape({name: synthetic_row(name)}) for name in ("left", "right"))
    with pytest.raises(ValueError, match=r"no layer in common: one has left, the other right"):
        compare(a, b)


def test_print_and_page(tmp_path):
    a, b = synthetic_landscape(3), synthetic_landscape(2, seed=5)
    console = Console(record=True, width=120, file=open("/dev/null", "w"))  # noqa: SIM115
    print_comparison(a, b, ("LN", "none"), console)
    shown = console.export_text()
    assert "LN → none" in shown
    assert "Only in LN: blocks.2.conv" in shown
    path = write_comparison(a, b, tmp_path / "c", names=("LN", "<none>"))
    page = path.read_text(encoding="utf-8")
    assert "α, &lt;none&gt;" in page
    assert "Only in LN: blocks.2.conv" in page
    assert (tmp_path / "c" / "alpha_comparison.png").exists()
