"""Protects the size of files and classes: at most 400 lines and 20 methods, or a stated reason."""

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.house.tree import name_of, parsed, shipped_modules

MOST_LINES = 400
MOST_METHODS = 20

LONG_FILES: Mapping[str, str] = {
    "mpesa_gateway/config.py": "every setting of the kernel: its type, its default and its check",
    "mpesa_gateway/daraja/client.py": "every call to Daraja goes through the same token, retry and record",
    "mpesa_gateway/daraja/wire.py": "every request and answer of Daraja, as it is on the wire",
    "mpesa_gateway/db/engine.py": "the pool, the ambient transaction and Piccolo's engine share the open connection",
    "mpesa_gateway/http/outbound.py": "one reader of answers, byte by byte, and the connections that it reads",
    "mpesa_gateway/http/protocol.py": "one reader of requests, byte by byte, and its refusals",
}
"""Files over the limit, with the reason."""

CROWDED: Mapping[str, str] = {
    "mpesa_gateway/app.py: Gateway": "the facade of hosts, with the parts' life behind it",
}
"""Classes over the limit whose docstring states no reason."""

_REASON = f"Over {MOST_METHODS} methods: "
"""The start of a reason in a docstring."""


def test_files_over_the_line_limit_are_listed() -> None:
    long = {name_of(path) for path in shipped_modules() if _lines(path) > MOST_LINES}
    assert long - LONG_FILES.keys() == set()
    assert LONG_FILES.keys() - long == set()


def test_classes_over_the_method_limit_state_a_reason() -> None:
    found = {f"{name_of(path)}: {name}" for path in shipped_modules() for name in crowded(parsed(path))}
    assert found - CROWDED.keys() == set()
    assert CROWDED.keys() - found == set()


def test_class_over_the_method_limit_is_found() -> None:
    methods = "".join(f"    def m{number}(self): ...\n" for number in range(MOST_METHODS + 1))
    assert list(crowded(ast.parse(f"class A:\n{methods}"))) == ["A"]
    assert list(crowded(ast.parse(f'class A:\n    """Many. {_REASON}one for each event."""\n{methods}'))) == []


def crowded(module: ast.Module) -> Iterator[str]:
    """Yield the classes over the limit whose docstring states no reason."""
    for node in ast.walk(module):
        if isinstance(node, ast.ClassDef):
            count = sum(isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef) for each in node.body)
            if count > MOST_METHODS and _REASON not in re.sub(r"\s+", " ", ast.get_docstring(node) or ""):
                yield node.name


def _lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())
