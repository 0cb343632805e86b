"""Request ids and traces in jobs and batches."""

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
    return _current.get()


@contextmanager
def use_request_id(request_id: str) -> Generator[None]:
    token = _current.set(request_id)
    try:
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            yield
    finally:
        _current.reset(token)


@dataclass(frozen=True)
class RequestContext:
    """A request that led to a job. Either value may be empty."""

    request_id: str
    traceparent: str

    def as_meta(self) -> list[str]:
        return [self.request_id, self.traceparent]


def current_context() -> RequestContext | None:
    """Ids of clients are masked: they may contain phone numbers."""
    request_id, traceparent = current_request_id(), current_traceparent()
    return RequestContext(mask_phones(request_id), traceparent) if request_id or traceparent else None


@contextmanager
def use_context(origin: RequestContext | None) -> Generator[None]:
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
    token = _known.set(known)
    try:
        yield
    finally:
        _known.reset(token)


def context_of(identifier: str) -> RequestContext | None:
    known = _known.get()
    return None if known is None else known.get(identifier)


def read_contexts(meta: Mapping[str, Any]) -> dict[str, RequestContext]:
    return {name: RequestContext(*pair) for name, pair in meta.items()}
