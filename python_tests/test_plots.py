"""Figures: every one is drawn, in both themes, says why it is empty, and leaves matplotlib as it was."""

import dataclasses
import json
import re
import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from spectral_ext import plots
from spectral_ext.landscape import Landscape, LayerLandscape
from spectral_ext.landscape.synthetic import synthetic_landscape, synthetic_row
from spectral_ext.plots import PANELS
from spectral_ext.plots.chart import as_json
from spectral_ext.plots.comparison import alpha_comparison, overlay
from spectral_ext.plots.style import DARK, LIGHT
from spectral_ext.signal import Signal
from spectral_ext.spectra import Fit
from spectral_ext.tracker import Track


def signal_of_four():
    ones = np.ones(4)
    return Signal(
        4, np.array([0.2, 0.1, 0.01, -0.01]), np.array([0.01, 0.01, 0.02, np.nan]), ones, ones, ones,
        resolved_directions=[0, 1], share=ones, verdict="signal",
    )  # fmt: skip


@pytest.fixture(scope="module")
def landscape():
    found = synthetic_landscape(3)
    found["blocks.0.conv"].signal = signal_of_four()
    return found


@pytest.fixture(scope="module")
def empty():
    row = LayerLandscape("dead", "Linear", (3, 4), 0, empty_reason="its gradient is zero")
    return Landscape({"dead": row})


def texts(figure: Figure) -> str:
    return " ".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


def luminance(colour: str) -> float:
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("name", plots.NAMES)
def test_every_figure_is_drawn_with_labels(landscape, name):
    figure = plots.figure(landscape, name)
    drawn = [axes for axes in figure.axes if axes.axison]
    assert drawn
    assert all(axes.get_ylabel() for axes in drawn)
    assert any(axes.get_xlabel() or axes.get_xticklabels() for axes in drawn)


@pytest.mark.parametrize("name", plots.NAMES)
def test_every_figure_of_an_empty_landscape_says_why(empty, name):
    shown = texts(plots.figure(empty, name, theme="dark"))
    assert re.search(r"gradient is zero|no layer|does not split", shown)


def test_power_law_panel_shows_the_fit_and_counts_negative_curvature(landscape):
    row = landscape["blocks.1.fc"]
    shown = texts(plots.figure(Landscape({row.name: row}), "power_law"))
    assert f"α = {row.alpha.value:.2f}" in shown
    assert "2 of 20 h ≤ 0" in shown


def test_power_law_points_are_the_measured_ones(landscape):
    row = landscape["blocks.0.conv"]
    axes = plots.figure(Landscape({row.name: row}), "power_law").axes[0]
    (drawn,) = [line.get_xydata() for line in axes.lines if line.get_label() == "measured"]
    np.testing.assert_array_equal(drawn, np.stack([row.arrays.sigma, row.arrays.h], 1))


def test_depth_figure_holds_value_and_interval_of_every_fit(landscape):
    axes = plots.figure(landscape, "alpha_by_depth").axes[0]
    points = [tuple(point) for container in axes.containers for point in container.lines[0].get_xydata()]
    ends = [segment[:, 1] for container in axes.containers for segment in container.lines[2][0].get_segments()]
    fitted = [row for row in landscape.values() if row.alpha.ok]
    assert sorted(points) == sorted((row.depth, row.alpha.value) for row in fitted)
    np.testing.assert_allclose(sorted(map(tuple, ends)), sorted(row.alpha.interval for row in fitted))


def test_mechanism_shares_add_up(landscape):
    axes = plots.figure(landscape, "mechanism_split").axes[0]
    for depth in range(3):
        bars = [bar for bar in axes.patches if abs(bar.get_x() + bar.get_width() / 2 - depth) < 0.1]
        assert sum(bar.get_height() for bar in bars) == pytest.approx(100)


