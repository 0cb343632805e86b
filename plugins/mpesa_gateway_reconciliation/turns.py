"""Turns of the shortcodes that wait for a slot."""

from collections.abc import Callable


class Turns:
    """Shortcodes without a slot, in the order of their arrival.

    A woken shortcode that finds no slot keeps its turn.
    """

    def __init__(self) -> None:
        self._number = 0
        self._turns: dict[str, int] = {}
        self._woken: set[str] = set()

    def wait(self, shortcode_id: str) -> None:
        self._woken.discard(shortcode_id)
        if shortcode_id not in self._turns:
            self._number += 1
            self._turns[shortcode_id] = self._number

    def end(self, shortcode_id: str) -> None:
        """The shortcode has a slot."""
        self._woken.discard(shortcode_id)
        self._turns.pop(shortcode_id, None)

    def wake(self, has_slot: Callable[[str], bool]) -> str | None:
        """Return the first waiting shortcode that can have a slot; it is not returned again until it waits again."""
        waiting = sorted((turn, one) for one, turn in self._turns.items() if one not in self._woken)
        found = next((one for _, one in waiting if has_slot(one)), None)
        if found is not None:
            self._woken.add(found)
        return found
