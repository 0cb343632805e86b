"""Who asked for what is being done, handed on through the queue and to where many requests are served together."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import structlog

from mpesa_gateway.phone import mask_phones
from mpesa_gateway.traceparent import continued, current_traceparent

_current: ContextVar[str] = ContextVar("mpesa_gateway_request_id", default="")
_known: ContextVar[Mapping[str, "RequestContext"] | None] = ContextVar("mpesa_gateway_origins", default=None)


def current_request_id() -> str:
    """The id of the request that is being handled, empty outside one."""
    return _current.get()


@contextmanager
def use_request_id(request_id: str) -> Generator[None]:
    """A block whose log lines, and whose jobs, carry the id of the request that led to it."""
    token = _current.set(request_id)
    try:
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            yield
    finally:
        _current.reset(token)


@dataclass(frozen=True)
class RequestContext:
    """A request that led to something: its id, for the log, and its ``traceparent``. Either may be empty."""

    request_id: str
    traceparent: str

    def as_meta(self) -> list[str]:
        """As it goes with a job."""
        return [self.request_id, self.traceparent]


def current_context() -> RequestContext | None:
    """Return the current request, None outside of requests. Callers choose request ids: phone numbers are masked."""
    request_id, traceparent = current_request_id(), current_traceparent()
    return RequestContext(mask_phones(request_id), traceparent) if request_id or traceparent else None


@contextmanager
def use_context(origin: RequestContext | None) -> Generator[None]:
    """Return a block whose log lines, jobs and spans belong to that request."""
    if origin is None:
        yield
    elif origin.request_id:
        with use_request_id(origin.request_id), continued(origin.traceparent):
            yield
    else:
        with continued(origin.traceparent):
            yield


@contextmanager
def use_job_contexts(known: Mapping[str, RequestContext]) -> Generator[None]:
    """A block in which several things are done at once, each for a request of its own, by their identifiers."""
    token = _known.set(known)
    try:
        yield
    finally:
        _known.reset(token)


def context_of(identifier: str) -> RequestContext | None:
    """Whose request a thing among several is; None where that is not known."""
    known = _known.get()
    return None if known is None else known.get(identifier)


def read_contexts(meta: Mapping[str, Any]) -> dict[str, RequestContext]:
    """What ``as_meta`` wrote, by identifiers."""
    return {name: RequestContext(*pair) for name, pair in meta.items()}
