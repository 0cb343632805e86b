"""Protects docstrings: an exception that one names exists."""

import ast
import builtins
import re
from collections.abc import Iterator

from tests.house.tree import name_of, parsed, shipped_modules

NAMED = re.compile(r"\bRaises? ((?:(?:[A-Z]\w+)(?:, and |, or |, | and | or )?)+)")
DOCUMENTED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)


def exceptions_in(tree: ast.Module) -> Iterator[str]:
    """Yield the names of exceptions in the docstrings of a module."""
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED):
            for match in NAMED.finditer(ast.get_docstring(node) or ""):
                yield from re.findall(r"[A-Z]\w+", match[1])


def known_names() -> set[str]:
    """Return the classes of the product, and what it imports or names of other packages."""
    known = set(dir(builtins))
    for path in shipped_modules():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef):
                known.add(node.name)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                known |= {each.name.rpartition(".")[2] for each in node.names}
            elif isinstance(node, ast.Attribute):
                known.add(node.attr)
    return known


def test_exceptions_in_docstrings_exist() -> None:
    known = known_names()
    unknown = [
        f"{name_of(path)}: {name}"
        for path in shipped_modules()
        for name in exceptions_in(parsed(path))
        if name not in known
    ]
    assert unknown == []


def test_exceptions_in_docstrings_are_found() -> None:
    code = 'def f():\n    """Return x. Raises NotThere, InvalidFields and Gone. Raises if closed."""'
    assert list(exceptions_in(ast.parse(code))) == ["NotThere", "InvalidFields", "Gone"]
