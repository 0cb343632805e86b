"""Links from a callback's span to its payment's trace."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Any

import structlog
from opentelemetry.trace import Span, get_current_span

from mpesa_gateway.config import ValkeyConfig
from mpesa_gateway.logs import masked
from mpesa_gateway.traceparent import current_traceparent, read_traceparent
from mpesa_gateway.tracing import end_after

log = structlog.get_logger(__name__)

_PATIENCE = 0.5

_PAUSE = 2.0
"""Seconds after an error."""


class TraceLinks:
    """Stores in Valkey where the trace of a payment, refund or status query began. Never delays callers."""

    def __init__(self, valkey: Any, config: ValkeyConfig, hours: int) -> None:
        """``hours`` is the lifetime; 0 switches links off."""
        self._valkey = valkey
        self._prefix = config.prefix
        self._keep = timedelta(hours=hours)
        self._tasks: set[asyncio.Task[None]] = set()
        self._paused_until = float("-inf")

    async def stop(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_PATIENCE)

    def begin(self, subject_id: str) -> None:
        if _set_subject(get_current_span(), subject_id):
            self._start(partial(self._store, subject_id, current_traceparent()))

    def link(self, subject_id: str) -> None:
        """The current span ends when Valkey has answered."""
        span = get_current_span()
        if _set_subject(span, subject_id) and (task := self._start(partial(self._link, subject_id, span))):
            end_after(span, task)

    def _start(self, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None] | None:
        if not self._keep or asyncio.get_running_loop().time() < self._paused_until:
            return None
        task = asyncio.create_task(self._run(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _run(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            async with asyncio.timeout(_PATIENCE):
                await work()
        except Exception as problem:  # noqa: BLE001 - only the link is missing
            self._paused_until = asyncio.get_running_loop().time() + _PAUSE
            log.debug("trace_not_linked", error=type(problem).__name__)

    async def _store(self, subject_id: str, traceparent: str) -> None:
        await self._valkey.set(self._key(subject_id), traceparent, ex=self._keep, nx=True)

    async def _link(self, subject_id: str, span: Span) -> None:
        found = await self._valkey.get(self._key(subject_id))
        if isinstance(found, bytes):
            began = get_current_span(read_traceparent(found.decode("ascii", "replace"))).get_span_context()
            if began.is_valid and began.trace_id != span.get_span_context().trace_id:
                span.add_link(began)

    def _key(self, subject_id: str) -> str:
        return f"{self._prefix}:trace:{subject_id}"


def _set_subject(span: Span, subject_id: str) -> bool:
    if not span.is_recording():
        return False
    span.set_attribute("mpesa.subject_id", masked(subject_id))
    return True
