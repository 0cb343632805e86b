"""The gateway, assembled from configuration and plugins."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from typing import Any, TypeVar, cast

import msgspec
import structlog

from mpesa_gateway.asgi_application import GatewayApplication
from mpesa_gateway.client_ip import Network, read_networks
from mpesa_gateway.clock import Clock, SharedClock
from mpesa_gateway.clock_keeper import ClockKeeper
from mpesa_gateway.config import ConfigError, GatewayConfig, QueueName
from mpesa_gateway.daraja.client import DarajaClient
from mpesa_gateway.db.engine import Database
from mpesa_gateway.db.invalidation import InvalidationListener
from mpesa_gateway.db.migrator import Migration, MigrationError, find, pending
from mpesa_gateway.db.outbox import Outbox
from mpesa_gateway.db.outbox_admin import EventRow, EventTaskRow
from mpesa_gateway.db.outcomes import OutcomeWriter
from mpesa_gateway.dns import NameResolver
from mpesa_gateway.events import Event
from mpesa_gateway.ids import Ids
from mpesa_gateway.kernel_jobs import KERNEL_JOBS
from mpesa_gateway.metrics.definitions import KernelMetrics
from mpesa_gateway.owner import pending_changes, update_schema
from mpesa_gateway.plugin import (
    Plugin,
    Subscriber,
    callback_kinds_of,
    event_types_of,
    load,
    metrics_of,
    operations_of,
    prefixes_of,
    scopes_of,
)
from mpesa_gateway.queues import Job, Jobs, connect
from mpesa_gateway.runtime import LoadReport, Runtime
from mpesa_gateway.security.api_keys import ApiKeys
from mpesa_gateway.security.audit import Audit
from mpesa_gateway.security.gateway_secrets import GatewaySecrets
from mpesa_gateway.security.merchants import Merchants
from mpesa_gateway.security.rate_limits import RateLimits
from mpesa_gateway.security.sealing import sealer_for
from mpesa_gateway.security.tables import (
    ApiKeyRow,
    AuditCheckpointRow,
    AuditPolicyRow,
    AuditRow,
    GatewaySecretRow,
    MerchantRow,
)
from mpesa_gateway.services import Services
from mpesa_gateway.single_gateway import single_gateway
from mpesa_gateway.trace_links import TraceLinks
from mpesa_gateway.tracing import Tracing
from mpesa_gateway.worker import WorkerGroup, build_worker, keep_working

log = structlog.get_logger(__name__)

S = TypeVar("S", bound=msgspec.Struct)
E = TypeVar("E", bound=Event)
T = TypeVar("T")
Handler = Callable[[E], Awaitable[None]]

_LAST = 5.0
"""Seconds for running work at stop, plus the timeout of a Daraja call."""

KERNEL_TABLES = (
    MerchantRow,
    ApiKeyRow,
    AuditRow,
    AuditCheckpointRow,
    AuditPolicyRow,
    GatewaySecretRow,
    EventRow,
    EventTaskRow,
)


class Gateway:
    """Its constructor does no I/O."""

    def __init__(
        self,
        config: GatewayConfig,
        *,
        plugins: tuple[Plugin, ...] = (),
        clock: Clock | None = None,
        random_bytes: Callable[[int], bytes] | None = None,
    ) -> None:
        """``plugins`` are a host's own. Raises ConfigError or PluginError."""
        config.refuse_unset()
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
        self.trusted_proxies: Sequence[Network] = read_networks(
            config.security.trusted_proxies, "security.trusted_proxies"
        )
        self.sealer = sealer_for(config.security)
        self.metrics = metrics_of(self.plugins)
        kernel_metrics = self.metrics.get(KernelMetrics)
        self.db = Database(config.database)
        self.vault = GatewaySecrets(self.db, self.sealer, self.ids)
        self.audit = Audit(
            self.db,
            self.clock,
            self.ids,
            window=config.limits.auth_failures_window,
            keep_days=config.retention.audit_days,
        )
        self.outcomes = OutcomeWriter(self.db, kernel_metrics.call_outcomes)
        self.changes = InvalidationListener(self.db)
        self.names = NameResolver(timeout=self.config.dns.timeout, servers=self.config.dns.servers)
        self.merchants = Merchants(self.db, self.changes, self.clock, self.ids, self.audit)
        self.api_keys = ApiKeys(self.db, self.changes, self.vault, self.clock, self.ids, self.audit)
        self.services = self._offered()
        self.tracing = self.services.get(Tracing) if self.services.offers(Tracing) else Tracing()
        self.tracer = self.db.tracer = self.tracing.tracer
        self._event_types = event_types_of(self.plugins)
        self.jobs_by_name: Mapping[str, Job] = KERNEL_JOBS | {
            plugin.job_name(job): job for plugin in self.plugins for job in plugin.jobs
        }
        self.jobs = Jobs(config.valkey, self.jobs_by_name, self.tracer)
        try:
            self.valkey = connect(config.valkey)
        except ValueError:
            raise ConfigError("setting `valkey.url`: must be like valkey://:password@host:6379/0") from None
        self.trace_links = TraceLinks(self.valkey, config.valkey, self.tracing.remember_hours)
        self.limits = RateLimits(config, self.clock)
        self.outbox = Outbox(
            [subscriber for plugin in self.plugins for subscriber in plugin.subscribers],
            db=self.db,
            clock=self.clock,
            ids=self.ids,
            jobs=self.jobs,
            event_type=self.event_type,
            context=self,
        )
        self.daraja = DarajaClient(
            config.daraja,
            clock=self.clock,
            ids=self.ids,
            valkey=self.valkey,
            sealer=self.sealer,
            prefix=config.valkey.prefix,
            metrics=kernel_metrics,
            tracer=self.tracer,
            refuse_transaction=self.db.refuse_transaction,
            lookup=self.names,
            operations=self.operations,
        )
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
        self._clock_keeper = ClockKeeper(self.db, self.clock) if isinstance(self.clock, SharedClock) else None
        self._begun: set[asyncio.Task[Any]] = set()
        self._place = ExitStack()
        self.asgi = GatewayApplication(self)

    def _offered(self) -> Services:
        services = Services()
        for plugin in self.plugins:
            for port, factory in plugin.provides:
                services.offer(port, lambda make=factory: make(self))  # type: ignore[misc]
        return services

    @property
    def load(self) -> LoadReport | None:
        return self.asgi.current_load_shedder

    @property
    def is_running(self) -> bool:
        return self._is_running

    def settings(self, kind: type[S]) -> S:
        return cast(S, self._settings[kind])

    def contributed(self, kind: type[T]) -> list[T]:
        return [value for plugin in self.plugins for value in plugin.contributions if isinstance(value, kind)]

    def port(self, kind: type[T]) -> T:
        """Return a provider: ``gateway.port(Payments)``. Raises NotProvided."""
        return self.services.get(kind)

    def port_if_provided(self, kind: type[T]) -> T | None:
        return self.services.get(kind) if self.services.offers(kind) else None

    def url(self, path: str) -> str:
        return self.config.public_url.rstrip("/") + path

    def event_type(self, kind: str) -> type[Event]:
        try:
            return self._event_types[kind]
        except KeyError:
            raise LookupError(f"no enabled plugin publishes {kind}: enable the plugin that does") from None

    @property
    def event_kinds(self) -> tuple[str, ...]:
        return tuple(sorted(self._event_types))

    def on(self, event: type[E]) -> Callable[[Handler[E]], Handler[E]]:
        """Decorate a handler of an event, which runs at least once, after commit, in a worker.

        The outbox stores its module and name: after a rename, pending events are not handled.
        """

        def register(handler: Handler[E]) -> Handler[E]:
            async def call(happened: E, _: Runtime) -> None:
                await handler(happened)

            call.__module__, call.__qualname__ = handler.__module__, handler.__qualname__
            self.outbox.subscribe(Subscriber(event, call))
            return handler

        return register

    async def start(self, *, migrate_first: bool = True) -> None:
        """Connect, migrate, open the secrets and start the plugins. Each start needs its own stop.

        Raises ConfigError, MigrationError, SecondGateway and errors of asyncpg. Valkey may be unreachable.
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
        self._place.enter_context(single_gateway(self.config))
        await self.db.start()
        if self._clock_keeper is not None:
            await self._clock_keeper.start()
        if migrate_first:
            await self._bring_up_to_date()
        elif missing := await pending(self.db, self.migrations):
            raise ConfigError(f"{len(missing)} migrations are not applied: run `mpesa-gateway migrate`")
        self.db.bind(
            (*KERNEL_TABLES, *(model for plugin in self.plugins if plugin.tables for model in plugin.tables.models))
        )
        await self.vault.open()
        await self.changes.start()
        await self.jobs.start()
        await self.limits.start()
        await self.daraja.start()
        # Started first and stopped last, so that all spans are exported.
        await self.tracing.start()
        self._running_parts += [self.tracing, self.trace_links]
        for plugin in self.plugins:
            for port, _ in plugin.provides:
                await self._start_part(self.services.get(port))
        if self.config.worker.in_process:
            builders = [partial(build_worker, self, queue) for queue in self.config.worker.queues]
            self._in_process_worker = asyncio.create_task(keep_working(builders))
        self._is_running, self.is_draining = True, False
        log.info("gateway_started", plugins=[plugin.name for plugin in self.plugins])

    async def _start_part(self, part: Any) -> None:
        if part in self._running_parts:
            return
        if hasattr(part, "start"):
            await part.start()
        self._running_parts.append(part)

    async def _bring_up_to_date(self) -> None:
        due = await pending_changes(self)
        if not due:
            return
        try:
            for migration in await update_schema(self):
                log.info("migrated", owner=migration.owner, migration=migration.name)
        except MigrationError:
            if due == "migrations":
                raise
            # The longer retention applies until the owner has stored the new one.
            log.warning("audit_days_differ", fix="run `mpesa-gateway migrate` with `database.owner_url`")

    async def stop(self) -> None:
        """The last of several stops stops the plugins and closes all connections."""
        self._users = max(0, self._users - 1)
        if self._users == 0:
            await self._stop()

    async def _stop(self) -> None:
        self._is_running = False
        if self._begun:
            await asyncio.wait(self._begun, timeout=self.config.daraja.timeout + _LAST)
        await self.outcomes.stop(self.config.worker.grace)
        worker, self._in_process_worker = self._in_process_worker, None
        if worker is not None:
            worker.cancel()
            await asyncio.gather(worker, return_exceptions=True)
        if self._clock_keeper is not None:
            await self._clock_keeper.stop()
        while self._running_parts:
            part = self._running_parts.pop()
            if hasattr(part, "stop"):
                await part.stop()
        await self.daraja.close()
        await self.limits.stop()
        await self.jobs.stop()
        await self.valkey.aclose()
        await self.names.close()
        await self.changes.stop()
        await self.db.stop()
        self._place.close()

    async def run_to_completion(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` to its end even if the caller is cancelled. ``stop`` waits for it."""
        task = asyncio.create_task(work)
        self._begun.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._begun.discard(task)
        if not task.cancelled():
            # Asyncio logs an exception that is never retrieved.
            task.exception()

    def drain(self) -> None:
        """Report at /health/ready that this process is stopping."""
        self.is_draining = True

    @asynccontextmanager
    async def running(self) -> AsyncGenerator["Gateway"]:
        await self.start()
        try:
            yield self
        finally:
            await self.stop()

    @asynccontextmanager
    async def lifespan(self, _: Any = None) -> AsyncGenerator[None]:
        async with self.running():
            yield

    def worker(self, queues: Sequence[QueueName] | None = None) -> WorkerGroup:
        """``queues`` defaults to ``worker.queues``. The gateway must be started."""
        chosen = self.config.worker.queues if queues is None else queues
        return WorkerGroup({queue: build_worker(self, queue) for queue in chosen})
