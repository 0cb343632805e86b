"""Protects against network calls in an open transaction: public methods that send raise in one."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house.tree import ROOT

CALLS = frozenset({"ask", "verify"})
"""Methods of ``gateway.daraja``, or of a service's ``_daraja()``, that send."""

OUTSIDE_HTTP = {
    # Deliveries are sent and recorded by background tasks that no caller awaits.
    ("Deliveries", "start"),
    ("Deliveries", "stop"),
    # A developer's command that opens no transaction.
    ("DevListener", "forward"),
}


def functions(node: ast.ClassDef) -> dict[str, ast.AsyncFunctionDef | ast.FunctionDef]:
    return {one.name: one for one in node.body if isinstance(one, ast.AsyncFunctionDef | ast.FunctionDef)}


def attributes(node: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield the last two words of each ``x.y.name``, ``x._y().name`` and ``self.name`` in a method."""
    for one in ast.walk(node):
        if isinstance(one, ast.Attribute):
            if isinstance(one.value, ast.Call) and isinstance(one.value.func, ast.Attribute):
                yield (one.value.func.attr.removeprefix("_"), one.attr)
                continue
            before = one.value
            word = before.attr if isinstance(before, ast.Attribute) else getattr(before, "id", "")
            yield (word.removeprefix("_"), one.attr)


def calls_out(node: ast.AST) -> bool:
    """Return True if a method itself sends a request."""
    return any(
        (before == "daraja" and name in CALLS) or (before == "egress" and name == "post")
        for before, name in attributes(node)
    )


def refuses(node: ast.AST) -> bool:
    """Return True if a method raises in an open transaction."""
    return any(name == "refuse_transaction" for _, name in attributes(node))


def unguarded(source: str) -> list[str]:
    """Return the public methods that send, directly or through methods of the class, without the guard."""
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
    """Return the modules of the plugins except the simulator, which plays Daraja."""
    return [path for path in sorted((ROOT / "plugins").rglob("*.py")) if "simulator" not in str(path)]


def test_sending_methods_in_an_open_transaction_raise() -> None:
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
def test_sending_method_without_the_guard_is_found(body: str, expected: list[str]) -> None:
    source = (
        f"class A:\n async def send(self):\n  {body}\n"
        " async def _other(self):\n  await self._gateway.daraja.ask(1)\n"
        " async def _guarded(self):\n  self._db.refuse_transaction('x')\n  await self._gateway.daraja.ask(1)\n"
    )
    assert unguarded(source) == expected
