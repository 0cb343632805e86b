"""Reads a migration as the release before would feel it: what takes something away from it, what stops its traffic.

For house tests, ours and those of plugins: ``complaints(find("thanks", "my_thanks.migrations"), live=…)``.
"""

import re
from collections.abc import Iterable, Sequence

from mpesa_gateway.db.migrator import Migration

_COMMENTS = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
_TEXTS = re.compile(r"\$(\w*)\$.*?\$\1\$|'(?:[^']|'')*'", re.DOTALL)
_ALTER = re.compile(r"ALTER TABLE (?:IF EXISTS )?(?:ONLY )?([\w.\"]+) (.*)")
_TABLE = re.compile(r"CREATE (?:UNLOGGED )?TABLE (?:IF NOT EXISTS )?([\w.\"]+)")
_INDEX = re.compile(r"CREATE (?:UNIQUE )?INDEX (?!CONCURRENTLY\b).*? ON (?:ONLY )?([\w.\"]+)")
_SPARED = r"(?!CONSTRAINT\b|NOT NULL\b|DEFAULT\b|IDENTITY\b|EXPRESSION\b)"

_TAKES_AWAY = (
    (re.compile(r"DROP (?:TABLE|VIEW|MATERIALIZED VIEW|SCHEMA|TYPE|SEQUENCE|FUNCTION)\b"), "drops"),
    (re.compile(r"(?:TRUNCATE|DELETE FROM)\b"), "deletes"),
    (re.compile(r"ALTER (?:TABLE|INDEX|VIEW|SEQUENCE|TYPE|SCHEMA|FUNCTION)\b.* RENAME\b"), "renames"),
)
"""Statements that the release before may miss something after."""

_CHANGES = (
    (re.compile(rf"DROP (?:COLUMN )?(?:IF EXISTS )?{_SPARED}"), "drops a column"),
    (re.compile(r"ALTER (?:COLUMN )?[\w\"]+ (?:SET DATA )?TYPE\b"), "changes a column's type"),
)
"""Actions of ALTER TABLE that do."""

_ADD_COLUMN = re.compile(
    r"ADD (?:COLUMN )?(?:IF NOT EXISTS )?(?!CONSTRAINT\b|CHECK\b|FOREIGN\b|UNIQUE\b|PRIMARY\b|EXCLUDE\b)"
)
_SET_NOT_NULL = re.compile(r"ALTER (?:COLUMN )?([\w\"]+) SET NOT NULL")
_ADD_CONSTRAINT = re.compile(r"ADD (?:CONSTRAINT [\w\"]+ )?(CHECK|FOREIGN KEY|UNIQUE|PRIMARY KEY|EXCLUDE)\b")


def complaints(migrations: Sequence[Migration], live: Iterable[Migration] = ()) -> list[str]:
    """What is wrong with the migrations of one owner, in order, as ``owner/file: statement …``.

    ``live`` are those of them that have been released: their tables hold data and are in use. A file that carries
    ``-- contract: why`` may take away; none may stop the traffic.
    """
    released = set(live)
    tables = {name for migration in released for name in _made_by(migration)}
    checked: set[tuple[str, str]] = set()
    found: list[str] = []
    for migration in migrations:
        statements = _statements(migration.sql)
        checked |= {check for statement in statements for check in _not_null_checks(statement)}
        if migration in released:
            continue
        for statement in statements:
            wrong = [] if migration.contract else _takes_away(statement, checked)
            wrong += _stops(statement, statements, tables)
            found += [f"{migration.owner}/{migration.name}: {shown(statement)}: {text}" for text in wrong]
    return found


def shown(statement: str) -> str:
    """The beginning of a statement."""
    return statement if len(statement) <= 70 else f"{statement[:70]}…"


def _statements(sql: str) -> list[str]:
    """The statements of a file, in capitals, their texts and comments left out, one blank between words."""
    bare = _TEXTS.sub("''", _COMMENTS.sub(" ", sql)).upper()
    return [text for part in bare.split(";") if (text := " ".join(part.split()))]


def _actions(statement: str) -> tuple[str, list[str]]:
    """Table and actions of an ALTER TABLE; nothing for any other statement."""
    match = _ALTER.match(statement)
    if match is None:
        return "", []
    actions: list[str] = []
    depth = start = 0
    text = match[2] + ","
    for position, letter in enumerate(text):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            actions.append(text[start:position].strip())
            start = position + 1
    return match[1], actions


def _made_by(migration: Migration) -> list[str]:
    return [match[1] for statement in _statements(migration.sql) if (match := _TABLE.match(statement))]


def _not_null_checks(statement: str) -> list[tuple[str, str]]:
    """Table and column of constraints that are, or have become, valid for all rows: they say that it is never null."""
    table, actions = _actions(statement)
    return [
        (table, match[1])
        for action in actions
        if (match := re.search(r"CHECK \(+([\w\"]+) IS NOT NULL\)", action)) is not None
    ]


def _takes_away(statement: str, checked: set[tuple[str, str]]) -> list[str]:
    found = [f"{what} what the release before may use" for pattern, what in _TAKES_AWAY if pattern.match(statement)]
    table, actions = _actions(statement)
    for action in actions:
        found += [f"{what} that the release before may use" for pattern, what in _CHANGES if pattern.match(action)]
        required = _SET_NOT_NULL.match(action)
        if required is not None and (table, required[1]) not in checked:
            found.append(
                "the release before may leave it empty: first a CHECK (… IS NOT NULL) NOT VALID, then VALIDATE"
            )
        is_new = _ADD_COLUMN.match(action) is not None
        if is_new and "NOT NULL" in action and " DEFAULT " not in action and " GENERATED " not in action:
            found.append("the release before does not fill it: give it a DEFAULT")
    return found


def _stops(statement: str, statements: Sequence[str], tables: set[str]) -> list[str]:
    """What keeps everybody from a table for as long as it takes to read all of it."""
    index = _INDEX.match(statement)
    if index is not None and index[1] in tables:
        return ["nobody can write meanwhile: CREATE INDEX CONCURRENTLY, in a file of its own"]
    table, actions = _actions(statement)
    if table not in tables:
        return []
    found: list[str] = []
    for action in actions:
        constraint = _ADD_CONSTRAINT.match(action)
        if constraint is not None and constraint[1] in {"CHECK", "FOREIGN KEY"} and not action.endswith("NOT VALID"):
            found.append("every row is read meanwhile: add it NOT VALID, and VALIDATE CONSTRAINT in the next file")
        elif constraint is not None and constraint[1] not in {"CHECK", "FOREIGN KEY"} and "USING INDEX" not in action:
            found.append("its index is made meanwhile: make that CONCURRENTLY, and add the constraint USING INDEX")
        if action.startswith("VALIDATE CONSTRAINT") and any("NOT VALID" in other for other in statements):
            found.append("the lock of NOT VALID is still held: VALIDATE CONSTRAINT in the next file")
        if _ADD_COLUMN.match(action) and re.search(r"\b(CHECK|REFERENCES|UNIQUE|PRIMARY KEY|STORED)\b", action):
            found.append(
                "every row is read or written meanwhile: add the column alone, and its rule as a rule of its own"
            )
    return found
