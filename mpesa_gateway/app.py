"""The gateway itself: assembled from its configuration and plugins, served by itself or mounted in a host."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import ExitStack, asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar, cast

import msgspec
import structlog
from litestar import Litestar, Request
from litestar.di import Provide

from mpesa_gateway.clock import Clock, SharedClock
from mpesa_gateway.config import ConfigRefused, GatewayConfig, QueueName
from mpesa_gateway.daraja.client import DarajaClient
from mpesa_gateway.db.asking import Asking
from mpesa_gateway.db.changes import Changes
from mpesa_gateway.db.engine import OVERBURDENED, UNREACHABLE, Database
from mpesa_gateway.db.migrator import Migration, MigrationRefused, find, pending
from mpesa_gateway.db.months import Months
from mpesa_gateway.db.outbox import HANDLE, Outbox
from mpesa_gateway.db.replica import Replica
from mpesa_gateway.errors import NotFound, ServiceUnavailable, UnsupportedMediaType
from mpesa_gateway.events import Event
from mpesa_gateway.http import admin, health, html
from mpesa_gateway.http.access import Access
from mpesa_gateway.http.auth import PRIORITY, PUBLIC, admit, mark_scopes, provide_caller
from mpesa_gateway.http.client_ip import CLIENT, client_address, read_networks
from mpesa_gateway.http.dns import Names
from mpesa_gateway.http.doorstep import Doorstep
from mpesa_gateway.http.errors import handlers, refuse
from mpesa_gateway.http.gate import Gate, for_pages, priority_of
from mpesa_gateway.http.openapi import openapi_config
from mpesa_gateway.http.reading import read_body
from mpesa_gateway.http.request_id import Message, Receive, RequestIds, Send
from mpesa_gateway.http.upgrade import AnswerOnce
from mpesa_gateway.ids import Ids
from mpesa_gateway.logs import trace
from mpesa_gateway.measures import COUNTS
from mpesa_gateway.meter import Meter
from mpesa_gateway.neighbours import place_of_its_own
from mpesa_gateway.outcomes import Outcomes
from mpesa_gateway.owner import bring_up_to_date, what_is_due
from mpesa_gateway.plugin import (
    Job,
    Plugin,
    PluginRefused,
    Subscriber,
    callback_kinds_of,
    load,
    operations_of,
    prefixes_of,
    scopes_of,
)
from mpesa_gateway.retention import Retention
from mpesa_gateway.security.api_keys import ApiKeys
from mpesa_gateway.security.audit import Audit, acting_from
from mpesa_gateway.security.limits import Limits
from mpesa_gateway.security.merchants import Merchants
from mpesa_gateway.security.sealing import sealer_for
from mpesa_gateway.security.tables import ApiKeyRow, AuditRow, MerchantRow
from mpesa_gateway.security.vault import Vault
from mpesa_gateway.services import Services
from mpesa_gateway.tracing import UNTRACED, Tracer
from mpesa_gateway.worker import Jobs, WorkerGroup, build_worker, connect, keep_working

log = structlog.get_logger(__name__)

S = TypeVar("S", bound=msgspec.Struct)
E = TypeVar("E", bound=Event)
T = TypeVar("T")
Handler = Callable[[E], Awaitable[None]]

_AGREE_EVERY = 30.0
"""Seconds between two looks at Postgres' clock."""

_LAST = 5.0
"""Seconds that what was begun gets when we stop, besides the time that a call to Daraja may take."""

_WRONG = timedelta(seconds=2)
"""How far a machine's clock may be from Postgres' before we say so."""

KERNEL_TABLES = (MerchantRow, ApiKeyRow, AuditRow)


async def handle_event(gateway: "Gateway", *, event_id: str, subscriber: str) -> None:
    """Run one subscriber on one event."""
    await gateway.outbox.handle(event_id, subscriber)


async def forget(gateway: "Gateway") -> None:
    """Delete what has been kept long enough."""
    await Retention(gateway).forget()


async def make_months(gateway: "Gateway") -> None:
    """Make the next months' partitions of tables by month."""
    await gateway.months.prepare()


