"""Samples of frequent events."""

import time
from collections.abc import Callable, Hashable

_MOST = 10_000
"""Further keys share a count."""


class Sampler:
    """Admits the first of each key in a window."""

    def __init__(self, window: float, *, now: Callable[[], float] = time.monotonic) -> None:
        """``window`` is in seconds."""
        self._window = window
        self._now = now
        self._seen: dict[Hashable, list[float]] = {}
        """End and omitted count by key, in order of the ends."""

    def admit(self, key: Hashable) -> int | None:
        """Return the number omitted before, None to omit this one."""
        now = self._now()
        seen = self._seen.get(key)
        if seen is not None and now < seen[0]:
            seen[1] += 1
            return None
        left_out = 0 if seen is None else int(seen[1])
        self._seen.pop(key, None)
        if len(self._seen) >= _MOST:
            self._forget(now)
            if len(self._seen) >= _MOST:
                return None
        self._seen[key] = [now + self._window, 0]
        return left_out

    def _forget(self, now: float) -> None:
        for key in [key for key, (until, _) in self._seen.items() if until <= now]:
            del self._seen[key]
