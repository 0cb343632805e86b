"""When a delivery is tried again: the whole schedule as one list."""

from datetime import timedelta

PAUSES: tuple[timedelta, ...] = (
    timedelta(seconds=5),
    timedelta(minutes=1),
    timedelta(minutes=5),
    timedelta(minutes=30),
    timedelta(hours=2),
    timedelta(hours=5),
    timedelta(hours=10),
    timedelta(hours=14),
)
"""The pause after the first failed attempt, the second, …; after the last attempt the delivery is dead."""

ATTEMPTS = len(PAUSES) + 1
_JITTER = 0.1


def pause_after(attempts: int, chance: float) -> timedelta | None:
    """The pause after so many failed attempts, ±10 % by ``chance`` in 0…1; None when there is no further attempt."""
    if attempts >= ATTEMPTS:
        return None
    return PAUSES[attempts - 1] * (1 + _JITTER * (2 * chance - 1))
