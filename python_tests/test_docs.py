"""The documentation: every example runs and gives what it shows, every page is reachable, the site builds."""

import ast
import doctest
import html
import importlib
import inspect
import io
import json
import os
import posixpath
import re
import runpy
import shutil
import subprocess
import sys
import typing
import urllib.parse
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if path.parent.name != "tutorials")
TUTORIALS = sorted((ROOT / "examples" / "tutorials").glob("[0-9]*.py"))
EXAMPLES = [page for page in PAGES if "```pycon" in page.read_text(encoding="utf-8")]


def name(page):
    return str(page.relative_to(DOCS))


@pytest.mark.parametrize("page", EXAMPLES, ids=name)
def test_examples_of_a_page_run_in_order(page):
    blocks = re.findall(r"```pycon\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    test = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, name(page), str(page), 0)
    assert test.examples
    said = io.StringIO()
    result = doctest.DocTestRunner(verbose=False).run(test, out=said.write)
    assert result.failed == 0, said.getvalue()


def test_each_concept_page_has_an_example():
    assert set((DOCS / "concepts").glob("*.md")) - {DOCS / "concepts" / "index.md"} <= set(EXAMPLES)


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+\.md)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).resolve().is_file(), (page, link)


@pytest.mark.parametrize("script", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_runs(script, monkeypatch, tmp_path, capsys):
    """Each ends with what its text promises; the figures are drawn when its pictures are made."""
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path(str(script))
    said = capsys.readouterr().out
    assert said
    if "landscape" in names:
        assert all(row.alpha.ok or row.alpha.reason for row in names["landscape"].values())
    if script.stem.startswith("02"):
        verdicts = {name: {row.signal.verdict for row in one.values()} for name, one in names["found"].items()}
        assert verdicts["random"] == {"noise"}
        assert "noise" not in verdicts["learnable"]


def test_the_tables_of_the_readme_say_what_the_results_say():
    done = subprocess.run(
        [sys.executable, "tools/readme_tables.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_notebook_is_the_first_tutorial(tmp_path):
    """`make notebook` writes it anew."""
    notebook = json.loads((ROOT / "examples/notebooks/landscape_of_a_resnet.ipynb").read_text(encoding="utf-8"))
    code = "".join(
        line for cell in notebook["cells"] if cell["cell_type"] == "code" for line in [*cell["source"], "\n"]
    )
    script = TUTORIALS[0].read_text(encoding="utf-8")
    wanted = re.sub(r'^""".*?"""|^#.*?$', "", script, flags=re.DOTALL | re.MULTILINE)
    assert ast.dump(ast.parse(code)) == ast.dump(ast.parse(wanted))


PACKAGES = ("audit", "capture", "curvature", "factors", "landscape", "layers", "ops", "optim", "plots", "report",
            "signal", "spectra", "tracker")  # fmt: skip


def own_types(annotation):
    """The classes of this project in a type annotation."""
    found = {annotation} if inspect.isclass(annotation) and annotation.__module__.startswith("spectral_ext") else set()
    for part in typing.get_args(annotation):
        found |= own_types(part)
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site without the tutorials' pictures, which take a minute: `make docs` builds all, as strictly."""
    for package in ("sphinx", "myst_parser", "sphinx_gallery", "pydata_sphinx_theme", "latex2mathml"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("site")
    source = folder / "docs"
    shutil.copytree(DOCS, source, ignore=shutil.ignore_patterns("tutorials", "sg_execution_times.rst"))
    (folder / "examples").symlink_to(ROOT / "examples")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-D",
        "plot_gallery=0",
        str(source),
        str(folder / "html"),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)
    # Without the pictures the gallery's own links to them are the only thing that may be missing.
    said = [
        line
        for line in done.stderr.splitlines()
        if line.strip() and "sphx_glr" not in line and "finished with problems" not in line
    ]
    assert not said, done.stderr
    return folder / "html"


def test_every_public_name_and_every_type_they_return_or_raise_is_documented(site):
    from sphinx.util.inventory import InventoryFile

    with (site / "objects.inv").open("rb") as file:
        inventory = InventoryFile.load(file, "", posixpath.join)
    documented = {name for kind, names in inventory.items() if kind.startswith("py:") for name in names}
    missing = set()
    for package in PACKAGES:
        module = importlib.import_module(f"spectral_ext.{package}")
        for name in module.__all__:
            thing = getattr(module, name)
            if (callable(thing) or inspect.ismodule(thing)) and f"spectral_ext.{package}.{name}" not in documented:
                missing.add(f"{package}.{name}")
            if not inspect.isfunction(thing):
                continue
            assert thing.__doc__, name
            types = own_types(typing.get_type_hints(thing).get("return"))
            raised = re.findall(r"^ +(\w+Error):", thing.__doc__, re.MULTILINE)
            types |= {getattr(module, one) for one in raised if hasattr(module, one)}
            missing |= {
                one.__qualname__ for one in types if not any(d.endswith(f".{one.__qualname__}") for d in documented)
            }
    assert not missing


def test_mathematics_needs_no_script_and_search_works_from_disk(site):
    page = (site / "concepts" / "alpha.html").read_text(encoding="utf-8")
    assert "<math" in page and not re.search(r"<script[^>]*mathjax", page, re.IGNORECASE)
    found = (site / "searchindex.js").read_text(encoding="utf-8")
    assert found.startswith("Search.setIndex(") and "curvatur" in found
    for path in site.rglob("*.html"):
        if "_static" in path.parts:  # the theme's own templates
            continue
        text = path.read_text(encoding="utf-8")
        assert not re.search(
            r'<(?:script|img)[^>]* src="(?:https?:)?//|<link rel="stylesheet"[^>]* href="(?:https?:)?//', text
        ), path
        for link in re.findall(r'(?:href|src)="([^"#?]+)[^"]*"', text):
            if not re.match(r"[a-z]+:|//", link) and "sphx_glr" not in link:
                assert (path.parent / urllib.parse.unquote(html.unescape(link))).resolve().exists(), (path, link)
