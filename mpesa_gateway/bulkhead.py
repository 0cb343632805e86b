"""Limits on concurrent work with another server, in total and per account."""

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager

_SILENT_SHARE = 4
"""One slot in so many is for unresponsive accounts."""


class Bulkhead:
    """Limits concurrent work of one kind.

    Work without a slot stays due and does not block a worker. Unresponsive accounts share few slots.
    """

    def __init__(self, at_once: int, each: int) -> None:
        self._at_once = at_once
        self._each = each
        self._silent_at_once = max(1, at_once // _SILENT_SHARE)
        self._taken: Counter[str] = Counter()
        self._silent: set[str] = set()

    @contextmanager
    def acquire(self, account: str) -> Generator[bool]:
        """Yield True with a slot, False without."""
        has_place = self.is_free(account)
        if has_place:
            self._taken[account] += 1
        try:
            yield has_place
        finally:
            if has_place:
                self._taken[account] -= 1
                if not self._taken[account]:
                    del self._taken[account]

    def record_answer(self, account: str, *, answered: bool) -> None:
        if answered:
            self._silent.discard(account)
        else:
            self._silent.add(account)

    def is_unresponsive(self, account: str) -> bool:
        return account in self._silent

    def is_free(self, account: str) -> bool:
        if self._taken.total() >= self._at_once or self._taken[account] >= self._each:
            return False
        if account not in self._silent:
            return True
        return sum(self._taken[silent] for silent in self._silent) < self._silent_at_once
