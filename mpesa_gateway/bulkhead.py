"""Places for work that waits for another server: bounded in all, bounded for each account, never waited for."""

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager

_SILENT_SHARE = 4
"""One place in so many is for accounts whose last question got no answer."""


class Bulkhead:
    """What one process does at the same time, for one kind of work.

    Work that gets no place is left undone, and stays due: it does not wait inside a worker's slot. Accounts that did
    not answer share a small part of the places, so that they do not delay the others.
    """

    def __init__(self, at_once: int, each: int) -> None:
        """``at_once`` bounds all accounts together, ``each`` a single one."""
        self._at_once = at_once
        self._each = each
        self._silent_at_once = max(1, at_once // _SILENT_SHARE)
        self._taken: Counter[str] = Counter()
        self._silent: set[str] = set()

    @contextmanager
    def acquire(self, account: str) -> Generator[bool]:
        """A block that has a place, or False where there is none."""
        has_place = self._is_free(account)
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
        """Whether an account's question was answered."""
        if answered:
            self._silent.discard(account)
        else:
            self._silent.add(account)

    def is_unresponsive(self, account: str) -> bool:
        """Whether an account's last question was not answered."""
        return account in self._silent

    def _is_free(self, account: str) -> bool:
        if self._taken.total() >= self._at_once or self._taken[account] >= self._each:
            return False
        if account not in self._silent:
            return True
        return sum(self._taken[silent] for silent in self._silent) < self._silent_at_once
