"""The gateway's tracer: what it is told becomes OpenTelemetry's spans, with nothing in them that is not to be known."""

import asyncio
import os
import platform
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar, Token
from importlib.metadata import version
from types import TracebackType
from typing import Any, Self

import structlog
from opentelemetry import context as contexts
from opentelemetry import trace as otel
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Link, ProxyTracerProvider, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from structlog.contextvars import bind_contextvars, reset_contextvars

from mpesa_gateway.client_ip import read_address, read_networks, within
from mpesa_gateway.http.request_id import QUIET
from mpesa_gateway.logs import masked
from mpesa_gateway.origin import current_request_id
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.security.audit import acting_from
from mpesa_gateway.tracing import NOTHING, Attributes, Part, Span
from mpesa_gateway_traces.metrics import TracesMetrics
from mpesa_gateway_traces.settings import TracesSettings
from mpesa_gateway_traces.shipping import Shipping

log = structlog.get_logger(__name__)

_W3C = TraceContextTextMapPropagator()
_NOWHERE = Context()
_PARTS = {"internal": SpanKind.INTERNAL, "client": SpanKind.CLIENT, "producer": SpanKind.PRODUCER}

_PATIENCE = 0.5
"""Seconds that Valkey may take to find where something began."""

_REST = 2.0
"""Seconds for which it is not asked after it did not answer."""

_LONG = 1_000_000_000
"""Nanoseconds after which a cron is told of that has done nothing that is told."""

_live: ContextVar["_Live | None"] = ContextVar("mpesa_gateway_live_span", default=None)
_later: ContextVar["_Later | None"] = ContextVar("mpesa_gateway_later_span", default=None)


