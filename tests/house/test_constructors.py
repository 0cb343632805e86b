"""Protects constructor injection: a class resolves no port and takes no whole gateway."""

import ast
from collections.abc import Iterator

import pytest

from tests.house.tree import name_of, parsed, shipped_modules

COMPOSES = {
    "mpesa_gateway/app.py": "the composition itself",
}
"""Modules whose classes may resolve ports."""

ABOVE = ("mpesa_gateway/commands/", "mpesa_gateway/doctor/", "mpesa_gateway/standalone/", "mpesa_gateway/testing/")
"""Folders above the composition, which work with a whole gateway."""


def test_classes_resolve_no_port() -> None:
    seen = [
        f"{name_of(path)}:{line}"
        for path in shipped_modules()
        if name_of(path) not in COMPOSES
        for line in _lookups(parsed(path))
    ]
    assert seen == []


def test_classes_below_the_composition_take_no_gateway() -> None:
    seen = [
        f"{name_of(path)}:{line}"
        for path in shipped_modules()
        if not name_of(path).startswith(ABOVE)
        and path.name not in {"commands.py", "shortcode_commands.py", "asgi.py", "litestar_host.py"}
        for line in _gateways(parsed(path))
    ]
    assert seen == []


@pytest.mark.parametrize(
    "code",
    [
        "class A:\n def __init__(self, runtime):\n  self.b = runtime.port(B)",
        "class A:\n async def do(self):\n  return self._gateway.services.get(B)",
        "class A:\n def do(self):\n  return self._runtime.port_if_provided(B)",
    ],
)
def test_port_lookup_in_a_class_is_found(code: str) -> None:
    assert list(_lookups(ast.parse(code))) == [3]


def test_gateway_import_is_found() -> None:
    code = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n from mpesa_gateway.app import Gateway"
    assert list(_gateways(ast.parse(code))) == [3]
    assert list(_gateways(ast.parse("from mpesa_gateway.runtime import Runtime"))) == []


def _lookups(tree: ast.Module) -> Iterator[int]:
    for kind in ast.walk(tree):
        if isinstance(kind, ast.ClassDef):
            for node in ast.walk(kind):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _resolves(node.func):
                    yield node.lineno


def _resolves(called: ast.Attribute) -> bool:
    if called.attr == "get":
        return ast.unparse(called.value).split(".")[-1] in {"services", "_services"}
    return called.attr in {"port", "port_if_provided"}


def _gateways(tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "mpesa_gateway.app":
            yield node.lineno
