"""Shortcodes whose calls are paused because of Daraja's spike arrest."""

from datetime import datetime, timedelta

from mpesa_gateway.clock import Clock
from mpesa_gateway.daraja.client import NotSent

_REST = 10
"""Pause in seconds if Daraja states none."""


class PausedShortcodes:
    """Shortcodes without calls for a time: Daraja's spike arrest counts every call."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until: dict[str, datetime] = {}

    def pause(self, shortcode_id: str, fault: NotSent) -> datetime:
        until = self._clock.now() + timedelta(seconds=fault.retry_after or _REST)
        self._until[shortcode_id] = until
        return until

    def paused_until(self, shortcode_id: str) -> datetime | None:
        until = self._until.get(shortcode_id)
        if until is not None and until <= self._clock.now():
            self.resume(shortcode_id)
            return None
        return until

    def resume(self, shortcode_id: str) -> None:
        self._until.pop(shortcode_id, None)
