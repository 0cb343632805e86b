"""Every module says what it is for, is named after it, and is given its time and chance."""

import ast

from tests.house.tree import name_of, parsed, shipped_modules

NAMELESS = {"utils", "util", "helpers", "helper", "common", "misc", "base", "core", "manager", "types"}
"""File names that say nothing about the one reason to open the file."""

CLOCKS = {
    "datetime.now": "mpesa_gateway/clock.py",
    "datetime.utcnow": None,
    "datetime.today": None,
    "date.today": None,
    # SAQ compares `scheduled` with the machine's clock, so that is what it must be told in.
    "time.time": "mpesa_gateway/queues.py",
}
"""Calls that ask the machine for the time, and the only module that may make them."""

CHANCE = {"random", "uuid", "secrets"}

MAY_ROLL = {
    "mpesa_gateway/ids.py": "identifiers: the source of chance that everything else is given",
    "mpesa_gateway/standalone/": "passwords of the embedded servers, names of temporary files",
    "mpesa_gateway/security/sealing.py": "nonces and master keys, which no test may choose",
    "plugins/mpesa_gateway_simulator/bystanders.py": "what a seed of the simulator's own chance leads to",
    "plugins/mpesa_gateway_webhooks/attempts.py": "the jitter between attempts; the rule that uses it is given it",
}


def test_a_module_opens_with_a_sentence() -> None:
    speechless = [name_of(path) for path in shipped_modules() if not _is_sentence(ast.get_docstring(parsed(path)))]
    assert speechless == []


def test_a_module_is_named_after_its_reason() -> None:
    assert [name_of(path) for path in shipped_modules() if path.stem in NAMELESS] == []


def test_time_is_passed_in() -> None:
    seen = [
        f"{name_of(path)}:{node.lineno}: {call}"
        for path in shipped_modules()
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and (call := _last_two(node.func)) in CLOCKS and name_of(path) != CLOCKS[call]
    ]
    assert seen == []


def test_no_logger_is_handed_an_exception() -> None:
    """A renderer that gets one may show the variables of each frame: logs.trace writes it as masked text."""
    seen = [
        f"{name_of(path)}:{node.lineno}"
        for path in shipped_modules()
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call)
        if _last_two(node.func) == "log.exception" or any(each.arg == "exc_info" for each in node.keywords)
    ]
    assert seen == []


def test_chance_is_passed_in() -> None:
    seen = {
        name_of(path)
        for path in shipped_modules()
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Import | ast.ImportFrom) and CHANCE & set(_modules(node))
    }
    assert {name for name in seen if not name.startswith(tuple(MAY_ROLL))} == set()
    assert {prefix for prefix in MAY_ROLL if not any(name.startswith(prefix) for name in seen)} == set()


def _is_sentence(docstring: str | None) -> bool:
    opening = (docstring or "").partition("\n\n")[0]
    return len(opening.split()) >= 3 and opening.endswith(".")


def _last_two(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        owner = node.value
        return f"{owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, 'id', '')}.{node.attr}"
    return ""


def _modules(node: ast.Import | ast.ImportFrom) -> list[str]:
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