class OtelTracer:
    """Tells the host's TracerProvider, where the host's process has one, or else one of our own that nobody sees."""

    def __init__(self, runtime: Runtime) -> None:
        """Raises ConfigRefused for a setting that cannot be."""
        self._runtime = runtime
        self._settings = runtime.settings(TracesSettings)
        self._trusted = read_networks(self._settings.trusted_callers, "traces.trusted_callers")
        self._shipping = Shipping(self._settings, runtime.metrics.get(TracesMetrics).spans)
        self._otel: otel.Tracer | None = None
        self._is_ours = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._resting_until = float("-inf")

    async def start(self) -> None:
        """Look whose provider it is, and begin."""
        provider = otel.get_tracer_provider()
        self._is_ours = isinstance(provider, ProxyTracerProvider)
        if self._is_ours:
            self._shipping = Shipping(self._settings, self._runtime.metrics.get(TracesMetrics).spans)
            self._shipping.start()
            provider = self._provider()
        self._otel = provider.get_tracer("mpesa_gateway", version("mpesa-gateway"))
        log.info("traces_begin", to="the collector" if self._is_ours else "the host's TracerProvider")

    def _provider(self) -> TracerProvider:
        own = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(self._settings.ratio)),
            resource=Resource.create(
                {
                    "service.name": self._settings.service_name,
                    "service.version": version("mpesa-gateway"),
                    "host.name": platform.node(),
                    "process.pid": os.getpid(),
                }
            ),
            shutdown_on_exit=False,
        )
        own.add_span_processor(self._shipping)
        return own

    async def stop(self) -> None:
        """Hand over what is left, within the settings' patience."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_PATIENCE)
        self._otel = None
        if self._is_ours:
            await self._shipping.stop()

    # -- what begins ------------------------------------------------------------------------------------------------

    def request(self, scope: Mapping[str, Any], request_id: str) -> AbstractContextManager[Span]:
        """See the port. What is asked all day long is not told."""
        if self._otel is None or scope["path"] in QUIET:
            return NOTHING
        parent, links = self._caller(scope)
        said = {"mpesa.request_id": masked(request_id), "url.scheme": scope.get("scheme", "http")}
        # Until it is known which route it is. Its method is the caller's to choose.
        span = self._otel.start_span("HTTP", parent, SpanKind.SERVER, said, links)
        return _Live(span, is_named=True)

    def _caller(self, scope: Mapping[str, Any]) -> tuple[Context, list[Link]]:
        """What a request goes on with (the host's own span, a trusted caller's, nothing), and what it is linked to."""
        here = contexts.get_current()
        if otel.get_current_span(here).get_span_context().is_valid:
            return here, []
        sent = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in {b"traceparent", b"tracestate"}
        }
        if "traceparent" not in sent:
            return _NOWHERE, []
        address = read_address(acting_from.get() or "")
        if self._trusted and address is not None and within(address, self._trusted):
            return _W3C.extract(sent, _NOWHERE), []
        # Anybody can say anything here: whether a trace is kept is ours to decide, and its id not theirs to choose.
        theirs = otel.get_current_span(_W3C.extract({"traceparent": sent["traceparent"]}, _NOWHERE))
        return _NOWHERE, [Link(theirs.get_span_context())] if theirs.get_span_context().is_valid else []

    def job(
        self, name: str, attributes: Attributes, *, carried: str, is_cron: bool = False
    ) -> AbstractContextManager[Span]:
        """See the port. A cron that finds nothing to do is not told."""
        if self._otel is None:
            return NOTHING
        said = _clean(attributes)
        if is_cron and not carried:
            return _Later(self._otel, name, said)
        return _Live(self._otel.start_span(name, _read(carried), SpanKind.CONSUMER, said), is_named=True)

    # -- what belongs to it -----------------------------------------------------------------------------------------

    def call(self, name: str, attributes: Attributes) -> AbstractContextManager[Span]:
        """See the port."""
        if self._otel is None:
            return NOTHING
        return _Live(self._otel.start_span(name, _around() or _NOWHERE, SpanKind.CLIENT, _said(attributes)))

    def step(self, name: str, attributes: Attributes, part: Part = "internal") -> AbstractContextManager[Span]:
        """See the port."""
        around = None if self._otel is None else _around()
        if self._otel is None or around is None:
            return NOTHING
        return _Live(self._otel.start_span(name, around, _PARTS[part], _said(attributes)))

    @contextmanager
    def resume(self, carried: str) -> Generator[None]:
        """See the port."""
        if not carried or self._otel is None:
            yield
            return
        there = _read(carried)
        token, bound = contexts.attach(there), _bind(otel.get_current_span(there))
        try:
            yield
        finally:
            reset_contextvars(**bound)
            contexts.detach(token)

    # -- where we are -----------------------------------------------------------------------------------------------

    def carried(self) -> str:
        """See the port."""
        around = None if self._otel is None else _around()
        return "" if around is None else _written(around)

    def told(self) -> str:
        """See the port."""
        return self.carried() if self._settings.tell_merchants else ""

    def begins(self, subject_id: str) -> None:
        """See the port. It is Valkey that remembers: should it forget, a link is missing and nothing else."""
        span = otel.get_current_span()
        if self._otel is None or not span.is_recording():
            return
        span.set_attribute("mpesa.subject_id", masked(subject_id))
        if self._settings.remember_hours:
            self._go(self._remember(subject_id, _written(contexts.get_current())))

    def concerns(self, subject_id: str) -> None:
        """See the port. The span is told of the link when Valkey has answered, even where it has ended by then."""
        live = _live.get()
        if self._otel is None or live is None or not live.span.is_recording():
            return
        live.span.set_attribute("mpesa.subject_id", masked(subject_id))
        if self._settings.remember_hours:
            live.wait_for(self._go(self._recall(subject_id, live.span)))

    def _go(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _remember(self, subject_id: str, carried: str) -> None:
        async def ask() -> None:
            seconds = self._settings.remember_hours * 3600
            await self._runtime.valkey.set(self._key(subject_id), carried, ex=seconds, nx=True)

        await self._ask_valkey(ask)

    async def _recall(self, subject_id: str, span: otel.Span) -> None:
        async def ask() -> None:
            found = await self._runtime.valkey.get(self._key(subject_id))
            if isinstance(found, bytes):
                began = otel.get_current_span(_read(found.decode("ascii", "replace"))).get_span_context()
                if began.is_valid and began.trace_id != span.get_span_context().trace_id:
                    span.add_link(began)

        await self._ask_valkey(ask)

    def _key(self, subject_id: str) -> str:
        return f"{self._runtime.config.valkey.prefix}:trace:{subject_id}"

    async def _ask_valkey(self, ask: Callable[[], Awaitable[None]]) -> None:
        """A link is worth no error and no waiting: without Valkey there is none."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._resting_until:
            return
        try:
            async with asyncio.timeout(_PATIENCE):
                await ask()
        except Exception as problem:  # noqa: BLE001 - whatever it is, a link is missing
            self._resting_until = loop.time() + _REST
            log.debug("trace_not_linked", error=type(problem).__name__)


