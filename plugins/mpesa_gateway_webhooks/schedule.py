"""The retry schedule of deliveries."""

from collections.abc import Sequence
from datetime import timedelta

PAUSES = (5.0, 60.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0, 50_400.0)
"""Seconds after each failed attempt; after the last attempt the delivery is dead."""

_JITTER = 0.1


def pause_after(attempts: int, chance: float, pauses: Sequence[float] = PAUSES) -> timedelta | None:
    """Return the pause after ``attempts`` failures, ±10 % by ``chance`` in 0…1, or None."""
    if attempts > len(pauses):
        return None
    return timedelta(seconds=pauses[attempts - 1]) * (1 + _JITTER * (2 * chance - 1))
