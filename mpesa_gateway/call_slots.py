"""Slots for concurrent calls, released while a call waits for another server."""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from mpesa_gateway.asgi_types import Message, Receive, Send

_SLOW = 0.05
"""Seconds of waiting for the client after which a call releases its slot."""


class SlotCounter(Protocol):
    """Counts slots."""

    def release(self) -> None: ...

    def reacquire(self) -> None:
        """May exceed the limit, so that calls in progress finish first."""
        ...

    def end(self, *, is_working: bool) -> None: ...


class Slot:
    """One call's slot."""

    __slots__ = ("_aside", "_gate", "_is_closed")

    def __init__(self, gate: SlotCounter) -> None:
        self._gate = gate
        self._aside = 0
        self._is_closed = False

    def release(self) -> None:
        """The last of several tasks to return reacquires the slot."""
        self._aside += 1
        if self._aside == 1 and not self._is_closed:
            self._gate.release()

    def reacquire(self) -> None:
        self._aside -= 1
        if self._aside == 0 and not self._is_closed:
            self._gate.reacquire()

    def close(self) -> None:
        self._is_closed = True
        self._gate.end(is_working=self._aside == 0)

    def receiving(self, receive: Receive) -> Receive:
        async def wait() -> Message:
            with self._unless_quick():
                return await receive()

        return wait

    def sending(self, send: Send) -> Send:
        """Release the slot while the client is slow."""

        async def wait(message: Message) -> None:
            with self._unless_quick():
                await send(message)

        return wait

    @contextmanager
    def _unless_quick(self) -> Generator[None]:
        has_left = False

        def leave() -> None:
            nonlocal has_left
            has_left = True
            self.release()

        timer = asyncio.get_running_loop().call_later(_SLOW, leave)
        try:
            yield
        finally:
            timer.cancel()
            if has_left:
                self.reacquire()


_place: ContextVar[Slot | None] = ContextVar("mpesa_gateway_place", default=None)


@contextmanager
def use_slot(place: Slot) -> Generator[Slot]:
    token = _place.set(place)
    try:
        yield place
    finally:
        _place.reset(token)
        place.close()


@contextmanager
def released_slot() -> Generator[None]:
    """Release the slot while the call waits for another server."""
    place = _place.get()
    if place is None:
        yield
        return
    place.release()
    try:
        yield
    finally:
        place.reacquire()
