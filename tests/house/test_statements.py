"""Protects SQL parameters: long INSERTs bind by name, and calls name the parameters of their statement."""

import ast
import importlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from mpesa_gateway.db.named import Named
from tests.house.tree import name_of, parsed, shipped_modules

MOST_POSITIONAL = 8

_NUMBERED = re.compile(r"\$(\d+)")


def test_inserts_bind_at_most_eight_values_by_position() -> None:
    assert [f"{name_of(path)}:{line}" for path in shipped_modules() for line in long_inserts(parsed(path))] == []


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
def test_long_positional_insert_is_found(statement: str, is_found: bool) -> None:
    assert bool(list(long_inserts(ast.parse(f"A = {statement}")))) is is_found


def test_bind_call_names_equal_the_statement_parameters() -> None:
    wrong, seen = list[str](), 0
    for path in shipped_modules():
        for line, statement, bound in binds(parsed(path), modules_of(path)):
            seen += 1
            if bound != set(statement.names):
                wrong.append(f"{name_of(path)}:{line}: {sorted(bound ^ set(statement.names))}")
    assert wrong == []
    assert seen > 3


def modules_of(path: Path) -> Mapping[str, str]:
    """Return the modules imported from our packages by their local name."""
    return {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mpesa_gateway")
        for alias in node.names
    }


def binds(module: ast.Module, modules: Mapping[str, str]) -> Iterator[tuple[int, Named, set[str]]]:
    """Yield the line, statement and names of each ``module.STATEMENT.bind(name=…)`` with literal names."""
    for node in ast.walk(module):
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Attribute(value=ast.Name(owner), attr=name), attr="bind"),
                keywords=keywords,
            ) if owner in modules and all(each.arg for each in keywords):
                statement = getattr(importlib.import_module(modules[owner]), name)
                if isinstance(statement, Named):
                    yield node.lineno, statement, {each.arg for each in keywords if each.arg is not None}
            case _:
                continue


def long_inserts(module: ast.Module) -> Iterator[int]:
    """Yield the lines of INSERT statements with more than ``MOST_POSITIONAL`` numbered parameters."""
    for node in ast.walk(module):
        text = _text(node)
        if "INSERT INTO" in text and max(map(int, _NUMBERED.findall(text)), default=0) > MOST_POSITIONAL:
            yield getattr(node, "lineno", 0)


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(each) for each in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
