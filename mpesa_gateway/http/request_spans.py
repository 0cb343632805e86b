"""Spans of requests."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from opentelemetry.context import Context, get_current
from opentelemetry.trace import Link, Span, SpanKind, get_current_span

from mpesa_gateway.client_ip import is_within, read_address
from mpesa_gateway.metrics.definitions import OTHER
from mpesa_gateway.security.audit import acting_from
from mpesa_gateway.traceparent import read_traceparent
from mpesa_gateway.tracing import Tracing, root_span, set_attributes, set_error


def request_span(tracing: Tracing, scope: Mapping[str, Any], request_id: str) -> AbstractContextManager[Span]:
    """Return a block with a span, named later by ``describe_request``."""
    parent, links = _caller(tracing, scope)
    attributes = {"mpesa.request_id": request_id, "url.scheme": scope.get("scheme", "http")}
    return root_span(tracing.tracer, "HTTP", SpanKind.SERVER, attributes, parent, links)


def describe_request(span: Span, method: str, route: str, status: int, ids: Mapping[str, str]) -> None:
    """``status`` is 0 without an answer."""
    span.update_name(f"{method} {route}")
    set_attributes(
        span,
        {
            "http.request.method": "_OTHER" if method == OTHER else method,
            "http.route": route,
            "url.path": route,
            "http.response.status_code": status,
            **{f"mpesa.{name}": value for name, value in ids.items()},
        },
    )
    if status >= 500 or not status:
        set_error(span, str(status or "no_answer"))


def _caller(tracing: Tracing, scope: Mapping[str, Any]) -> tuple[Context, list[Link]]:
    """The parent is a span of the host or of a trusted caller."""
    context = get_current()
    if get_current_span(context).get_span_context().is_valid:
        return context, []
    sent = {
        name: value.decode("latin-1") for name, value in scope["headers"] if name in {b"traceparent", b"tracestate"}
    }
    traceparent = sent.get(b"traceparent", "")
    address = read_address(acting_from.get() or "") if tracing.trusted_callers else None
    if address is not None and is_within(address, tracing.trusted_callers):
        return read_traceparent(traceparent, sent.get(b"tracestate", "")), []
    # An untrusted caller decides neither trace id nor sampling.
    theirs = get_current_span(read_traceparent(traceparent)).get_span_context()
    return Context(), [Link(theirs)] if theirs.is_valid else []
