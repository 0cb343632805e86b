"""Protects the use of Piccolo's query builder: each raw statement states the reason in a comment."""

import ast
import re
import tokenize
from collections.abc import Iterator
from io import StringIO
from itertools import groupby
from typing import NamedTuple

import pytest

from tests.house.tree import name_of, parsed, shipped_modules

REASONS: dict[str, re.Pattern[str] | None] = {
    "hot path": None,
    "declared": None,
    "own connection": None,
    "any table": re.compile(r"\b(FROM|UPDATE|INTO) \(*\{\}"),
    "lock": re.compile(r"\bFOR (NO KEY )?(UPDATE|SHARE)\b|\bLOCK TABLE\b|advisory"),
    "data-modifying CTE": re.compile(r"\bWITH\b.*\b(INSERT INTO|UPDATE|DELETE FROM)\b"),
    "aggregate": re.compile(
        r"\b(count|sum|min|max|avg|array_agg|string_agg|bool_or|bool_and|percentile_\w+)\s*\(|\bOVER\b|\bGROUP BY\b"
    ),
    "array": re.compile(r"\bunnest\(|\b(ANY|ALL)\s?\("),
    "join": re.compile(
        r"\bJOIN\b|\bUNION\b|\bUPDATE\b.*\bFROM\b|\bDELETE\b.*\bUSING\b|\(\s*SELECT\b|\bFROM \w+( AS \w+)?, \w+"
    ),
    "upsert": re.compile(r"\bON CONFLICT\b"),
    "expression": re.compile(r"\b(CASE|COALESCE|GREATEST|LEAST|IS DISTINCT FROM|interval)\b|::|->|&&|@>|~"),
    "function": re.compile(r"\bSELECT\s+\w+\s*\("),
    "catalog": re.compile(r"\bpg_\w+|\bcurrent_\w+|\bto_regclass\b|\bSET (LOCAL )?\w+|information_schema"),
}
"""The accepted reasons, each with a pattern of the statement; None if its text cannot show the reason.

A ``declared`` statement is a value of a plugin, such as an invariant. A ``hot path`` runs for each request, callback,
delivery or key lookup: Piccolo's builder costs about half of asyncpg's speed. ``own connection``: no table is bound to
it. ``join``: Piccolo joins along foreign keys, and these tables declare none.
"""

NOT_YET: frozenset[str] = frozenset()
"""Files with unreviewed statements. No file is added."""

LEAST_BUILT = 112
"""The minimum number of builder queries."""

_STATEMENT = re.compile(
    r"\s*(--[^\n]*\n\s*)*\(?\s*"
    r"(SELECT\s|WITH\s+(RECURSIVE\s+)?\w+[^A-Za-z]*AS\s|INSERT\s+INTO\s|UPDATE\s+\S+\s+SET\s|DELETE\s+FROM\s|LOCK\s+TABLE\s)"
)
_MARKER = re.compile(r"#\s*raw SQL: (?P<reason>[^-\n]+?)(?: - .+)?$")
_BUILDS = {"select", "insert", "update", "delete", "exists", "count", "objects"}


class Line(NamedTuple):
    """A statement, or a reason if ``reason`` is not None."""

    number: int
    statement: str
    reason: str | None


def test_raw_statements_all_state_a_reason() -> None:
    found = [
        f"{name_of(path)}:{problem}"
        for path in shipped_modules()
        if name_of(path) not in NOT_YET
        for problem in problems(path.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_raw_sql_list_contains_no_file_with_reasons() -> None:
    texts = {name_of(path): path.read_text(encoding="utf-8") for path in shipped_modules()}
    assert [name for name in sorted(NOT_YET) if name not in texts or not problems(texts[name])] == []


def test_statements_in_files_of_tables_are_composed_at_import() -> None:
    """Ruff does not look for values in these statements (S608)."""
    files = [path for path in shipped_modules() if re.fullmatch(r"(\w+_)?tables|\w+_sql", path.stem)]
    assert len(files) > 20
    assert [f"{name_of(path)}:{line}" for path in files for line in composed_in_functions(parsed(path))] == []


def test_statement_composed_in_a_function_is_found() -> None:
    text = 'A = f"SELECT {b} FROM c"\n\ndef f(b):\n    return f"SELECT {b} FROM c"\n'
    assert [*composed_in_functions(ast.parse(text))] == [4]


def test_builder_queries_do_not_decrease() -> None:
    assert sum(built(parsed(path)) for path in shipped_modules()) >= LEAST_BUILT


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('A = "SELECT a FROM b WHERE c = $1"', "1: no reason"),
        ('# raw SQL: because\nA = "SELECT a FROM b"', "1: 'because' is no accepted reason"),
        ('# raw SQL: lock\nA = "SELECT a FROM b"', "2: not shown by the statement: lock"),
        ('# raw SQL: lock\nA = "SELECT a FROM b FOR UPDATE"\n# raw SQL: join\nB = "SELECT a FROM b"', "4: not shown"),
        ('# raw SQL: join\n# raw SQL: lock\nA = "SELECT a FROM b JOIN c"', "2: 'lock' is the reason of no statement"),
        ('# raw SQL: lock\nA = f"DELETE FROM {b} WHERE c = $1"', "2: not shown"),
    ],
)
def test_raw_statement_without_a_reason_is_found(text: str, problem: str) -> None:
    assert any(found.startswith(problem) for found in problems(text))


