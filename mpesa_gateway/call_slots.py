"""The place that a call has among those that are worked on, and how it is left to others while the call waits."""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from mpesa_gateway.asgi_types import Message, Receive, Send

_SLOW = 0.05
"""Seconds after which a body that has not come, or an answer that was not taken, no longer counts as work."""


class SlotCounter(Protocol):
    """Who counts the places."""

    def release(self) -> None:
        """Somebody leaves a place for a while."""
        ...

    def reacquire(self) -> None:
        """Somebody takes one again that was left, though there be none."""
        ...

    def end(self, *, is_working: bool) -> None:
        """Somebody has done; ``is_working`` says whether a place was held until now."""
        ...


class Slot:
    """One call's place among those that are worked on. It is left while the call waits for somebody else."""

    __slots__ = ("_aside", "_gate", "_is_closed")

    def __init__(self, gate: SlotCounter) -> None:
        self._gate = gate
        self._aside = 0
        self._is_closed = False

    def release(self) -> None:
        """Leave the place to another call. Several tasks of one call may do so; the last one back takes it again."""
        self._aside += 1
        if self._aside == 1 and not self._is_closed:
            self._gate.release()

    def reacquire(self) -> None:
        """Go on at once, however many there are: what has been begun is finished first."""
        self._aside -= 1
        if self._aside == 0 and not self._is_closed:
            self._gate.reacquire()

    def close(self) -> None:
        """The call has been answered; what it left running has no place any more."""
        self._is_closed = True
        self._gate.end(is_working=self._aside == 0)

    def receiving(self, receive: Receive) -> Receive:
        """A body that comes slowly keeps nobody else waiting."""

        async def wait() -> Message:
            with self._unless_quick():
                return await receive()

        return wait

    def sending(self, send: Send) -> Send:
        """And neither does an answer that is read slowly."""

        async def wait(message: Message) -> None:
            with self._unless_quick():
                await send(message)

        return wait

    @contextmanager
    def _unless_quick(self) -> Generator[None]:
        """Step aside once it takes long: most bodies are there already, and leaving at once would invite a crowd."""
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
    """A block that has a place, which is given up at its end."""
    token = _place.set(place)
    try:
        yield place
    finally:
        _place.reset(token)
        place.close()


@contextmanager
def released_slot() -> Generator[None]:
    """A block in which a call waits for somebody else, such as M-Pesa: meanwhile another one may be worked on."""
    place = _place.get()
    if place is None:
        yield
        return
    place.release()
    try:
        yield
    finally:
        place.reacquire()
