"""Protects SQL from comparing nullable columns with ``<>``, ``!=`` or ``NOT IN``, which drops rows with NULL."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpesa_gateway.app import Gateway
from tests.house.tree import ROOT

_UNEQUAL = re.compile(
    r"(?:\b(?P<left_of>[a-z_]+)\.)?\b(?P<left>[a-z_]+)\s*(?:<>|!=|\bNOT\s+IN\b)\s*"
    r"(?:\(|(?:(?P<right_of>[a-z_]+)\.)?(?P<right>[a-z_]+)\b(?!\s*\())?",
    re.IGNORECASE,
)
_TABLES = re.compile(r"\b(?:FROM|JOIN|UPDATE|INTO)\s+([a-z_]+)", re.IGNORECASE)

MEANT = {
    # A delivery without an endpoint is claimed by no worker.
    ("delivery", "endpoint_id"),
    # The simulator compares only pushes that have ended, and these have a result.
    ("sim_push", "result_code"),
}
"""Comparisons that leave out NULL on purpose."""


def compared(sql: str, nullable: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return the nullable columns, of tables in the statement, that it compares as unequal."""
    tables = {name.lower() for name in _TABLES.findall(sql)}
    found: set[tuple[str, str]] = set()
    for match in _UNEQUAL.finditer(sql):
        for side in ("left", "right"):
            of, column = (match[f"{side}_of"] or "").lower(), (match[side] or "").lower()
            among = {of} & tables or tables
            found |= {(table, column) for table in among if (table, column) in nullable}
    return found


def texts(path: Path) -> Iterator[str]:
    """Yield the texts of a module that look like SQL; of f-strings the constant parts."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
        elif isinstance(node, ast.JoinedStr):
            text = "".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
        else:
            continue
        if "<>" in text or "!=" in text or "NOT IN" in text:
            yield text


def clauses(path: Path) -> Iterator[str]:
    """Yield SQL texts; parts of statements, such as a WHERE clause, belong to their plugin's own tables."""
    own = re.findall(r'tablename="([a-z_]+)"', path.read_text(encoding="utf-8"))
    for text in texts(path):
        yield text if _TABLES.search(text) else text + " ".join(f" FROM {table}" for table in own)


async def test_nullable_columns_are_compared_with_is_distinct_from(gateway: Gateway) -> None:
    rows = await gateway.db.fetch(
        "SELECT table_name, column_name FROM information_schema.columns "
        "WHERE table_schema = current_schema() AND is_nullable = 'YES'"
    )
    nullable = {(row["table_name"], row["column_name"]) for row in rows}
    assert ("payment", "receipt") in nullable
    found: dict[tuple[str, str], str] = {}
    for folder in ("mpesa_gateway", "plugins"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for sql in clauses(path):
                found |= dict.fromkeys(compared(sql, nullable), f"{path.name}: {sql.strip()[:120]}")
    assert {one: where for one, where in found.items() if one not in MEANT} == {}


@pytest.mark.parametrize(
    ("sql", "count"),
    [
        ("SELECT 1 FROM payment WHERE received_receipt <> receipt", 2),
        ("SELECT 1 FROM payment WHERE payment.receipt != $1", 1),
        ("SELECT 1 FROM payment WHERE receipt NOT IN ('a')", 1),
        ("SELECT 1 FROM payment WHERE status <> receipt", 1),
        ("SELECT 1 FROM payment WHERE receipt IS DISTINCT FROM received_receipt", 0),
        ("SELECT 1 FROM payment WHERE status <> 'failed'", 0),
        ("SELECT 1 FROM refund WHERE receipt <> $1", 0),
    ],
)
def test_compared_finds_a_comparison_that_loses_null(sql: str, count: int) -> None:
    nullable = {("payment", "receipt"), ("payment", "received_receipt")}
    assert len(compared(sql, nullable)) == count
