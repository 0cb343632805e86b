"""W3C ``traceparent`` in headers and jobs, ``trace_id`` in log lines."""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from opentelemetry.context import Context, attach, create_key, detach, get_current, get_value
from opentelemetry.trace import Span, format_trace_id, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from structlog.contextvars import bound_contextvars

_W3C = TraceContextTextMapPropagator()

LATE_PARENT = create_key("mpesa-gateway-late-parent")
"""A span that its first child starts."""

LateParent = Callable[[], Context | None]


def parent_context() -> Context | None:
    current = get_current()
    if get_current_span(current).get_span_context().is_valid:
        return current
    late: LateParent | None = get_value(LATE_PARENT, current)  # type: ignore[assignment]  # the API types it as object
    return None if late is None else late()


def current_traceparent() -> str:
    parent = parent_context()
    carrier: dict[str, str] = {}
    if parent is not None:
        _W3C.inject(carrier, parent)
    return carrier.get("traceparent", "")


def read_traceparent(traceparent: str, tracestate: str = "") -> Context:
    """Return a context with the remote span, if any."""
    return _W3C.extract({"traceparent": traceparent, "tracestate": tracestate}, Context()) if traceparent else Context()


@contextmanager
def continued(traceparent: str) -> Generator[None]:
    if not traceparent:
        yield
        return
    remote = read_traceparent(traceparent)
    token = attach(remote)
    try:
        with logged(get_current_span(remote)):
            yield
    finally:
        detach(token)


def logged(span: Span) -> AbstractContextManager[None]:
    """Bind the ``trace_id`` of a sampled trace."""
    known = span.get_span_context()
    if not known.trace_flags.sampled:
        return nullcontext()
    return bound_contextvars(trace_id=format_trace_id(known.trace_id))
