"""What ``*`` means in our queries: the columns that this release knows, whatever a newer one has added since.

Postgres refuses a prepared statement once its result has another shape ("cached plan must not change result type"). A
process that works while the next release migrates would meet that in the middle of its transactions.
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
    """A table's name in Postgres, and the names of its columns as this release knows them."""
    meta: Any = table._meta  # noqa: SLF001  # pyright: ignore[reportPrivateUsage, reportUnknownVariableType]
    return meta.tablename, tuple(column._meta.db_column_name for column in meta.columns)  # noqa: SLF001


class StarExpansion:
    """The columns of the tables that are bound."""

    def __init__(self) -> None:
        self._names: dict[str, tuple[str, ...]] = {}
        # Queries are few and constant; those that are put together (lists with their filters) are a few hundred more.
        self.spell_out = lru_cache(maxsize=4096)(self._expand)

    def learn(self, table: type[Table]) -> None:
        """Take note of a table."""
        name, columns = columns_of(table)
        self._names[name] = columns
        self.spell_out.cache_clear()

    def _expand(self, sql: str) -> str:
        """The query with each ``*`` of a bound table replaced by its columns."""
        return _STAR.sub(lambda found: self._replace(found, sql), sql) if "*" in sql else sql

    def _replace(self, found: "re.Match[str]", sql: str) -> str:
        if found["select"] is not None:
            names = self._names.get(found["of"])
            return found["select"] + ", ".join(names) if names else found[0]
        if found["qualified"] is not None:
            names = self._names.get(found["qualified"])
            return ", ".join(f"{found['qualified']}.{name}" for name in names) if names else found[0]
        # The statement that returns is the one that began last before it.
        before = _LOCKED.sub("", sql[: found.start()])
        changed = [match[1] for match in _CHANGED.finditer(before)]
        names = self._names.get(changed[-1]) if changed else None
        return found["returning"] + ", ".join(names) if names else found[0]
