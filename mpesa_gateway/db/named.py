"""Statements with named parameters: ``$name``."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

_PARAMETER = re.compile(r"\$([a-z][a-z0-9_]*)")

Bound = tuple[str, *tuple[Any, ...]]


class Named:
    """A statement with named parameters, numbered once at import."""

    def __init__(self, sql: str) -> None:
        self.names: tuple[str, ...] = tuple(dict.fromkeys(_PARAMETER.findall(sql)))
        self._known = frozenset(self.names)
        numbers = {name: f"${number}" for number, name in enumerate(self.names, 1)}
        self.sql = _PARAMETER.sub(lambda found: numbers[found[1]], sql)

    def bind(self, **values: Any) -> Bound:
        """Raise TypeError for a missing or unknown name."""
        if values.keys() != self._known:
            raise TypeError(f"{sorted(values.keys() ^ self._known)}: missing from the call or the statement")
        return (self.sql, *map(values.__getitem__, self.names))

    def bind_rows(self, rows: Sequence[Mapping[str, Any]], **shared: Any) -> Bound:
        """Bind an array per name in ``rows`` and a value per name in ``shared``.

        Raises KeyError for a missing name, TypeError for an unknown one.
        """
        if not shared.keys() <= self._known:
            raise TypeError(f"{sorted(shared.keys() - self._known)}: unknown to the statement")
        return (self.sql, *[shared[name] if name in shared else [row[name] for row in rows] for name in self.names])