def test_plot_writes_png_files(landscape, tmp_path):
    paths = plots.plot(landscape, tmp_path / "new", names=["alpha_by_depth", "power_law"], theme="dark")
    assert sorted(path.name for path in paths.values()) == ["alpha_by_depth.png", "power_law.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths.values())


def test_figures_for_papers_have_the_asked_width_and_embed_type_42(landscape, tmp_path):
    paths = plots.plot(landscape, tmp_path, names=["alpha_by_depth", "power_law"], format="pdf", width=3.25, serif=True)
    for path in paths.values():
        pdf = path.read_bytes()
        assert path.suffix == ".pdf" and pdf.startswith(b"%PDF")
        assert b"/Type3" not in pdf and b"/CIDFontType2" in pdf
        assert b"STIX" in pdf and b"DejaVuSans" not in pdf
        box = re.search(rb"/MediaBox \[ 0 0 ([\d.]+) ([\d.]+) \]", pdf)
        assert float(box[1]) == pytest.approx(3.25 * 72, abs=0.1)
    sizes = [t.get_fontsize() for t in plots.figure(landscape, "power_law", width=3.25).findobj(matplotlib.text.Text)]
    assert min(sizes) > 5.5 and max(sizes) <= 8
    narrow, wide = (plots.figure(landscape, "power_law", width=width) for width in (3.25, 6.75))
    columns = [len({round(axes.get_position().x0, 2) for axes in one.axes if axes.axison}) for one in (narrow, wide)]
    assert columns == [2, 3]


def test_unusable_formats_and_widths_are_refused_before_drawing(landscape, tmp_path):
    with pytest.raises(ValueError, match="png, pdf, svg, eps, not 'jpeg'"):
        plots.plot(landscape, tmp_path, format="jpeg")
    with pytest.raises(ValueError, match="must be positive, not -1"):
        plots.plot(landscape, tmp_path, width=-1)
    assert not list(tmp_path.iterdir())


def test_svg_files_keep_text_as_text(landscape, tmp_path):
    path = plots.plot(landscape, tmp_path, names=["transfer_triangle"], format="svg")["transfer_triangle"]
    assert "measured s" in "".join(ET.fromstring(path.read_text(encoding="utf-8")).itertext())


def test_a_chart_for_the_page_holds_the_same_points_as_the_figure(landscape):
    place = {name: index for index, name in enumerate(landscape)}
    (chart,) = as_json(plots.charts(landscape, "alpha_by_depth"), place)
    named = {index: y for marks in chart["marks"] if "of" in marks for index, y in zip(marks["of"], marks["y"])}
    fitted = {place[row.name]: row.alpha.value for row in landscape.values() if row.alpha.ok}
    assert named == pytest.approx(fitted, rel=1e-3)
    assert json.loads(json.dumps(chart, allow_nan=False)) == json.loads(json.dumps(chart))


def test_a_chart_of_signal_tells_resolved_directions_apart():
    row = synthetic_row("x", top_k=4)
    row.signal = signal_of_four()
    chart = PANELS["signal_and_noise"](row)
    resolved, rest = [marks for marks in chart.marks if marks.kind == "dot"]
    assert list(resolved.y) == [0.2, 0.1] and not resolved.hollow
    assert list(rest.x) == [3, 4] and rest.hollow
    assert list(resolved.high) == pytest.approx([0.22, 0.12])
    assert "2 of 4 resolved" in chart.remark


def test_parts_of_h_add_up_in_the_chart_of_mechanisms(landscape):
    row = landscape["blocks.0.conv"]
    parts = [marks.y for marks in PANELS["mechanisms"](row).marks if marks.kind == "dot"]
    np.testing.assert_allclose(np.sum(parts, axis=0), row.arrays.h)


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_text_and_marks_stand_out_from_the_paper(theme):
    assert contrast(theme.ink, theme.paper) >= 12
    assert contrast(theme.muted, theme.paper) >= 4.5
    marks = ("blue", "orange", "green", "red", "purple", "sky", "yellow")
    assert all(contrast(theme[role], theme.paper) >= 2.5 for role in marks)


def test_matplotlib_settings_are_untouched(landscape):
    before = dict(matplotlib.rcParams)
    plots.figure(landscape, "alpha_by_depth", theme="dark")
    plots.figure(landscape, "power_law", width=3.25, serif=True)
    assert dict(matplotlib.rcParams) == before


def test_unknown_names_are_refused(landscape):
    with pytest.raises(KeyError, match="no figure 'alpha'"):
        plots.figure(landscape, "alpha")
    with pytest.raises(KeyError, match="no theme 'sepia'"):
        plots.figure(landscape, "alpha_by_depth", theme="sepia")
    with pytest.raises(ValueError, match="no layer"):
        plots.figure(Landscape({}), "alpha_by_depth")


def test_many_layers_are_numbered_instead_of_named():
    rows = {}
    for depth in range(45):
        row = LayerLandscape(f"layer{depth}", "Linear", (3, 4), depth)
        row.alpha = Fit(2.0, (1.9, 2.1), 0.9, 20)
        rows[row.name] = row
    axes = plots.figure(Landscape(rows), "alpha_by_depth").axes[0]
    assert axes.get_xlabel() == "depth index of the layer"


def test_track_figures_hold_the_winners(tmp_path):
    landscapes = []
    for step in (0, 10, 20):
        one = synthetic_landscape(3, seed=step)
        one.meta["track"] = {"step": step, "epoch": step // 10}
        landscapes.append(one)
    track = Track(landscapes)
    paths = plots.plot_track(track, tmp_path, unit="epoch")
    assert {path.name for path in paths.values()} == {"phase_transition.png", "exponents_over_time.png"}
    drawings = plots.plot_track(track)
    assert track.plot()["phase_transition"].axes[0].collections
    lines = drawings["exponents_over_time"].axes[0].lines
    first = next(iter(track.series("alpha").values()))[1]
    np.testing.assert_array_equal(lines[0].get_ydata(), first)
    with pytest.raises(ValueError, match="unit"):
        plots.plot_track(track, unit="hour")


def test_phase_transition_shares_follow_from_the_counts():
    (chart,) = plots.phase_transition([0, 1], [{"lognormal": 3, "power_law": 1}, {"lognormal": 2}], "epoch")
    np.testing.assert_array_equal(chart.marks[0].high, [25, 0])
    axes = plots.draw([chart], LIGHT).axes[0]
    assert axes.collections[0].get_paths()[0].vertices[:, 1].max() == pytest.approx(25)


def test_learning_curves_hold_each_run_and_the_mean():
    axes = plots.draw(plots.learning_curves({"a": [[1.0, 2.0], [3.0, 4.0]]}), LIGHT).axes[0]
    drawn = [list(line.get_ydata()) for line in axes.lines]
    assert drawn[:3] == [[1.0, 2.0], [3.0, 4.0], [2.0, 3.0]]


def test_runs_laid_over_one_another_share_the_place_of_a_layer():
    fits = {
        "before": [Fit(2.0, (1.8, 2.2), 0.9, 20), Fit.empty("none")],
        "after": [Fit(1.0, (0.9, 1.1), 0.9, 20), Fit(1.5, (1.4, 1.6), 0.9, 20)],
    }
    (chart,) = alpha_comparison(["x", "y"], fits)
    dots = {marks.label: marks for marks in chart.marks if marks.kind == "dot"}
    assert list(dots["before"].y) == [2.0] and list(dots["after"].y) == [1.0, 1.5]
    assert abs(dots["before"].x[0]) < 0.5 and dots["before"].x[0] < dots["after"].x[0] < 0.5
    assert chart.x_ticks == [(0, "x"), (1, "y")]
    laid = overlay({"a": PANELS["power_law"](synthetic_row("x")), "b": PANELS["power_law"](synthetic_row("x", seed=1))})
    assert [marks.label for marks in laid.marks] == ["a", "b"]
    np.testing.assert_array_equal(laid.marks[0].x, synthetic_row("x").arrays.sigma)


HOSTILE = ["$a$", "a$b_{$c", "\\frac{$", "a\nb\0", "<b>", "x" * 3000, ""]


@pytest.mark.parametrize("name", ["alpha_by_depth", "power_law", "transfer_triangle", "mechanism_split"])
def test_names_are_shown_literally(name):
    rows = {one: dataclasses.replace(synthetic_row(one), depth=i) for i, one in enumerate(HOSTILE)}
    rows["$a$"].arrays.h_residual["$part_{"] = rows["$a$"].arrays.h_residual["norm"]
    drawing = plots.figure(Landscape(rows), name)
    drawing.canvas.draw()
    if name == "power_law":
        assert r"\$a\$" in [axes.get_title(loc="left") or axes.get_title() for axes in drawing.axes]
    assert all(len(text.get_text()) < 100 for text in drawing.findobj(matplotlib.text.Text))


@pytest.mark.parametrize(
    "arrays",
    [
        {"h": np.full(20, np.inf)},
        {"h": np.full(20, np.nan)},
        {"h": np.zeros(20), "sigma": np.zeros(20)},
        {"h": np.full(20, 1e308), "sigma": np.full(20, 1e308)},
        {"h": np.full(20, 5e-324), "sigma": np.full(20, 5e-324)},
        {"h": np.zeros(0), "sigma": np.zeros(0), "sigma_all": np.zeros(0), "h_gauss_newton": np.zeros(0)},
        {"h": np.zeros(0)},
        {"h_gauss_newton": np.full(20, np.inf)},
    ],
    ids=["inf", "nan", "zero", "huge", "tiny", "empty", "no h", "inf part"],
)
@pytest.mark.parametrize("interval", [(1.9, 2.1), (-np.inf, np.inf), (np.nan, np.nan)])
def test_any_numbers_are_drawn_or_the_reason_is_said(arrays, interval):
    row = synthetic_row("x")
    row.arrays = dataclasses.replace(row.arrays, **arrays)
    row.alpha = dataclasses.replace(row.alpha, interval=interval)
    row.pr_curvature = float(arrays.get("h", np.ones(1)).max(initial=0.0))
    for name in plots.NAMES:
        plots.figure(Landscape({"x": row}), name).canvas.draw()


def test_figures_of_thousands_of_layers_draw_some_and_say_how_many():
    row = synthetic_row("x", top_k=6)
    rows = {f"l{i}": dataclasses.replace(row, name=f"l{i}", depth=i) for i in range(3000)}
    drawing = plots.figure(Landscape(rows), "alpha_by_depth")
    assert sum(len(c.lines[0].get_xdata()) for c in drawing.axes[0].containers) == plots.SUMMARY_LAYERS
    assert "400 of 3,000 layers, evenly spaced in depth" in texts(drawing)
    chosen = list(plots.evenly_spaced(Landscape(rows), 120))
    assert (len(chosen), chosen[0], chosen[-1]) == (120, "l0", "l2999")
    assert plots.evenly_spaced(Landscape(rows), 3000) is not None


def test_a_landscape_draws_itself(landscape):
    assert set(landscape.plot(names=["alpha_by_depth"])) == {"alpha_by_depth"}
