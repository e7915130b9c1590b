"""A function fits a screen and a module is read in one sitting: lengths that CONTRIBUTING.md states."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULE, FUNCTION = 400, 45
MODULES = sorted(
    path
    for folder in ("psl_flower", "strategies", "clients", "server", "simulations")
    for path in (ROOT / folder).rglob("*.py")
)


def too_long(source: str) -> Iterator[str]:
    """Yield the functions whose bodies, their docstrings left out, have more lines than a screen."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            documented = ast.get_docstring(node) is not None and len(node.body) > 1
            begin, end = node.body[documented].lineno, node.end_lineno
            assert end is not None
            if end - begin + 1 > FUNCTION:
                yield node.name


def test_the_numbers_are_those_of_the_page() -> None:
    words = f"No module above {MODULE} lines; no function's body above {FUNCTION}"
    assert words in (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    assert len(MODULES) > 300


@pytest.mark.parametrize(("lines", "names"), [(FUNCTION, []), (FUNCTION + 1, ["f"])])
def test_a_long_function_is_found_and_its_docstring_does_not_count(lines: int, names: list[str]) -> None:
    source = "def f():\n    '''One.\n\n    Two.\n    '''\n" + "    x = 1\n" * lines
    assert list(too_long(source)) == names


def test_modules_and_functions_are_short() -> None:
    sources = {path.relative_to(ROOT): path.read_text("utf-8") for path in MODULES}
    assert [str(path) for path, source in sources.items() if len(source.splitlines()) > MODULE] == []
    assert [f"{path}: {name}" for path, source in sources.items() for name in too_long(source)] == []
