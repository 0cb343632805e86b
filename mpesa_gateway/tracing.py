"""OpenTelemetry spans without secrets, phone numbers and exception texts."""

import asyncio
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from weakref import WeakKeyDictionary

from opentelemetry.context import Context, attach, detach, set_value
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    NoOpTracer,
    Span,
    SpanKind,
    StatusCode,
    Tracer,
    set_span_in_context,
    use_span,
)

from mpesa_gateway.client_ip import Network
from mpesa_gateway.correlation import current_request_id
from mpesa_gateway.logs import masked
from mpesa_gateway.traceparent import LATE_PARENT, logged, parent_context

Attributes = Mapping[str, str | int | float | bool]
_POSTGRES: Attributes = {"db.system.name": "postgresql"}

UNTRACED = NoOpTracer()

_NOT_RECORDED: AbstractContextManager[Span] = nullcontext(INVALID_SPAN)

_ends_after: WeakKeyDictionary[Span, asyncio.Task[None]] = WeakKeyDictionary()

_LONG = 1_000_000_000
"""Nanoseconds after which a cron is recorded without a child."""


class Tracing:
    """Port. The default records nothing."""

    tracer: Tracer = UNTRACED
    trusted_callers: Sequence[Network] = ()

    is_sent_to_merchants: bool = False
    remember_hours: int = 0

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass


def is_enabled(tracer: Tracer) -> bool:
    return not isinstance(tracer, NoOpTracer)


def root_span(
    tracer: Tracer, name: str, kind: SpanKind, attributes: Attributes, parent: Context, links: Sequence[Link] = ()
) -> AbstractContextManager[Span]:
    if not is_enabled(tracer):
        return _NOT_RECORDED
    return _logged_span(tracer.start_span(name, parent, kind, _masked(attributes), links))


def client_span(tracer: Tracer, name: str, attributes: Attributes) -> AbstractContextManager[Span]:
    if not is_enabled(tracer):
        return _NOT_RECORDED
    return _current_span(
        tracer.start_span(name, parent_context() or Context(), SpanKind.CLIENT, _of_request(attributes))
    )


def child_span(
    tracer: Tracer, name: str, attributes: Attributes, kind: SpanKind = SpanKind.INTERNAL
) -> AbstractContextManager[Span]:
    """Record the span only inside another one."""
    parent = parent_context() if is_enabled(tracer) else None
    if parent is None:
        return _NOT_RECORDED
    return _current_span(tracer.start_span(name, parent, kind, _of_request(attributes)))


def postgres_span(tracer: Tracer, what: str) -> AbstractContextManager[Span]:
    return child_span(tracer, f"postgres {what}", _POSTGRES, SpanKind.CLIENT)


@contextmanager
def cron_span(tracer: Tracer, name: str, attributes: Attributes) -> Generator[None]:
    """Record the span with a child, a failure, or after a second."""
    if not is_enabled(tracer):
        yield
        return
    began = time.time_ns()
    span: Span | None = None
    is_over = False

    def start() -> Span:
        nonlocal span
        span = span or tracer.start_span(name, Context(), attributes=_masked(attributes), start_time=began)
        return span

    def parent() -> Context | None:
        return None if is_over else set_span_in_context(start(), Context())

    # Not inside a host's span.
    token = attach(set_value(LATE_PARENT, parent, Context()))
    try:
        yield
    except BaseException as problem:
        set_error(start(), type(problem).__name__)
        raise
    finally:
        detach(token)
        if time.time_ns() - began >= _LONG:
            start()
        is_over = True
        if span is not None:
            span.end()


def set_attributes(span: Span, attributes: Attributes) -> None:
    if span.is_recording():
        span.set_attributes(_masked(attributes))


def set_error(span: Span, error_type: str) -> None:
    """``error_type`` is a class or code, never a message."""
    span.set_attribute("error.type", error_type)
    span.set_status(StatusCode.ERROR)


def end_after(span: Span, task: asyncio.Task[None]) -> None:
    """End the span when the task is done, with the end time of its block."""
    _ends_after[span] = task


@contextmanager
def _current_span(span: Span) -> Generator[Span]:
    try:
        # An exception may quote a row.
        with use_span(span, record_exception=False, set_status_on_exception=False):
            yield span
    except BaseException as problem:
        set_error(span, type(problem).__name__)
        raise
    finally:
        ended = time.time_ns()
        task = _ends_after.pop(span, None)
        if task is None or task.done():
            span.end(ended)
        else:
            task.add_done_callback(lambda _: span.end(ended))


@contextmanager
def _logged_span(span: Span) -> Generator[Span]:
    with _current_span(span), logged(span):
        yield span


def _of_request(attributes: Attributes) -> Attributes:
    request_id = current_request_id()
    return _masked({**attributes, "mpesa.request_id": request_id} if request_id else attributes)


def _masked(attributes: Attributes) -> Attributes:
    return {name: masked(value) if isinstance(value, str) else value for name, value in attributes.items()}