async def sweep_events(gateway: "Gateway") -> None:
    """Hand owed events to their subscribers again."""
    await gateway.outbox.sweep()


KERNEL_JOBS: dict[str, Job] = {
    # Handlers of a host and of third parties may wait for anything: they run beside their own kind only.
    HANDLE: Job(handle_event, timeout=120, queue="default"),
    "kernel.sweep_events": Job(sweep_events, timeout=30, cron="* * * * * */10", queue="maintenance"),
    # In the middle of the night in East Africa. What an hour is not enough for is left to the next night.
    "kernel.forget": Job(forget, timeout=3600, cron="17 23 * * *", queue="maintenance"),
    # Three months ahead: many a night may be missed.
    "kernel.make_months": Job(make_months, timeout=300, cron="47 22 * * *", queue="maintenance"),
}


class NotStarted(RuntimeError):
    """The gateway was used before it was started."""


class GatewayRequest(Request[Any, Any, Any]):
    """A request whose JSON is read straight into the type that the route declares, numbers never through a float."""

    async def json(self) -> Any:
        """The body as the route's ``data`` type. Raises Invalid with every bad field."""
        wanted = self.route_handler.parsed_fn_signature.parameters.get("data")
        if wanted is not None and isinstance(wanted.annotation, type) and issubclass(wanted.annotation, msgspec.Struct):
            return read_body(await self.body(), wanted.annotation)
        return await super().json()


async def before_request(request: Request[Any, Any, Any]) -> None:
    """Who calls, then what they send: the body is read for nobody who may not call."""
    if request.scope["path_template"] == "/schema/{path}":
        raise NotFound("there is nothing at this address: the document is /schema/openapi.json, its page /schema")
    await admit(request)
    _refuse_other_media(request)


def _refuse_other_media(request: Request[Any, Any, Any]) -> None:
    """JSON is the only body that the API takes. Public routes (callbacks) take what their caller calls it.

    Nothing but a callback is taken compressed: a few bytes could become any number.
    """
    if request.method not in {"POST", "PUT", "PATCH"} or request.route_handler.opt.get(PRIORITY):
        return
    coding = request.headers.get("content-encoding", "").strip().lower()
    if coding not in {"", "identity"}:
        raise UnsupportedMediaType(f"send the body as it is, without Content-Encoding: {coding[:40]!r} is not taken")
    if request.route_handler.opt.get(PUBLIC):
        return
    media = request.headers.get("content-type")
    has_body = request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
    if has_body and (media or "application/json").partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaType("send JSON, with Content-Type: application/json")


