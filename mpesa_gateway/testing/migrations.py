"""Lints migrations with squawk: removals that the release before needs, and locks that block it.

For house tests: ``complaints(find("thanks", "my_thanks.migrations"), live=…)``. Needs ``squawk-cli``.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mpesa_gateway.db.migrator import Migration

_SETTINGS = Path(__file__).with_name("squawk.toml")

_TAKES_AWAY = re.compile(
    r"ban-drop-|renaming-|changing-column-type|adding-not-nullable-field|adding-required-field|delete-rows"
)
"""Rules about removals that the release before needs: ``-- contract: why`` allows them."""

_TABLE = re.compile(r"CREATE (?:UNLOGGED )?TABLE (?:IF NOT EXISTS )?([\w.\"]+)", re.IGNORECASE)
_COMMENTS_AND_TEXTS = re.compile(r"--[^\n]*|/\*.*?\*/|\$(\w*)\$.*?\$\1\$|'(?:[^']|'')*'", re.DOTALL)

_OWN_RULES = (
    ("delete-rows", re.compile(r"^\s*(?:TRUNCATE|DELETE\s+FROM)\b", re.IGNORECASE), "the release before may use them"),
    (
        "add-column-with-check",
        re.compile(r"\bADD\s+(?:COLUMN\s+)?(?!CONSTRAINT\b|CHECK\b)[^,]*\bCHECK\b", re.IGNORECASE),
        "every row is read under the lock: add the column, then the constraint NOT VALID",
    ),
)
"""Rules that squawk does not have."""


def complaints(migrations: Sequence[Migration], live: Iterable[Migration] = ()) -> list[str]:
    """Return violations of one owner's migrations as ``owner/file: rule: explanation``.

    ``live`` are the released ones: later files must not block their tables. ``-- contract: why`` in a file allows
    removals. Raises RuntimeError without squawk.
    """
    released = set(live)
    found: list[str] = []
    for position, migration in enumerate(migrations):
        if migration in released:
            continue
        fresh = [name for one in migrations[:position] if one not in released for name in _TABLE.findall(one.sql)]
        for rule, text in _violations(migration, migrations[:position], fresh):
            takes_away = _TAKES_AWAY.match(rule) is not None
            if rule == "syntax-error" or (migration.contract is None if takes_away else bool(released)):
                found.append(f"{migration.owner}/{migration.name}: {rule}: {text}")
    return found


def _violations(migration: Migration, before: Sequence[Migration], fresh: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield broken rules with explanations. ``fresh`` tables hold no rows."""
    # Squawk needs earlier files as context, and exempts tables created in the same transaction.
    context = "".join(f"{one.sql}\n;\n" for one in before)
    sql = f"{migration.sql}\n;\n"
    if migration.statement is None:
        context += "BEGIN;\n" + "".join(f"CREATE TABLE {name} ();\n" for name in fresh)
        sql += "COMMIT;\n"
    for violation in _run(context + sql):
        if violation["line"] >= context.count("\n"):
            yield violation["rule_name"], violation["message"]
    for statement in _COMMENTS_AND_TEXTS.sub(" ", migration.sql).split(";"):
        for rule, pattern, text in _OWN_RULES:
            if pattern.search(statement):
                yield rule, text


def _run(sql: str) -> list[dict[str, Any]]:
    places = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    squawk = shutil.which("squawk", path=places)
    if squawk is None:
        raise RuntimeError("squawk is not installed: pip install squawk-cli")
    done = subprocess.run(  # noqa: S603 - a linter, which reads its input and opens no connection
        [squawk, "--config", str(_SETTINGS), "--reporter", "json", "--stdin-filepath", "migration.sql"],
        input=sql,
        capture_output=True,
        text=True,
        check=False,
    )
    if not done.stdout:
        raise RuntimeError(f"squawk: {done.stderr.strip()}")
    violations: list[dict[str, Any]] = json.loads(done.stdout)
    return violations
