"""Statements with named parameters: ``$name`` in the text, and a value for each name at the call."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

_PARAMETER = re.compile(r"\$([a-z][a-z0-9_]*)")

Bound = tuple[str, *tuple[Any, ...]]
"""A statement and its values in the order of its parameters, as ``Database.execute`` and ``fetch`` take them."""


class Named:
    """A statement whose parameters have names. Its text is numbered once, when the module is imported."""

    def __init__(self, sql: str) -> None:
        self.names: tuple[str, ...] = tuple(dict.fromkeys(_PARAMETER.findall(sql)))
        self._known = frozenset(self.names)
        numbers = {name: f"${number}" for number, name in enumerate(self.names, 1)}
        self.sql = _PARAMETER.sub(lambda found: numbers[found[1]], sql)

    def bind(self, **values: Any) -> Bound:
        """Return the statement with a value for each name. Raises TypeError for a missing or an unknown name."""
        if values.keys() != self._known:
            raise TypeError(f"{sorted(values.keys() ^ self._known)}: missing from the call or the statement")
        return (self.sql, *map(values.__getitem__, self.names))

    def bind_rows(self, rows: Sequence[Mapping[str, Any]], **shared: Any) -> Bound:
        """Return the statement with an array for each name in ``rows`` and one value for each name in ``shared``.

        A row may have more names than the statement. Raises KeyError for a row without one of the statement's names,
        and TypeError for a name in ``shared`` that the statement does not have.
        """
        if not shared.keys() <= self._known:
            raise TypeError(f"{sorted(shared.keys() - self._known)}: unknown to the statement")
        return (self.sql, *[shared[name] if name in shared else [row[name] for row in rows] for name in self.names])