class Gateway:
    """One gateway: its parts, its plugins, and the ASGI application in front of them. Making one does no I/O."""

    def __init__(
        self,
        config: GatewayConfig,
        *,
        plugins: tuple[Plugin, ...] = (),
        clock: Clock | None = None,
        random_bytes: Callable[[int], bytes] | None = None,
    ) -> None:
        """``plugins`` are a host's own, besides those that the configuration names.

        Raises ConfigRefused or PluginRefused, each with a sentence that says what to change.
        """
        for name in ("database", "valkey"):
            if getattr(config, name).url is None:
                raise ConfigRefused(
                    f"`{name}.url` is not set: set MPESA_GATEWAY_{name.upper()}__URL, "
                    "or run `mpesa-gateway up`, which brings its own Postgres and Valkey"
                )
        self.config: GatewayConfig = config
        self.clock: Clock = clock or SharedClock()
        self.ids = Ids(self.clock, random_bytes) if random_bytes else Ids(self.clock)
        self.plugins = load(config.plugins, plugins)
        self.scopes = scopes_of(self.plugins)
        self.id_prefixes = prefixes_of(self.plugins)
        self.callback_kinds = callback_kinds_of(self.plugins)
        self.operations = operations_of(self.plugins)
        config.refuse_sections_except([plugin.name for plugin in self.plugins])
        self._settings = {plugin.settings: config.section(plugin.name, plugin.settings) for plugin in self.plugins}
        self.trusted_proxies = read_networks(config.security.trusted_proxies, "security.trusted_proxies")
        self.sealer = sealer_for(config.security)
        self.meter = Meter()
        self.meter.know([*COUNTS, *(measure for plugin in self.plugins for measure in plugin.counts)])
        self.db = Database(config.database)
        self.months = Months(self.db, self.clock, [one for plugin in self.plugins for one in plugin.months])
        self.replica = None if config.database.replica_url is None else Replica(config.database, self.db, self.meter)
        self.reads: Asking = self.replica or self.db
        self.vault = Vault(self.db, self.sealer, self.ids)
        self.audit = Audit(
            self.db,
            self.clock,
            self.ids,
            self.reads,
            window=config.limits.auth_failures_window,
            keep_days=config.retention.audit_days,
        )
        self.outcomes = Outcomes(self.db, self.meter)
        self.changes = Changes(self.db)
        self.names = Names(timeout=self.config.dns.timeout, servers=self.config.dns.servers)
        self.merchants = Merchants(self.db, self.changes, self.clock, self.ids, self.audit)
        self.api_keys = ApiKeys(self.db, self.changes, self.vault, self.clock, self.ids, self.audit)
        self.services = Services()
        for plugin in self.plugins:
            for port, factory in plugin.provides:
                self.services.offer(port, lambda make=factory: make(self))  # type: ignore[misc]
        self.tracer: Tracer = self.services.get(Tracer) if self.services.offers(Tracer) else UNTRACED
        self.db.tracer = self.tracer
        self._event_types = _event_types(self.plugins)
        self.outbox = Outbox(self, [subscriber for plugin in self.plugins for subscriber in plugin.subscribers])
        self.jobs_by_name = KERNEL_JOBS | {plugin.job_name(job): job for plugin in self.plugins for job in plugin.jobs}
        self.migrations: list[Migration] = find("kernel", "mpesa_gateway.db.migrations") + [
            migration
            for plugin in self.plugins
            if plugin.tables is not None
            for migration in find(plugin.name, plugin.tables.migrations)
        ]
        self._is_running = False
        self.is_draining = False
        self._users = 0
        self._running_parts: list[Any] = []
        self._in_process_worker: asyncio.Task[None] | None = None
        self._clock_keeper: asyncio.Task[None] | None = None
        self._begun: set[asyncio.Task[Any]] = set()
        self._place = ExitStack()
        self.asgi = _Door(self)

    # -- what plugins use -----------------------------------------------------------------------------------------

    @property
    def is_running(self) -> bool:
        """Whether ``start`` has finished and ``stop`` has not begun."""
        return self._is_running

    def settings(self, kind: type[S]) -> S:
        """A plugin's settings, by their class. Raises KeyError when no enabled plugin has such settings."""
        return cast(S, self._settings[kind])

    def contributed(self, kind: type[T]) -> list[T]:
        """What the enabled plugins contribute of this type, in the order of the plugins."""
        return [value for plugin in self.plugins for value in plugin.contributes if isinstance(value, kind)]

    def url(self, path: str) -> str:
        """An address of ours as others reach it: ``public_url`` and the path."""
        return self.config.public_url.rstrip("/") + path

    def event_type(self, kind: str) -> type[Event]:
        """The class of a published event, by its name. Raises LookupError when no enabled plugin publishes it."""
        try:
            return self._event_types[kind]
        except KeyError:
            raise LookupError(f"no enabled plugin publishes {kind}: enable the plugin that does") from None

    @property
    def event_kinds(self) -> tuple[str, ...]:
        """The names of all events that the enabled plugins publish."""
        return tuple(sorted(self._event_types))

    def on(self, event: type[E]) -> Callable[[Handler[E]], Handler[E]]:
        """Decorate a host's handler of an event: run at least once, after commit, in a worker.

        The handler's module and name are what the outbox remembers it by: keep them, or what is owed to the old
        name stays undone.
        """

        def register(handler: Handler[E]) -> Handler[E]:
            async def call(happened: E, _: Gateway) -> None:
                await handler(happened)

            call.__module__, call.__qualname__ = handler.__module__, handler.__qualname__
            self.outbox.subscribe(Subscriber(event, call))
            return handler

        return register

    # -- life -----------------------------------------------------------------------------------------------------

    async def start(self, *, migrate_first: bool = True) -> None:
        """Connect, migrate, open the secrets, start what the plugins run. Starting twice counts; stop as often.

        Raises ConfigRefused for a wrong master key, MigrationRefused when database and release do not fit,
        KeyspaceTaken when another gateway of this process has the same queue for another database, and what asyncpg
        raises when Postgres cannot be reached. Valkey may be away.
        """
        self._users += 1
        if self._users > 1:
            return
        try:
            await self._start(migrate_first=migrate_first)
        except BaseException:
            self._users = 0
            await self._stop()
            raise

    async def _start(self, *, migrate_first: bool) -> None:
        self._place.enter_context(place_of_its_own(self.config))
        await self.db.start()
        if self.replica is not None:
            await self.replica.start()
        if isinstance(self.clock, SharedClock):
            await self._agree(self.clock)
            self._clock_keeper = asyncio.create_task(self._keep_agreeing(self.clock))
        if migrate_first:
            await self._bring_up_to_date()
            # A start waits for nobody: a worker will do it at night.
            await self.months.prepare(tries=1)
        elif missing := await pending(self.db, self.migrations):
            raise ConfigRefused(f"{len(missing)} migrations are not applied: run `mpesa-gateway migrate`")
        self.db.bind(
            (*KERNEL_TABLES, *(model for plugin in self.plugins if plugin.tables for model in plugin.tables.models))
        )
        await self.vault.open()
        await self.changes.start()
        self.valkey = connect(self.config.valkey)
        self.jobs = Jobs(self.config.valkey, self.jobs_by_name, self.tracer)
        self.limits = Limits(self.config, self.clock)
        self.daraja = DarajaClient(
            self.config.daraja,
            clock=self.clock,
            ids=self.ids,
            valkey=self.valkey,
            sealer=self.sealer,
            prefix=self.config.valkey.prefix,
            meter=self.meter,
            tracer=self.tracer,
            refuse_transaction=self.db.refuse_transaction,
            lookup=self.names,
            operations=self.operations,
        )
        await self.daraja.start()
        # First, and so the last to stop: what the others do until then is told.
        await self.tracer.start()
        self._running_parts.append(self.tracer)
        for plugin in self.plugins:
            for port, _ in plugin.provides:
                part = self.services.get(port)
                if hasattr(part, "start") and part not in self._running_parts:
                    await part.start()
                    self._running_parts.append(part)
        if self.config.worker.in_process:
            builders = [partial(build_worker, self, queue) for queue in self.config.worker.queues]
            self._in_process_worker = asyncio.create_task(keep_working(builders))
        self._is_running, self.is_draining = True, False
        log.info("gateway_started", plugins=[plugin.name for plugin in self.plugins])

    async def _bring_up_to_date(self) -> None:
        """Let the owner migrate where that is due. Raises MigrationRefused."""
        due = await what_is_due(self)
        if not due:
            return
        try:
            for migration in await bring_up_to_date(self):
                log.info("migrated", owner=migration.owner, migration=migration.name)
        except MigrationRefused:
            if due == "migrations":
                raise
            # The log is kept for the longer of both times until the owner has noted the new one.
            log.warning("audit_days_differ", fix="run `mpesa-gateway migrate` with `database.owner_url`")

    async def stop(self) -> None:
        """Stop what the plugins run and let go of every connection, once everyone who started has stopped."""
        self._users = max(0, self._users - 1)
        if self._users == 0:
            await self._stop()

    async def _stop(self) -> None:
        self._is_running = False
        if self._begun:
            await asyncio.wait(self._begun, timeout=self.config.daraja.timeout + _LAST)
        await self.outcomes.stop(self.config.worker.grace)
        for name in ("_in_process_worker", "_clock_keeper"):
            task = getattr(self, name)
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                setattr(self, name, None)
        while self._running_parts:
            await self._running_parts.pop().stop()
        for name, close in (("daraja", "close"), ("limits", "stop"), ("jobs", "stop"), ("valkey", "aclose")):
            part = self.__dict__.pop(name, None)
            if part is not None:
                await getattr(part, close)()
        await self.names.close()
        await self.changes.stop()
        if self.replica is not None:
            await self.replica.stop()
        await self.db.stop()
        self._place.close()

    async def see_through(self, work: Coroutine[Any, Any, T]) -> T:
        """Do to its end what must not be torn apart, such as a push and its record; gives what it gives.

        A caller that hangs up does not end it, and ``stop`` waits for it.
        """
        task = asyncio.create_task(work)
        self._begun.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._begun.discard(task)
        if not task.cancelled():
            # Looked at, or asyncio complains where the caller has hung up.
            task.exception()

    async def _agree(self, clock: SharedClock) -> None:
        ahead = await clock.agree(lambda: self.db.fetchval("SELECT clock_timestamp()"))
        if abs(ahead) > _WRONG:
            log.warning("clock_is_wrong", seconds=round(ahead.total_seconds(), 1))

    async def _keep_agreeing(self, clock: SharedClock) -> None:
        while True:
            await asyncio.sleep(_AGREE_EVERY)
            try:
                await self._agree(clock)
            except (*UNREACHABLE, *OVERBURDENED) as problem:
                log.info("clock_not_compared", error=type(problem).__name__)

    def drain(self) -> None:
        """Say at /health/ready that this process is about to stop; it goes on serving."""
        self.is_draining = True

    @asynccontextmanager
    async def running(self) -> AsyncGenerator["Gateway"]:
        """The gateway, started for the length of the block."""
        await self.start()
        try:
            yield self
        finally:
            await self.stop()

    @asynccontextmanager
    async def lifespan(self, _: Any = None) -> AsyncGenerator[None]:
        """The lifespan that a host composes into its own: ``FastAPI(lifespan=gateway.lifespan)``."""
        async with self.running():
            yield

    def worker(self, queues: Sequence[QueueName] | None = None) -> WorkerGroup:
        """Workers for the jobs of these queues, those of ``worker.queues`` by default. The gateway must be started."""
        chosen = self.config.worker.queues if queues is None else queues
        return WorkerGroup({queue: build_worker(self, queue) for queue in chosen})

    def __getattr__(self, name: str) -> Any:
        if name in {"valkey", "jobs", "limits", "daraja"}:
            raise NotStarted(_NOT_STARTED)
        # `gateway.payments`: the first port of the plugin with that name, for hosts that call without HTTP.
        for plugin in self.__dict__.get("plugins", ()):
            if plugin.name == name and plugin.provides:
                return self.services.get(plugin.provides[0][0])
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")


