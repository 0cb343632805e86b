"""Remembers which shortcodes Daraja takes no calls for at the moment."""

from datetime import datetime, timedelta

from mpesa_gateway.clock import Clock
from mpesa_gateway.daraja.client import NotSent

_REST = 10
"""Seconds without calls for a shortcode after Daraja took none, when it does not say how long."""


class PausedShortcodes:
    """Shortcodes that are not asked about for a while: Daraja's spike arrest counts every call."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until: dict[str, datetime] = {}

    def pause(self, shortcode_id: str, fault: NotSent) -> datetime:
        """Let a shortcode rest until the returned time."""
        until = self._clock.now() + timedelta(seconds=fault.retry_after or _REST)
        self._until[shortcode_id] = until
        return until

    def paused_until(self, shortcode_id: str) -> datetime | None:
        """Return until when a shortcode rests, None where it does not."""
        until = self._until.get(shortcode_id)
        if until is not None and until <= self._clock.now():
            self.resume(shortcode_id)
            return None
        return until

    def resume(self, shortcode_id: str) -> None:
        """End a shortcode's rest."""
        self._until.pop(shortcode_id, None)