class _Live:
    """A span that is being lived through: the current one inside its block, and ended after it."""

    def __init__(self, span: otel.Span, *, is_named: bool = False) -> None:
        """``is_named`` lets the log lines of the block name the trace."""
        self.span = span
        self._is_named = is_named
        self._bound: Mapping[str, Token[Any]] = {}
        self._waits_for: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Self:
        self._attached = contexts.attach(otel.set_span_in_context(self.span))
        self._outer = _live.set(self)
        if self._is_named:
            self._bound = _bind(self.span)
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        reset_contextvars(**self._bound)
        _live.reset(self._outer)
        contexts.detach(self._attached)
        if kind is not None:
            # What an exception says may quote anything.
            self.fail(kind.__name__)
        ended = time.time_ns()
        left = {task for task in self._waits_for if not task.done()}
        if not left:
            self.span.end(ended)
        for task in left:
            task.add_done_callback(lambda done: self._end_after(left, done, ended))

    def _end_after(self, left: set[asyncio.Task[None]], done: asyncio.Task[None], ended: int) -> None:
        left.discard(done)
        if not left:
            self.span.end(ended)

    def wait_for(self, task: asyncio.Task[None]) -> None:
        """End only when this is done, with the time at which the block has ended."""
        self._waits_for.add(task)

    def note(self, attributes: Attributes) -> None:
        """See the port."""
        if self.span.is_recording():
            self.span.set_attributes(_clean(attributes))

    def rename(self, name: str) -> None:
        """See the port."""
        self.span.update_name(name)

    def fail(self, why: str) -> None:
        """See the port."""
        self.span.set_attribute("error.type", why)
        self.span.set_status(Status(StatusCode.ERROR))


class _Later:
    """A cron's span, from its beginning to its end, made only once something in it is told, it fails, or takes long."""

    def __init__(self, tracer: otel.Tracer, name: str, attributes: Attributes) -> None:
        self._tracer = tracer
        self._name = name
        self._attributes = attributes
        self._span: otel.Span | None = None
        self._is_over = False

    def __enter__(self) -> Self:
        self._began = time.time_ns()
        # Whatever the process was started in, a cron is no part of it.
        self._attached = contexts.attach(_NOWHERE)
        self._outer = _later.set(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        _later.reset(self._outer)
        contexts.detach(self._attached)
        if kind is not None:
            self.fail(kind.__name__)
        elif time.time_ns() - self._began >= _LONG:
            self._made()
        self._is_over = True
        if self._span is not None:
            self._span.end()

    def around(self) -> Context | None:
        """The context of what happens in it; None when it is over."""
        return None if self._is_over else otel.set_span_in_context(self._made(), _NOWHERE)

    def _made(self) -> otel.Span:
        if self._span is None:
            self._span = self._tracer.start_span(
                self._name, _NOWHERE, SpanKind.INTERNAL, self._attributes, start_time=self._began
            )
        return self._span

    def note(self, attributes: Attributes) -> None:
        """See the port."""
        self._made().set_attributes(_clean(attributes))

    def rename(self, name: str) -> None:
        """See the port."""
        self._made().update_name(name)

    def fail(self, why: str) -> None:
        """See the port."""
        self._made().set_attribute("error.type", why)
        self._made().set_status(Status(StatusCode.ERROR))


def _around() -> Context | None:
    """What is being done, for a part of it; None for nothing."""
    here = contexts.get_current()
    if otel.get_current_span(here).get_span_context().is_valid:
        return here
    later = _later.get()
    return None if later is None else later.around()


def _read(carried: str) -> Context:
    return _W3C.extract({"traceparent": carried}, _NOWHERE) if carried else _NOWHERE


def _written(context: Context) -> str:
    carrier: dict[str, str] = {}
    _W3C.inject(carrier, context)
    return carrier.get("traceparent", "")


def _bind(span: otel.Span) -> Mapping[str, Token[Any]]:
    """Let log lines name a trace that is kept."""
    known = span.get_span_context()
    return bind_contextvars(trace_id=otel.format_trace_id(known.trace_id)) if known.trace_flags.sampled else {}


def _said(attributes: Attributes) -> Attributes:
    """The same, with the request that it is done for."""
    request_id = current_request_id()
    return _clean({**attributes, "mpesa.request_id": request_id} if request_id else attributes)


def _clean(attributes: Attributes) -> dict[str, str | int | float | bool]:
    """Without phone numbers, and without the secrets that are known by their form: callers choose some of these."""
    return {name: masked(value) if isinstance(value, str) else value for name, value in attributes.items()}
