"""The documentation: every example runs and gives what it shows, every page is reachable, the site builds."""

import doctest
import importlib
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
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
    assert set((DOCS / "concepts").glob("*.md")) <= set(EXAMPLES)


def test_navigation_lists_every_page_once():
    def leaves(tree):
        if isinstance(tree, str):
            return [tree]
        return [leaf for item in (tree.values() if isinstance(tree, dict) else tree) for leaf in leaves(item)]

    yaml = pytest.importorskip("yaml")
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    assert sorted(leaves(nav)) == sorted(map(name, PAGES))


@pytest.mark.parametrize("page", sorted((DOCS / "reference").glob("*.md")), ids=name)
def test_reference_names_exist_and_are_documented(page):
    for target in re.findall(r"^::: (\S+)", page.read_text(encoding="utf-8"), re.MULTILINE):
        try:
            found = importlib.import_module(target)
        except ModuleNotFoundError:
            module, _, attribute = target.rpartition(".")
            found = getattr(importlib.import_module(module), attribute)
        assert found.__doc__, target


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+\.md)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).resolve().is_file(), (page, link)


def test_site_builds_without_a_warning(tmp_path):
    for package in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        pytest.importorskip(package)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    reference = (tmp_path / "site" / "reference" / "exponents.html").read_text(encoding="utf-8")
    assert "spectral_ext.spectra.fit_alpha" in reference
    assert "Curvature exponent α of h_k = c σ_k^α" in reference
