"""What kernel classes, services, jobs and routes may use of a gateway: its parts by name, and the ports of plugins.

A constructor that needs few parts names them; one that needs most takes the ``Runtime``. Ports are resolved where a
plugin is put together (``Plugin.provides``), in jobs, routes, pages and commands, never inside a service.
"""

from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import msgspec
from opentelemetry.trace import Tracer

from mpesa_gateway.client_ip import Network
from mpesa_gateway.clock import Clock
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.daraja.callbacks import CallbackKind
from mpesa_gateway.daraja.client import DarajaClient
from mpesa_gateway.daraja.operations import Operation
from mpesa_gateway.db.engine import Database
from mpesa_gateway.db.invalidation import InvalidationListener
from mpesa_gateway.db.migrator import Migration
from mpesa_gateway.db.outbox import Outbox
from mpesa_gateway.db.outcomes import OutcomeWriter
from mpesa_gateway.dns import NameResolver
from mpesa_gateway.events import Event
from mpesa_gateway.ids import IdPrefix, Ids
from mpesa_gateway.metrics.registry import Metrics
from mpesa_gateway.queues import Job, Jobs
from mpesa_gateway.security.api_keys import ApiKeys
from mpesa_gateway.security.audit import Audit
from mpesa_gateway.security.gateway_secrets import GatewaySecrets
from mpesa_gateway.security.merchants import Merchants
from mpesa_gateway.security.rate_limits import RateLimits
from mpesa_gateway.security.scopes import Scopes
from mpesa_gateway.security.sealing import Sealer
from mpesa_gateway.trace_links import TraceLinks
from mpesa_gateway.tracing import Tracing

S = TypeVar("S", bound=msgspec.Struct)
T = TypeVar("T")


class LoadReport(Protocol):
    """API calls in one process, by state."""

    working: int
    unanswered: int

    @property
    def waiting(self) -> int:
        """Return how many wait for a place."""
        ...


class Runtime(Protocol):
    """One gateway, as everything below its composition sees it. ``Gateway`` implements it."""

    config: GatewayConfig
    clock: Clock
    ids: Ids
    metrics: Metrics
    tracer: Tracer
    tracing: Tracing
    trace_links: TraceLinks
    db: Database
    changes: InvalidationListener
    migrations: list[Migration]
    outbox: Outbox
    outcomes: OutcomeWriter
    sealer: Sealer
    vault: GatewaySecrets
    audit: Audit
    merchants: Merchants
    api_keys: ApiKeys
    limits: RateLimits
    trusted_proxies: Sequence[Network]
    valkey: Any
    jobs: Jobs
    jobs_by_name: Mapping[str, Job]
    names: NameResolver
    daraja: DarajaClient
    scopes: Scopes
    id_prefixes: Mapping[str, IdPrefix]
    callback_kinds: Mapping[str, CallbackKind]
    operations: Mapping[str, Operation[Any, Any]]
    is_draining: bool

    @property
    def is_running(self) -> bool:
        """Return whether the gateway has started and has not begun to stop."""
        ...

    @property
    def load(self) -> LoadReport | None:
        """Return the API calls of this process, None in one that serves no HTTP."""
        ...

    @property
    def event_kinds(self) -> tuple[str, ...]:
        """Return the names of all events that the enabled plugins publish."""
        ...

    def event_type(self, kind: str) -> type[Event]:
        """Return the class of a published event. Raises LookupError when no enabled plugin publishes it."""
        ...

    def settings(self, kind: type[S]) -> S:
        """Return a plugin's settings by their class. Raises KeyError when no enabled plugin has such settings."""
        ...

    def contributed(self, kind: type[T]) -> list[T]:
        """Return what the enabled plugins contribute of this type in their order; of ``Plugin``, themselves."""
        ...

    def port(self, kind: type[T]) -> T:
        """Return the provider of a port. Raises NotProvided when no enabled plugin provides it."""
        ...

    def port_if_provided(self, kind: type[T]) -> T | None:
        """Return the provider of a port, None when no enabled plugin provides it."""
        ...

    def url(self, path: str) -> str:
        """Return an address of ours as others reach it: ``public_url`` and the path."""
        ...

    async def run_to_completion(self, work: Coroutine[Any, Any, T]) -> T:
        """Run to its end what must not be torn apart, also when the caller hangs up; returns what it returns."""
        ...
