"""The page: complete, self-contained, safe, and right in a real browser where there is one.

One file, although long: the tests look at one page.
"""

import dataclasses
import html
import json
import re
import shutil
import subprocess
import time
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spectral_ext import plots
from spectral_ext.landscape import Landscape, LayerLandscape
from spectral_ext.landscape.columns import BY_KEY, PAGE
from spectral_ext.landscape.derive import advise
from spectral_ext.landscape.synthetic import synthetic_landscape, synthetic_row
from spectral_ext.report import Section, advice, render, sentences, training_section, write_report
from spectral_ext.signal import GroupFit, Signal
from spectral_ext.tracker import Track

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = next((path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def landscape():
    found = synthetic_landscape(3)
    found["blocks.0.conv"].notes.append("a note of this layer")
    return found


@pytest.fixture(scope="module")
def page(landscape):
    return render(landscape, title="A title", sections=[Section("Mine", "words", ("h",), [("cell <b>",)])])


class Balance(HTMLParser):
    """Raises on a tag that is closed out of order, and collects what the page links to."""

    VOID = {"meta", "input", "br", "hr", "img", "link"}

    def __init__(self):
        super().__init__()
        self.open, self.links, self.ids = [], [], []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.links += [given[key] for key in ("href", "src", "xlink:href") if key in given]
        self.ids += [given["id"]] if "id" in given else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_well_formed_and_needs_nothing_else(page):
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert parser.links
    assert all(link.startswith("#") for link in parser.links if link != "landscape.json")
    assert not re.search(r"@import|<link|src=|https?://(?!www\.w3\.org/)", page)


def test_every_link_inside_the_page_has_a_target_and_ids_are_unique(page):
    parser = Balance()
    parser.feed(page)
    assert len(set(parser.ids)) == len(parser.ids)
    assert {link[1:] for link in parser.links if link.startswith("#")} <= set(parser.ids)


def test_page_shows_every_layer_every_column_every_reason(page, landscape):
    for row in landscape.values():
        assert f">{row.name}</a>" in page
    for column in PAGE:
        assert (f">{html.escape(column.symbol)}</button>" in page) is not column.folds  # nothing was cross-fitted
    assert "not measured: its gradient is zero" in page
    assert "BatchNorm2d has no weight matrix that is measured" in page
    assert "a note of this layer" in page
    assert page.index('id="do"') < page.index('id="table"')
    for row in list(landscape.values())[:-1]:
        low, high = row.alpha.interval
        assert f"{row.alpha.value:.2f} [{low:.2f}, {high:.2f}]" in page


def test_caller_text_is_escaped(page):
    assert "cell &lt;b&gt;" in page
    row = synthetic_row("<script>alert(1)</script>")
    hostile = render(Landscape({row.name: row}), title="<i>")
    assert "<script>alert(1)" not in hostile
    assert "<title>&lt;i&gt;" in hostile


def test_write_report_leaves_page_json_and_figures(landscape, tmp_path):
    path = write_report(landscape, tmp_path / "out", title="T", figures=False)
    assert path == tmp_path / "out" / "index.html"
    again = Landscape.load(tmp_path / "out")
    assert list(again) == list(landscape)
    assert not (tmp_path / "out" / "figures").exists()


def test_a_landscape_of_empty_rows_is_still_a_page():
    row = LayerLandscape("dead", "Linear", (3, 4), 0, empty_reason="its gradient is zero")
    page = render(Landscape({"dead": row}), title="T")
    assert "No layer could be measured" in page
    with pytest.raises(ValueError, match="no layer"):
        render(Landscape({}), title="T")


def test_notes_of_the_measurement_are_shown():
    found = synthetic_landscape(1)
    found.meta["notes"] = ["batch norm uses batch statistics"]
    assert "batch norm uses batch statistics" in render(found, title="T")


def test_sentences_count_what_is_there(landscape):
    said = " ".join(sentences(landscape))
    rows = [row for row in landscape.values() if not row.empty_reason]
    two = sum(row.alpha.interval[0] <= 2 <= row.alpha.interval[1] for row in rows)
    assert f"contains 2 in {two} of 3 layers" in said
    assert "2 of 60 measured directions have no positive curvature, in 1 of 3 layers" in said
    verdicts = [row.transfer.verdict for row in rows]
    assert f"holds within 10 % in {verdicts.count('holds')} of 3" in said


def test_a_weak_fit_is_named_and_marked():
    row = synthetic_row("noisy", noise=1.5, gamma=0.2, seed=3)
    assert row.alpha.r2 < 0.8
    found = Landscape({"noisy": row})
    assert any("noisy" in one and "R² is below 0.8" in one for one in sentences(found))
    assert re.search(r'class="n doubt"[^>]*>\s*[−\d]', render(found, title="T"))


def test_training_section_shows_a_track():
    landscapes = []
    for step in (0, 5):
        one = synthetic_landscape(2, seed=step)
        one.meta["track"] = {"step": step, "epoch": step}
        landscapes.append(one)
    section = training_section(Track(landscapes))
    assert len(section.figures) == 2
    assert section.moments.labels == ["step 0", "step 5"]
    assert len({chart.y_range for chart in section.moments.charts}) == 1
    assert "2 landscapes" in section.text


def browse(page, tmp_path, *options):
    profile = tmp_path / "profile"
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--no-first-run", "--hide-scrollbars",
        f"--user-data-dir={profile}", *options, page.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.fixture(scope="module")
def written(landscape, tmp_path_factory):
    return write_report(landscape, tmp_path_factory.mktemp("page"), title="T", figures=False)


@needs_browser
@pytest.mark.parametrize(("scheme", "paper"), [(1, (255, 255, 255)), (0, (0x14, 0x18, 0x1D))])
def test_browser_shows_the_page_in_light_and_dark(written, tmp_path, scheme, paper):
    shot = tmp_path / "shot.png"
    browse(
        written,
        tmp_path,
        f"--blink-settings=preferredColorScheme={scheme}",
        "--window-size=1300,900",
        f"--screenshot={shot}",
    )
    image = Image.open(shot).convert("RGB")
    assert image.size == (1300, 900)
    assert image.getpixel((4, 4)) == paper
    assert len(image.getcolors(1 << 20)) > 20


PROBE = f"<script>{(ROOT / 'python_tests/report_probe.js').read_text(encoding='utf-8')}</script>"


def probe(page, tmp_path, width, scheme=1, extra=""):
    """The page after the script above has used it, as a person would: what it saw and said."""
    probed = tmp_path / "probe.html"
    text = page.read_text(encoding="utf-8")
    caught = "<script>addEventListener('error', (e) => { document.title = 'failed: ' + e.message; });</script>"
    probed.write_text(
        text.replace("<body>", f"<body>{caught}{extra}").replace("</body>", PROBE + "</body>"), encoding="utf-8"
    )
    dump = browse(
        probed,
        tmp_path,
        f"--window-size={width},800",
        f"--blink-settings=preferredColorScheme={scheme}",
        "--virtual-time-budget=20000",
        "--dump-dom",
    ).stdout
    assert not re.search(r"<title>failed: [^<]*", dump), re.search(r"<title>failed: [^<]*", dump)
    found = re.search(r'<pre id="result">(.*?)</pre>', dump, re.DOTALL)
    assert found, dump[:2000]
    return json.loads(html.unescape(found[1]))


@pytest.fixture(scope="module")
def tracked(landscape, tmp_path_factory):
    landscapes = []
    for step in (0, 5):
        one = synthetic_landscape(3, seed=step)
        one.meta["track"] = {"step": step, "epoch": step}
        landscapes.append(one)
    return write_report(landscape, tmp_path_factory.mktemp("track"), title="T", figures=False, track=Track(landscapes))


@needs_browser
@pytest.mark.parametrize("width", [1280, 500])
def test_a_reader_uses_the_page_by_mouse_and_keyboard(tracked, landscape, tmp_path, width):
    result = probe(tracked, tmp_path, width)
    fitted = sorted((row for row in landscape.values() if row.alpha.ok), key=lambda row: row.alpha.value)
    assert result["up"] == [row.name for row in fitted] + ["head"]
    assert result["down"] == [row.name for row in reversed(fitted)] + ["head"]
    assert result["width"] <= result["window"]
    assert result["plots"] > 20
    assert result["empty"] == 0
    assert result["ink"] == "rgb(27, 31, 36)"
    assert result["advice"] < 400  # on the first screen
    first, second = "blocks.0.conv", "blocks.2.conv"
    alpha = landscape[first].alpha
    assert result["stops"] == 1
    assert result["tip"].startswith(
        f"{first}: Conv2d, own-batch curvature exponent α {float(f'{alpha.value:.4g}'):g} ["
    )
    assert result["next"].startswith(second)
    assert result["target"] == f"#row{list(landscape).index(second)}"
    assert result["closed"]
    assert result["filtered"] == [first, second]
    assert result["found"] == "2 of 4 layers"
    assert result["sticky"] == "sticky"
    (csv_name, csv_text), (svg_name, svg_text) = result["saved"]
    assert (csv_name, csv_text) == ("landscape.csv", landscape.to_csv())
    assert svg_name == "transfer_triangle.svg"
    assert ET.fromstring(svg_text).tag == "{http://www.w3.org/2000/svg}svg"
    assert "var(--" not in svg_text
    assert result["slid"] == ["step 0", "step 5", True]


AXE = next(
    (path for root in (ROOT / "build" / "npm", ROOT) if (path := root / "node_modules/axe-core/axe.min.js").is_file()),
    None,
)


@needs_browser
@pytest.mark.skipif(AXE is None, reason="axe-core is not installed: make axe")
@pytest.mark.parametrize("scheme", [1, 0], ids=["light", "dark"])
def test_the_accessibility_linter_finds_nothing(tracked, tmp_path, scheme):
    axe = AXE.read_text(encoding="utf-8").replace("</script", "<\\/script")
    assert probe(tracked, tmp_path, 1280, scheme, f"<script>{axe}</script>")["violations"] == []


def test_the_page_stays_small_and_is_written_fast():
    row = synthetic_row("x")
    rows = {f"l{i}": dataclasses.replace(row, name=f"blocks.{i}.attention.projection", depth=i) for i in range(400)}
    many = {one.name: one for one in rows.values()}
    assert len(render(Landscape(dict(list(many.items())[:10])), title="T").encode()) < 700e3
    start = time.process_time()
    assert len(render(Landscape(many), title="T").encode()) < 3e6
    assert time.process_time() - start < 12


def test_the_reasons_for_doubt_can_be_read_in_print():
    row = synthetic_row("noisy", noise=1.5, gamma=0.2, seed=3)
    page = render(Landscape({"noisy": row}), title="T")
    (why,) = re.findall(r'<p class="why">(.*?)</p>', page, re.DOTALL)
    assert "R² = " in why and "interval [" in why
    assert row.recommendation.reasons[0].split(":")[0] in html.unescape(page)


def test_advice_names_each_layer_once_and_in_its_group(landscape):
    said = dict(advice(landscape))
    assert next(iter(said)).startswith("First find out whether")
    own = next(names for text, names in said.items() if text.startswith("Use the own-batch α, which was not tested"))
    assert own == ["blocks.0.conv", "blocks.1.fc", "blocks.2.conv"]
    weak = synthetic_row("noisy", noise=1.5, gamma=0.2, seed=3)
    assert dict(advice(Landscape({"noisy": weak})))["Do not lean on the own-batch α: its R² is below 0.8."] == ["noisy"]
    short = synthetic_row("short", top_k=3)
    said = dict(advice(Landscape({"short": short})))
    assert said["Keep the fallback α = 2: too few directions carry a fit."] == ["short"]


def judged(name, verdict, resolved, alpha=None):
    """A row with folds, of which ``resolved`` of 20 directions hold."""
    row = synthetic_row(name)
    fit = (
        GroupFit.empty(f"{resolved} of 20 directions are resolved, at least 4 are needed")
        if alpha is None
        else (
            GroupFit(
                alpha, (alpha - 0.2, alpha + 0.2), (alpha - 0.1, alpha + 0.1), (alpha - 0.2, alpha + 0.2), resolved
            )
        )
    )
    k = np.ones(20)
    row.signal = Signal(
        8, k, k, k, k, k, list(range(resolved)), k, alpha=fit, verdict=verdict, reason=f"{resolved} of 20 hold"
    )
    advise(row)
    return row


def test_the_page_shows_signal_first_where_folds_have_measured_it():
    rows = [judged("a", "signal", 15, 1.2), judged("b", "mixed", 2), judged("c", "noise", 0)]
    found = Landscape({row.name: row for row in rows})
    text = html.unescape(render(found, title="T"))
    glance = text[text.index('<section id="glance">') : text.index('<section id="table">')]
    assert text.index('<section id="glance">') < text.index('<section id="table">')
    assert "signal in 1 (a); mixed in 1 (b); noise in 1 (c) of 3 layers" in glance
    assert "signal 15/20" in glance and "mixed 2/20" in glance and "noise 0/20" in glance
    assert "1.20 [1.00, 1.40]" in glance  # the held-out α with its interval
    assert '<span style="width:75%">' in glance and '<span style="width:0%">' in glance
    assert "α own batch" in glance and "α of noise" in glance
    assert f"{rows[0].recommendation.alpha:.2f}" in glance and rows[2].recommendation.alpha == 2.0
    said = dict(advice(found))
    assert next(iter(said.values())) == ["c"] and "no direction holds" in next(iter(said))
    assert any("held-out α" in text and names == ["a"] for text, names in said.items())
    assert said["Keep the fallback α = 2: too few directions carry a fit."] == ["b"]
    data = text[text.index('id="do"') : text.index('<section id="glance">')]
    assert "Which α holds on other samples" in data


def test_no_table_shows_an_own_batch_alpha_without_saying_so(landscape, page):
    """The page, the terminal, the frame's glossary and the figures name it."""
    assert ">α own batch</button>" in page and ">α</button>" not in page
    assert BY_KEY["alpha"].symbol == "α own batch" and "own directions" in BY_KEY["alpha"].meaning
    for name in ("alpha_by_depth", "decomposition"):
        chart = plots.charts(landscape, name)[0]
        assert "own-batch" in chart.y_label + "".join(mark.label for mark in chart.marks)
    assert "own-batch α" in plots.charts(landscape, "power_law")[0].remark


def test_a_page_of_thousands_of_layers_is_bounded_and_says_what_it_leaves_out(monkeypatch):
    from spectral_ext.report import page as module

    for name, limit in (("CARDS", 4), ("TABLE_LAYERS", 50)):
        monkeypatch.setattr(module, name, limit)
    monkeypatch.setattr(module.plots, "SUMMARY_LAYERS", 10)
    row = synthetic_row("x", top_k=6)
    rows = {f"l{i}": dataclasses.replace(row, name=f"l{i}", depth=i) for i in range(1500)}
    skipped = {f"m{i}": "no weight" for i in range(600)}
    text = render(Landscape(rows, skipped), title="T")
    assert len(text) < 1e6
    assert "The table shows 50 of 1500 layers, evenly spaced in depth" in text
    assert "4 of 1500 layers are shown here" in text
    assert "All 1500 layers by kind" in text
    assert "100 further modules are named in landscape.json" in text
    parser = Balance()
    parser.feed(text)
    assert {link[1:] for link in parser.links if link.startswith("#")} <= set(parser.ids)
    assert len(set(parser.ids)) == len(parser.ids)


def test_hostile_names_and_numbers_are_a_page(tmp_path):
    names = ["$a$", "<script>x</script>", "a\nb\0", "x" * 3000, "", "\ud800", "{{ 7*7 }}"]
    rows = {name: dataclasses.replace(synthetic_row("x"), name=name) for name in names}  # all of the same depth
    rows["$a$"].arrays.h[:] = float("inf")
    page = render(Landscape(rows, {name: name for name in names}), title="$t$")
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert len(set(parser.ids)) == len(parser.ids)
    assert "<script>x" not in page
    assert "{{ 7*7 }}" in page


def test_the_numbers_are_written_before_the_page(tmp_path, monkeypatch):
    from spectral_ext.report import page as module

    monkeypatch.setattr(module, "render", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(synthetic_landscape(1), tmp_path / "o")
    assert len(Landscape.load(tmp_path / "o")) == 2
    with pytest.raises(ValueError, match="no layer"):
        write_report(Landscape({}), tmp_path / "empty")
    assert not (tmp_path / "empty").exists()


def test_one_layer_is_spoken_of_in_the_singular():
    row = synthetic_row("only")
    assert sentences(Landscape({"only": row}))[2].startswith(
        f"The own-batch curvature exponent α of only is {row.alpha.value:.2f}"
    )
