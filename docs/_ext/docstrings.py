"""Docstrings as the house writes them: plain sentences in which |x| is a modulus and a*b a product, not markup."""

import re


def escape(app, what, name, obj, options, lines: list[str]) -> None:
    """Escape the signs outside of ``code`` that reStructuredText would take for a substitution or for emphasis."""
    for index, line in enumerate(lines):
        parts = re.split(r"(``.*?``|:\w+:`.*?`)", line)
        plain = "".join(parts[::2])
        stars = re.sub(r"^\s*\* |\*\*.*?\*\*", "", plain).count("*")  # neither a bullet nor bold
        signs = "|" if stars % 2 == 0 else "|*"
        parts[::2] = [re.sub(rf"(?<!\\)([{signs}])", r"\\\1", part) for part in parts[::2]]
        lines[index] = "".join(parts)


def setup(app) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", escape, priority=900)  # after napoleon
    return {"parallel_read_safe": True, "parallel_write_safe": True}
