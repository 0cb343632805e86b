"""Files and classes are split by subject, and no INSERT takes a long list of positional values."""

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.house.tree import name_of, parsed, shipped_modules

MOST_LINES = 400
MOST_METHODS = 20
MOST_POSITIONAL = 8

LONG_FILES: Mapping[str, str] = {}
"""Files over the limit, each with the reason."""

_REASON = re.compile(r"\bmethods?\b")
"""What the docstring of a class over the limit talks about."""

_NUMBERED = re.compile(r"\$(\d+)")


def test_no_file_is_longer_than_a_subject() -> None:
    long = {name_of(path) for path in shipped_modules() if _lines(path) > MOST_LINES}
    assert long - LONG_FILES.keys() == set()
    assert LONG_FILES.keys() - long == set()


def test_a_class_with_many_methods_says_why() -> None:
    assert [f"{name_of(path)}: {name}" for path in shipped_modules() for name in crowded(parsed(path))] == []


def test_no_insert_takes_more_than_eight_values_by_position() -> None:
    assert [f"{name_of(path)}:{line}" for path in shipped_modules() for line in long_inserts(parsed(path))] == []


def test_a_crowded_class_is_found() -> None:
    methods = "".join(f"    def m{number}(self): ...\n" for number in range(MOST_METHODS + 1))
    assert list(crowded(ast.parse(f"class A:\n{methods}"))) == ["A"]
    assert (
        list(crowded(ast.parse(f'class A:\n    """A protocol: its methods are the server\'s events."""\n{methods}')))
        == []
    )


@pytest.mark.parametrize(
    ("statement", "is_found"),
    [
        ('"INSERT INTO a VALUES ($1, $9)"', True),
        ('f"{x} INSERT INTO a VALUES ($1, $12) {y}"', True),
        ('"INSERT INTO a VALUES ($1, $8)"', False),
        ('"UPDATE a SET b = $9"', False),
        ('Named("INSERT INTO a VALUES ($one, $two)")', False),
    ],
)
def test_a_long_insert_is_found(statement: str, is_found: bool) -> None:
    assert bool(list(long_inserts(ast.parse(f"A = {statement}")))) is is_found


def crowded(module: ast.Module) -> Iterator[str]:
    """The classes with too many methods whose docstring gives no reason."""
    for node in ast.walk(module):
        if isinstance(node, ast.ClassDef):
            count = sum(isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef) for each in node.body)
            if count > MOST_METHODS and not _REASON.search(ast.get_docstring(node) or ""):
                yield node.name


def long_inserts(module: ast.Module) -> Iterator[int]:
    """The lines of texts that insert more than ``MOST_POSITIONAL`` numbered parameters."""
    for node in ast.walk(module):
        text = _text(node)
        if "INSERT INTO" in text and max(map(int, _NUMBERED.findall(text)), default=0) > MOST_POSITIONAL:
            yield getattr(node, "lineno", 0)


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(each) for each in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())
