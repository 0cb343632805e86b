"""The latest requests and callbacks of the simulator, and the signal of changes."""

import asyncio
import json
import re
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast
from urllib.parse import urlsplit

import msgspec

from mpesa_gateway.clock import Clock
from mpesa_gateway.phone import mask_phones

_KEPT = 200
_LONGEST = 4000
_SECRET = frozenset({"Password", "SecurityCredential", "access_token"})
_READER = msgspec.json.Decoder(float_hook=lambda number: msgspec.Raw(number.encode()))
"""Keeps amounts as written: `1250.00` is not `1250.0`."""

_SECRET_TEXT = re.compile(rf'("(?:{"|".join(sorted(_SECRET))})"\s*:\s*")[^"]*')
_TOKEN = re.compile(r"(/v1/(?:cb/[a-z0-9-]+|webhooks/mpesa(?:/[a-z]+/[a-z]+)?)/)[A-Za-z0-9_.-]{20,}")


class ChangeSignal:
    """Wakes all waiting tasks at each change."""

    def __init__(self) -> None:
        self._next = asyncio.Event()
        self.count = 0

    def notify(self) -> None:
        self.count += 1
        self._next.set()
        self._next = asyncio.Event()

    async def notify_after_commit(self) -> None:
        """The same, as an after-commit hook."""
        self.notify()

    async def wait_for_change(self, longest: float) -> None:
        """Wait for the next change, ``longest`` seconds at most."""
        waiting = self._next
        with suppress(TimeoutError):
            await asyncio.wait_for(waiting.wait(), longest)

    @asynccontextmanager
    async def limit_wait(self, seconds: float) -> AsyncGenerator[None]:
        """Cancel the block after so many seconds, without an error."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                yield


class DueSignal(asyncio.Event):
    """Set when a prompt or a callback may be due, so that the caller polls at once."""


@dataclass(frozen=True)
class Exchange:
    """One request, received (``came``) or sent. Bodies are stored as they were and masked for display."""

    number: int
    at: datetime
    came: bool
    what: str
    status: int
    raw_body: str
    raw_answer: Any
    ms: int | None

    @property
    def body(self) -> str:
        return _shown(self.raw_body)

    @property
    def answer(self) -> str:
        return _shown(self.raw_answer if isinstance(self.raw_answer, str) else json.dumps(self.raw_answer))


class ExchangeLog:
    """The latest exchanges of this process, in memory only."""

    def __init__(self, clock: Clock, pulse: ChangeSignal) -> None:
        self._clock = clock
        self._pulse = pulse
        self._count = 0
        self.lines: deque[Exchange] = deque(maxlen=_KEPT)

    def record_received(self, operation: str, body: bytes, status: int, answer: Any) -> None:
        self._note(
            came=True, what=operation, status=status, raw_body=body.decode("utf-8", "replace"), raw_answer=answer
        )

    def record_sent(self, url: str, body: str, status: int, answer: str, ms: int) -> None:
        """Store a callback and its answer (status 0 without one)."""
        path = _TOKEN.sub(r"\1…", urlsplit(url).path)
        self._note(came=False, what=path, status=status, raw_body=body, raw_answer=answer, ms=ms)

    def _note(
        self, *, came: bool, what: str, status: int, raw_body: str, raw_answer: Any, ms: int | None = None
    ) -> None:
        self._count += 1
        self.lines.appendleft(Exchange(self._count, self._clock.now(), came, what, status, raw_body, raw_answer, ms))
        self._pulse.notify()


def _shown(text: str) -> str:
    try:
        text = msgspec.json.format(msgspec.json.encode(_masked(_READER.decode(text))), indent=2).decode()
    except (msgspec.MsgspecError, ValueError, RecursionError):
        text = _SECRET_TEXT.sub(r"\1****", text)
    return mask_phones(_TOKEN.sub(r"\1…", text))[:_LONGEST]


def _masked(content: Any) -> Any:
    if isinstance(content, dict):
        pairs = cast("dict[str, Any]", content)
        return {name: "****" if name in _SECRET else _masked(value) for name, value in pairs.items()}
    if isinstance(content, list):
        return [_masked(value) for value in content]  # pyright: ignore[reportUnknownVariableType] - JSON
    return content
