"""Expands ``*`` to this release's columns.

Columns of a newer release would break prepared statements ("cached plan must not change result type").
"""

import re
from functools import lru_cache
from typing import Any

from piccolo.table import Table

_STAR = re.compile(
    r"\b(?P<select>SELECT\s+)\*(?=\s+FROM\s+(?P<of>\w+))|\b(?P<qualified>\w+)\.\*|\b(?P<returning>RETURNING\s+)\*",
    re.IGNORECASE,
)
_CHANGED = re.compile(r"\b(?:INSERT\s+INTO|UPDATE|DELETE\s+FROM)\s+(\w+)\s", re.IGNORECASE)
_LOCKED = re.compile(r"\bFOR\s+(?:NO\s+KEY\s+)?UPDATE\b|\bDO\s+UPDATE\s+SET\b", re.IGNORECASE)


def columns_of(table: type[Table]) -> tuple[str, tuple[str, ...]]:
    meta: Any = table._meta  # noqa: SLF001  # pyright: ignore[reportPrivateUsage, reportUnknownVariableType]
    return meta.tablename, tuple(column._meta.db_column_name for column in meta.columns)  # noqa: SLF001


class StarExpansion:
    """Columns of the bound tables."""

    def __init__(self) -> None:
        self._names: dict[str, tuple[str, ...]] = {}
        # Queries are constant, except a few hundred lists with filters.
        self.spell_out = lru_cache(maxsize=4096)(self._expand)

    def learn(self, table: type[Table]) -> None:
        name, columns = columns_of(table)
        self._names[name] = columns
        self.spell_out.cache_clear()

    def _expand(self, sql: str) -> str:
        return _STAR.sub(lambda found: self._replace(found, sql), sql) if "*" in sql else sql

    def _replace(self, found: "re.Match[str]", sql: str) -> str:
        if found["select"] is not None:
            names = self._names.get(found["of"])
            return found["select"] + ", ".join(names) if names else found[0]
        if found["qualified"] is not None:
            names = self._names.get(found["qualified"])
            return ", ".join(f"{found['qualified']}.{name}" for name in names) if names else found[0]
        # The returning statement is the last one before it.
        before = _LOCKED.sub("", sql[: found.start()])
        changed = [match[1] for match in _CHANGED.finditer(before)]
        names = self._names.get(changed[-1]) if changed else None
        return found["returning"] + ", ".join(names) if names else found[0]
