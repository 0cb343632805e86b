"""A public method that calls M-Pesa or a merchant's server refuses an open transaction of its caller."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house.tree import ROOT

CALLS = frozenset({"ask", "verify"})
"""What ``gateway.daraja``, or a service's ``_daraja()``, can be asked to send."""

OUTSIDE_HTTP = {
    # Deliveries are sent by tasks of their own, which no caller waits for, and recorded by themselves.
    ("Deliveries", "start"),
    ("Deliveries", "stop"),
    # A command of a developer, which opens no transaction.
    ("DevListener", "forward"),
}


def functions(node: ast.ClassDef) -> dict[str, ast.AsyncFunctionDef | ast.FunctionDef]:
    """The methods of a class by name."""
    return {one.name: one for one in node.body if isinstance(one, ast.AsyncFunctionDef | ast.FunctionDef)}


def attributes(node: ast.AST) -> Iterator[tuple[str, str]]:
    """Each ``x.y.name``, ``x._y().name`` and ``self.name`` in a method: the word before the last dot, and the name."""
    for one in ast.walk(node):
        if isinstance(one, ast.Attribute):
            if isinstance(one.value, ast.Call) and isinstance(one.value.func, ast.Attribute):
                yield (one.value.func.attr.removeprefix("_"), one.attr)
                continue
            before = one.value
            word = before.attr if isinstance(before, ast.Attribute) else getattr(before, "id", "")
            yield (word.removeprefix("_"), one.attr)


def calls_out(node: ast.AST) -> bool:
    """Whether a method itself sends something."""
    return any(
        (before == "daraja" and name in CALLS) or (before == "egress" and name == "post")
        for before, name in attributes(node)
    )


def refuses(node: ast.AST) -> bool:
    """Whether a method refuses an open transaction."""
    return any(name == "refuse_transaction" for _, name in attributes(node))


def unguarded(source: str) -> list[str]:
    """The public methods in a module that send something, by themselves or through others of the class, unguarded."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ClassDef):
            continue
        methods = functions(node)
        for name, method in methods.items():
            if name.startswith("_") or (node.name, name) in OUTSIDE_HTTP:
                continue
            reached, waiting = set[str](), [name]
            while waiting:
                one = waiting.pop()
                if one in reached or (one != name and refuses(methods[one])):
                    continue
                reached.add(one)
                waiting += [to for before, to in attributes(methods[one]) if before == "self" and to in methods]
            if any(calls_out(methods[one]) for one in reached) and not refuses(method):
                found.append(f"{node.name}.{name}")
    return found


def modules() -> list[Path]:
    """The modules of the plugins, the simulator apart: it plays Daraja."""
    return [path for path in sorted((ROOT / "plugins").rglob("*.py")) if "simulator" not in str(path)]


def test_public_methods_that_send_refuse_an_open_transaction() -> None:
    found = [f"{path.name}: {one}" for path in modules() for one in unguarded(path.read_text(encoding="utf-8"))]
    assert found == []
    guarded = [path.name for path in modules() if "refuse_transaction" in path.read_text(encoding="utf-8")]
    assert len(guarded) >= 5


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("await self._gateway.daraja.ask(1)", ["A.send"]),
        ("await self._daraja.ask(1)", ["A.send"]),
        ("await self._daraja().ask(1)", ["A.send"]),
        ("await self.egress.post(1)", ["A.send"]),
        ("await self._other()", ["A.send"]),
        ("self._db.refuse_transaction('x'); await self._gateway.daraja.ask(1)", []),
        ("await self._guarded()", []),
        ("await self._gateway.daraja.token_until(1)", []),
    ],
)
def test_an_unguarded_method_is_found(body: str, expected: list[str]) -> None:
    source = (
        f"class A:\n async def send(self):\n  {body}\n"
        " async def _other(self):\n  await self._gateway.daraja.ask(1)\n"
        " async def _guarded(self):\n  self._db.refuse_transaction('x')\n  await self._gateway.daraja.ask(1)\n"
    )
    assert unguarded(source) == expected