_NOT_STARTED = (
    "this gateway has not been started: a mounted application gets no lifespan of its own, so give the host "
    "`lifespan=gateway.lifespan` (FastAPI, Starlette, Litestar), or enter `async with gateway.running():`"
)


def build_app(plugins: tuple[Plugin, ...], *, max_body_bytes: int) -> Litestar:
    """The Litestar application: the kernel's routes and those of the plugins.

    It depends on nothing else of a gateway: it serves the one in its ``state.gateway``, which the caller sets.
    """
    own: list[Any] = [*health.routes, *admin.routes, *html.routes]
    app = Litestar(
        route_handlers=[*own, *(route for plugin in plugins for route in plugin.routes)],
        dependencies={
            "caller": Provide(provide_caller),
            "services": Provide(lambda: app.state.gateway.services, sync_to_thread=False),
            "gateway": Provide(lambda: app.state.gateway, sync_to_thread=False),
        },
        exception_handlers=handlers(),
        before_request=before_request,
        request_class=GatewayRequest,
        request_max_body_size=max_body_bytes,
        openapi_config=openapi_config(),
        logging_config=None,
        debug=False,
    )
    mark_scopes(app, scopes_of(plugins))
    return app


class _Door:
    """The ASGI application: under any mount path, with an id for each request, shut until the gateway is started."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._app = RequestIds(self._when_started, gateway.ids, gateway.meter, gateway.tracer)
        self._inside: Any = None
        self._gate: Gate | None = None
        self._access: Access | None = None
        self._litestar: Litestar | None = None

    @property
    def litestar(self) -> Litestar:
        """The application behind the door."""
        if self._litestar is None:
            gateway = self._gateway
            return self.adopt(build_app(gateway.plugins, max_body_bytes=gateway.config.http.max_body_bytes))
        return self._litestar

    def adopt(self, litestar: Litestar) -> Litestar:
        """Stand in front of this application, which serves this gateway from now on, and give it back."""
        gateway = self._gateway
        litestar.state.gateway = gateway
        self._litestar = litestar
        inside, http = cast(Any, litestar), gateway.config.http
        self._gate = Gate(inside, http, priority=priority_of(litestar), is_draining=lambda: gateway.is_draining)
        pages = Gate(inside, for_pages(http), priority=lambda _: False, is_draining=lambda: gateway.is_draining)
        self._access = Access(gateway, litestar, self._gate, pages)
        self._inside = Doorstep(self._access, http.body_timeout)
        for plugin in gateway.plugins:
            if plugin.front is not None:
                self._inside = plugin.front(gateway, self._inside)
        self._inside = AnswerOnce(self._inside)
        return litestar

    def release(self) -> Litestar | None:
        """Forget the application, so that another gateway may adopt it. None when it was never built."""
        released, self._litestar, self._gate, self._inside = self._litestar, None, None, None
        self._access = None
        if released is not None:
            released.state.gateway = None
        return released

    def build(self) -> None:
        """Make the application now, so that the first request need not wait for it: it takes half a second."""
        _ = self.litestar

    @property
    def gate(self) -> Gate:
        """Who is let in, who waits, and how many were turned away."""
        _ = self.litestar
        return cast(Gate, self._gate)

    @property
    def access(self) -> Access:
        """What comes before the gate."""
        _ = self.litestar
        return cast(Access, self._access)

    @property
    def gate_in_use(self) -> Gate | None:
        """The same, None in a process that serves nobody: a worker does not build the application."""
        return self._gate

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one connection, or the lifespan when nobody stands in front of us."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        inner = dict(scope)
        inner["path"], inner["root_path"] = _path_below_mount(scope), ""
        inner[html.ASKED_PATH] = inner["path"]
        inner[CLIENT] = self._client(scope)
        token = acting_from.set(inner[CLIENT])
        try:
            await self._app(inner, receive, send)
        finally:
            acting_from.reset(token)

    async def _when_started(self, scope: Message, receive: Receive, send: Send) -> None:
        _ = self.litestar
        if scope["type"] == "http" and not self._gateway.is_running:
            await refuse(send, ServiceUnavailable(_NOT_STARTED, retry_after=5))
            return
        await self._inside(scope, receive, send)

    def _client(self, scope: Message) -> str:
        peer = scope.get("client")
        forwarded = [value.decode("latin-1") for name, value in scope["headers"] if name == b"x-forwarded-for"]
        return client_address(peer[0] if peer else None, forwarded, self._gateway.trusted_proxies)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            self.build()
            await self._gateway.start()
        except Exception as problem:  # noqa: BLE001 - whatever it is, the server is told
            log.error("start_failed", exception=trace(problem))
            await send({"type": "lifespan.startup.failed", "message": str(problem)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._gateway.stop()
        await send({"type": "lifespan.shutdown.complete"})


def _path_below_mount(scope: Message) -> str:
    """Return the requested path without the mount's prefix; at least ``/``."""
    path, root = str(scope["path"]), scope.get("root_path", "").rstrip("/")
    if root and (path == root or path.startswith(root + "/")):
        path = path[len(root) :]
    # Litestar's mounts add a slash to every path. Relative links are resolved against the path that was requested.
    raw = scope.get("raw_path")
    if raw and path.endswith("/") and not raw.endswith(b"/"):
        path = path[:-1]
    return path or "/"


def _event_types(plugins: tuple[Plugin, ...]) -> dict[str, type[Event]]:
    found: dict[str, type[Event]] = {}
    for plugin in plugins:
        for event in plugin.publishes:
            other = found.setdefault(event.kind, event)
            if other is not event:
                raise PluginRefused(f"two plugins publish `{event.kind}`: enable only one of them")
    return found
