"""When a delivery is tried again: the whole schedule as one list."""

from collections.abc import Sequence
from datetime import timedelta

PAUSES = (5.0, 60.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0, 50_400.0)
"""Seconds after the first failed attempt, the second, …; after the last attempt the delivery is dead."""

_JITTER = 0.1


def pause_after(attempts: int, chance: float, pauses: Sequence[float] = PAUSES) -> timedelta | None:
    """The pause after so many failed attempts, ±10 % by ``chance`` in 0…1; None when there is no further attempt."""
    if attempts > len(pauses):
        return None
    return timedelta(seconds=pauses[attempts - 1]) * (1 + _JITTER * (2 * chance - 1))
