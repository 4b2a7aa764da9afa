"""Data flows one way: no circle among the imports, and every import goes down the order of the packages."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "spectral_ext"
# From the bottom up. A package imports from itself and from what stands before it.
ORDER = (
    "_version", "_figures", "_build_info", "_extension", "reference", "ops", "factors", "layers", "measurement",
    "capture", "curvature", "spectra", "signal", "landscape", "tracker", "plots", "optim", "audit", "collect_env",
    "report", "cli", "__main__",
)  # fmt: skip
FACE = "spectral_ext"
"""The package's own ``__init__`` stands above all: it names every package and no module imports from it."""


def modules(root: Path = ROOT) -> dict[str, Path]:
    found = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(source: str, known: set[str]) -> set[str]:
    """What a source imports, also inside functions and by ``import_module("…")``; not what is under TYPE_CHECKING."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, "imports are absolute here"
                for alias in child.names:
                    full = f"{child.module}.{alias.name}"
                    found.add(full if full in known else str(child.module))
            elif isinstance(child, ast.Call) and ast.unparse(child.func).endswith(("import_module", "__import__")):
                found.update(a.value for a in child.args if isinstance(a, ast.Constant) and isinstance(a.value, str))
            visit(child)

    visit(ast.parse(source))
    return found & known


def graph() -> dict[str, set[str]]:
    known = modules()
    return {name: imports(path.read_text(), set(known)) - {name} for name, path in known.items()}


def circles(edges: dict[str, set[str]]) -> list[str]:
    """A module of each circle: what is left when modules that import nothing left are taken away, again and again."""
    left = {name: set(targets) for name, targets in edges.items()}
    while free := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in free:
            del left[name]
    return sorted(left)


def package(name: str) -> str:
    return name.split(".")[1] if "." in name else name


def test_no_circle():
    assert circles(graph()) == []


def test_every_import_goes_down_the_order():
    place = {name: index for index, name in enumerate(ORDER)} | {FACE: len(ORDER)}
    up = [
        f"{name} imports {target}"
        for name, targets in graph().items()
        for target in targets
        if place[package(target)] > place[package(name)]
    ]
    assert up == []


def test_no_module_imports_from_the_public_face():
    assert [name for name, targets in graph().items() if FACE in targets] == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from a import b", {"a.b"}),
        ("def f():\n    import a.b", {"a.b"}),
        ("class C:\n    def f(self):\n        importlib.import_module('a.b')", {"a.b"}),
        ("if TYPE_CHECKING:\n    from a import b", set()),
        ("from a import name", {"a"}),
    ],
)
def test_an_import_is_seen_wherever_it_stands(source, expected):
    assert imports(source, {"a", "a.b"}) == expected


def test_a_circle_is_seen():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}) == ["a", "b", "c", "d"]
