"""Jinja templates with the page's styles, script and palette inline."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from spectral_ext import plots
from spectral_ext._version import __version__

ENVIRONMENT = Environment(
    loader=PackageLoader("spectral_ext.report"),
    autoescape=select_autoescape(),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render_template(name: str, **context: Any) -> str:
    """A template with ``context``, the version, and everything that makes the page self-contained."""

    def source(file: str) -> Markup:
        assert ENVIRONMENT.loader is not None  # set above
        return Markup(ENVIRONMENT.loader.get_source(ENVIRONMENT, file)[0])

    palette = {name: {role: theme[role] for role in plots.ROLES} for name, theme in plots.THEMES.items()}
    library = resources.files("spectral_ext.report").joinpath("vendor/plot.js").read_text(encoding="utf-8")
    shared = dict(
        version=__version__, css=source("page.css"), script=source("page.js"), library=Markup(library), palette=palette,
        script_data=_script_data(context.pop("data", {})),
    )  # fmt: skip
    page = ENVIRONMENT.get_template(name).render(**shared, **context)
    return page.encode("utf-8", "replace").decode()  # a layer's name may hold half of a surrogate pair


def _script_data(data: Any) -> Markup:
    """JSON that stands inside a script element whatever the names in it hold."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))
