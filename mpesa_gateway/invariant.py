"""Invariants: a sentence and a query for violations."""

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True)
class Invariant:
    """``sql`` selects the ids that violate ``sentence``.

    It runs on a live system in one statement: related changes must be committed together. If a state is allowed for a
    while, ``grace`` is its duration, and ``$1`` is now minus ``grace``.
    """

    name: str
    sentence: str
    sql: str
    grace: timedelta | None = None