@pytest.mark.parametrize(
    "text",
    [
        '"""Select a from b, says a docstring."""',
        '# raw SQL: lock - one at a time.\nA = "SELECT a FROM b FOR UPDATE"',
        '# raw SQL: hot path - each request.\nA = "SELECT a FROM b"\nB = "UPDATE b SET a = $1"',
        '# raw SQL: join\n# raw SQL: lock\nA = "SELECT a FROM b JOIN c"\nB = "SELECT a FROM b FOR UPDATE"',
    ],
)
def test_raw_statement_with_a_reason_is_accepted(text: str) -> None:
    assert problems(text) == []


def test_builder_queries_are_counted() -> None:
    text = "await db.run(ThankRow.select().where(x))\nThankRow.insert(row)\nnames.count(a)\nseen.update(b)"
    assert built(ast.parse(text)) == 2


def problems(text: str) -> list[str]:
    """Return the problems of a file's raw statements, each with its line.

    The reasons of a statement are in the last comments before it that no other statement separates.
    """
    found: list[str] = []
    stated: list[Line] = []
    lines = sorted([*statements(ast.parse(text)), *reasons(text)])
    for is_reason, group in groupby(lines, key=lambda line: line.reason is not None):
        if is_reason:
            stated = [*group]
            known = [line for line in stated if line.reason in REASONS]
            found += [f"{line.number}: {line.reason!r} is no accepted reason" for line in stated if line not in known]
            stated = known
            continue
        below = [*group]
        found += [problem for line in below if (problem := _problem(line, stated)) is not None]
        found += [
            f"{line.number}: {line.reason!r} is the reason of no statement"
            for line in stated
            if not any(_shows(each.statement, line.reason) for each in below)
        ]
    return found


def _problem(line: Line, stated: list[Line]) -> str | None:
    if not stated:
        return f"{line.number}: no reason"
    if any(_shows(line.statement, each.reason) for each in stated):
        return None
    return f"{line.number}: not shown by the statement: {', '.join(str(each.reason) for each in stated)}"


def _shows(statement: str, reason: str | None) -> bool:
    pattern = REASONS[reason or ""]
    return pattern is None or pattern.search(" ".join(statement.split())) is not None


def reasons(text: str) -> Iterator[Line]:
    """Yield the reasons in the comments of a file."""
    for token in tokenize.generate_tokens(StringIO(text).readline):
        marker = _MARKER.match(token.string) if token.type == tokenize.COMMENT else None
        if marker is not None:
            yield Line(token.start[0], "", marker["reason"].strip())


def statements(module: ast.Module) -> Iterator[Line]:
    """Yield the SQL statements of a file."""
    parts = {
        id(part)
        for node in ast.walk(module)
        if isinstance(node, ast.JoinedStr)
        for part in ast.walk(node)
        if part is not node
    }
    for node in ast.walk(module):
        text = "" if id(node) in parts else _text(node)
        if _STATEMENT.match(text):
            yield Line(getattr(node, "lineno", 0), text, None)


def composed_in_functions(module: ast.Module) -> Iterator[int]:
    """Yield the lines of f-strings with SQL inside functions."""
    for function in ast.walk(module):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            for node in ast.walk(function):
                if isinstance(node, ast.JoinedStr) and _STATEMENT.match(_text(node)):
                    yield node.lineno


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(each) or "{}" for each in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def built(module: ast.Module) -> int:
    """Return the number of queries built on a table class."""
    return sum(
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in _BUILDS
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id.endswith("Row")
        for node in ast.walk(module)
    )
