"""The documentation: pages in Markdown, the reference from docstrings, the tutorials run while it is built."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

import spectral_ext  # noqa: E402

project = "spectral-ext"
author = "The spectral-ext authors"
release = spectral_ext.__version__
copyright = "2026, the spectral-ext authors"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
    "docstrings",
    "mathml",
]
exclude_patterns = ["_ext", "tutorials/README.md"]
suppress_warnings = ["config.cache"]  # sphinx-gallery's functions in the configuration cannot be pickled

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_use_type_comments = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100

html_theme = "pydata_sphinx_theme"
html_title = "spectral-ext"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_copy_source = False
html_show_sourcelink = False
# Set by who publishes the pages; the project has no public address yet.
repository = os.environ.get("SPECTRAL_EXT_REPOSITORY", "")
html_theme_options = {
    "navbar_align": "left",
    "header_links_before_dropdown": 9,
    "show_prev_next": True,
    "secondary_sidebar_items": ["page-toc"],
    "icon_links": [
        {"name": "Paper", "url": "https://arxiv.org/abs/2606.02596", "icon": "fa-solid fa-file-lines"},
        *([{"name": "Repository", "url": repository, "icon": "fa-brands fa-github"}] if repository else []),
    ],
}

sphinx_gallery_conf = {
    "examples_dirs": ["../examples/tutorials"],
    "gallery_dirs": ["tutorials"],
    "filename_pattern": r"/\d\d_",
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_memory": False,
    "write_computation_times": False,  # its page would load scripts from the network
    "show_signature": False,
    "abort_on_example_error": True,
    "image_scrapers": ("figures.scrape",),
    "ignore_repr_types": r"Figure",
}
