"""Invariants: a sentence and a query for violations."""

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True)
class Invariant:
    """``sql`` selects ids that violate ``sentence``, in one statement.

    ``grace`` is how long a state may last; ``$1`` is now minus ``grace``.
    """

    name: str
    sentence: str
    sql: str
    grace: timedelta | None = None
