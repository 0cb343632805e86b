"""Samples of what happens too often to be written down each time: the first of a kind, and how many followed."""

import time
from collections.abc import Callable, Hashable

_MOST = 10_000
"""Kinds that are remembered. While so many are in their window, further ones are counted together."""


class Sampler:
    """Admits the first of each key in a window."""

    def __init__(self, window: float, *, now: Callable[[], float] = time.monotonic) -> None:
        """``window`` is in seconds."""
        self._window = window
        self._now = now
        self._seen: dict[Hashable, list[float]] = {}
        """By key, when its window ends and how many were left out since; in the order of the windows' ends."""

    def admit(self, key: Hashable) -> int | None:
        """Return how many of this key were left out before this one; None when this one is to be left out as well."""
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
