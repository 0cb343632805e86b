"""The parts of a gateway and the ports of plugins.

Ports are never resolved inside a service.
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
    def waiting(self) -> int: ...


class Runtime(Protocol):
    """Implemented by ``Gateway``."""

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
    def is_running(self) -> bool: ...

    @property
    def load(self) -> LoadReport | None: ...

    @property
    def event_kinds(self) -> tuple[str, ...]: ...

    def event_type(self, kind: str) -> type[Event]: ...

    def settings(self, kind: type[S]) -> S: ...

    def contributed(self, kind: type[T]) -> list[T]: ...

    def port(self, kind: type[T]) -> T: ...

    def port_if_provided(self, kind: type[T]) -> T | None: ...

    def url(self, path: str) -> str: ...

    async def run_to_completion(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` to its end even if the caller is cancelled."""
        ...
