"""Who asked for what is being done, handed on through the queue and to where many requests are served together."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import structlog

from mpesa_gateway.phone import mask_phones
from mpesa_gateway.tracing import Tracer

_current: ContextVar[str] = ContextVar("mpesa_gateway_request_id", default="")
_known: ContextVar[Mapping[str, "Origin"] | None] = ContextVar("mpesa_gateway_origins", default=None)


def current_request_id() -> str:
    """The id of the request that is being handled, empty outside one."""
    return _current.get()


@contextmanager
def asked_by(request_id: str) -> Generator[None]:
    """A block whose log lines, and whose jobs, carry the id of the request that led to it."""
    token = _current.set(request_id)
    try:
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            yield
    finally:
        _current.reset(token)


@dataclass(frozen=True)
class Origin:
    """A request that led to something: its id, for the log, and where it is in a trace. Either may be empty."""

    request_id: str
    carried: str

    def as_meta(self) -> list[str]:
        """As it goes with a job."""
        return [self.request_id, self.carried]


def current_origin(tracer: Tracer) -> Origin | None:
    """Who asks at this moment; None for nobody. Callers choose their request ids and operators see them: masked."""
    request_id, carried = current_request_id(), tracer.carried()
    return Origin(mask_phones(request_id), carried) if request_id or carried else None


@contextmanager
def coming_from(origin: Origin | None, tracer: Tracer) -> Generator[None]:
    """A block that is done for whoever asked there: its log lines, its jobs and its spans say so."""
    if origin is None:
        yield
    elif origin.request_id:
        with asked_by(origin.request_id), tracer.resume(origin.carried):
            yield
    else:
        with tracer.resume(origin.carried):
            yield


@contextmanager
def origins(known: Mapping[str, Origin]) -> Generator[None]:
    """A block in which several things are done at once, each for a request of its own, by their identifiers."""
    token = _known.set(known)
    try:
        yield
    finally:
        _known.reset(token)


def origin_of(identifier: str) -> Origin | None:
    """Whose request a thing among several is; None where that is not known."""
    known = _known.get()
    return None if known is None else known.get(identifier)


def read_origins(meta: Mapping[str, Any]) -> dict[str, Origin]:
    """What ``as_meta`` wrote, by identifiers."""
    return {name: Origin(*pair) for name, pair in meta.items()}
