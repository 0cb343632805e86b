"""The plugin contract. Importing a plugin has no side effects."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

import msgspec
from prometheus_client.registry import DuplicateTimeseries

from mpesa_gateway.check_result import Check
from mpesa_gateway.command_entry import CommandEntry
from mpesa_gateway.config import QUEUES, HasSettings
from mpesa_gateway.daraja.addresses import find_filtered_words
from mpesa_gateway.daraja.callbacks import CallbackKind
from mpesa_gateway.daraja.operations import Operation
from mpesa_gateway.db.outbox import Subscriber
from mpesa_gateway.events import Event
from mpesa_gateway.ids import KERNEL_PREFIXES, IdPrefix
from mpesa_gateway.installed_plugins import InstalledPlugin, installed
from mpesa_gateway.invariant import Invariant
from mpesa_gateway.metrics.collector import Collector
from mpesa_gateway.metrics.definitions import KernelMetrics
from mpesa_gateway.metrics.registry import Metrics
from mpesa_gateway.ops_contract import NO_PAGES, Pages
from mpesa_gateway.queues import Job
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.security.master_key_rotation import SealedColumn
from mpesa_gateway.security.scopes import KERNEL_SCOPES, Scope, Scopes

if TYPE_CHECKING:
    from piccolo.table import Table
    from prometheus_client import CollectorRegistry

    from mpesa_gateway.asgi_types import ASGIApp
    from mpesa_gateway.erasure import ErasedNumber, ErasureCase

__all__ = [
    "CommandEntry",
    "Eraser",
    "Job",
    "NoSettings",
    "Plugin",
    "PluginError",
    "Provides",
    "RetentionRule",
    "SealedColumn",
    "Subscriber",
    "Tables",
    "load",
    "on_event",
    "on_event_in_transaction",
]

E = TypeVar("E", bound=Event)
N = TypeVar("N", bound="Named")

Provides: TypeAlias = tuple[tuple[type[Any], Callable[[Runtime], Any]], ...]


class NoSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """No settings."""


def on_event(event: type[E], handler: Callable[[E, Runtime], Awaitable[None]]) -> Subscriber:
    """Run ``handler`` at least once, after commit, in a job of its own that is retried."""
    return Subscriber(event, handler)


def on_event_in_transaction(event: type[E], handler: Callable[[Sequence[E], Runtime], Awaitable[None]]) -> Subscriber:
    """Run ``handler`` in the publisher's transaction with the events published together."""
    return Subscriber(event, handler, inside=True)


@dataclass(frozen=True)
class Tables:
    """Piccolo tables, the package of their migrations, and sealed columns."""

    models: tuple[type[Table], ...]
    migrations: str
    sealed: tuple[SealedColumn, ...] = ()


@dataclass(frozen=True)
class RetentionRule:
    """Deletes finished rows after some days.

    ``days`` of 0 keeps them. ``sql`` deletes up to $2 rows, oldest first, skipping locked ones: from before the time $1
    or, with a ``prefix``, with an id below $1.
    """

    what: str
    sql: str
    days: Callable[[HasSettings], int]
    prefix: str = ""


@dataclass(frozen=True)
class Eraser:
    """Erases a payer's phone number on request.

    ``widen`` adds related ids; ``objects`` returns why a case cannot be erased now, or None; ``keeps`` states what
    remains. All but ``find`` run in the case's transaction.
    """

    erase: Callable[[Runtime, ErasureCase], Awaitable[Mapping[str, int]]]
    find: Callable[[Runtime, str, ErasedNumber, str], Awaitable[Sequence[str]]] | None = None
    widen: Callable[[Runtime, ErasureCase], Awaitable[set[str]]] | None = None
    objects: Callable[[Runtime, ErasureCase], Awaitable[str | None]] | None = None
    keeps: Callable[[Runtime, ErasureCase], Awaitable[Sequence[str]]] | None = None


@dataclass(frozen=True)
class Plugin:
    """A plugin. Only ``name`` and ``summary`` are required."""

    name: str
    summary: str
    requires: tuple[str, ...] = ()
    settings: type[msgspec.Struct] = NoSettings
    scopes: tuple[Scope, ...] = ()
    id_prefixes: tuple[IdPrefix, ...] = ()
    routes: tuple[Any, ...] = ()
    operations: tuple[Operation[Any, Any], ...] = ()
    callbacks: tuple[CallbackKind, ...] = ()
    jobs: tuple[Job, ...] = ()
    publishes: tuple[type[Event], ...] = ()
    """All events of this plugin, callback events included: an event that is not listed cannot be read back."""
    subscribers: tuple[Subscriber, ...] = ()
    provides: Provides = ()
    """Providers may have async ``start()`` and ``stop()``, one or both."""
    tables: Tables | None = None
    retention: tuple[RetentionRule, ...] = ()
    erasers: tuple[Eraser, ...] = ()
    commands: tuple[CommandEntry, ...] = ()
    """Declare them as ``COMMANDS`` in the plugin's package, so that the command line lists them without the plugin."""
    pages: Pages = NO_PAGES
    checks: tuple[Check, ...] = ()
    invariants: tuple[Invariant, ...] = ()
    metrics: Callable[[CollectorRegistry], Any] | None = None
    """Counters and histograms: ``gateway.metrics.get(ThisClass)``."""
    collectors: tuple[Collector, ...] = ()
    contributes: tuple[Any, ...] = ()
    """Found by type: ``gateway.contributed(Need)``."""
    worker_lifespans: tuple[Callable[[Runtime], AbstractAsyncContextManager[None]], ...] = ()
    """Blocks around ``mpesa-gateway worker``, which serves no HTTP API."""
    front: Callable[[Runtime, ASGIApp], ASGIApp] | None = None
    """ASGI layer in front of all routes."""

    @property
    def contributions(self) -> tuple[Any, ...]:
        sealed = () if self.tables is None else self.tables.sealed
        return (self, *self.contributes, *self.retention, *self.erasers, *sealed)

    def job_name(self, job: Job) -> str:
        """Return the name in the queue: ``webhooks.deliver``."""
        return f"{self.name}.{job.fn.__name__}"


class PluginError(Exception):
    """The text names the fix."""


def load_installed(found: InstalledPlugin) -> Plugin:
    """Import an installed plugin. Raises PluginError."""
    plugin = found.point.load()
    if not isinstance(plugin, Plugin):
        raise PluginError(
            f"plugin `{found.name}` is no Plugin value: its entry point `{found.point.value}` must name one"
        )
    if plugin.name != found.name:
        raise PluginError(
            f"plugin `{found.name}` calls itself `{plugin.name}`: its entry point must carry its own name"
        )
    return plugin


def load(names: Sequence[str], extra: Iterable[Plugin] = ()) -> tuple[Plugin, ...]:
    """Return the enabled plugins, each after its required ones. ``extra`` are a host's.

    Raises PluginError for unknown, repeated or missing plugins and cycles.
    """
    known = installed()
    loaded: list[Plugin] = []
    for name in names:
        if name in (plugin.name for plugin in loaded):
            raise PluginError(f"plugin `{name}` is listed twice: remove one of them from `plugins`")
        found = known.get(name)
        if found is None:
            others = ", ".join(sorted(known)) or "none"
            raise PluginError(
                f"plugin `{name}` is not installed (installed: {others}): install it or correct `plugins`"
            )
        loaded.append(load_installed(found))
    for plugin in extra:
        if plugin.name in (other.name for other in loaded):
            raise PluginError(f"plugin `{plugin.name}` is given twice: remove it from `plugins` or from the code")
        loaded.append(plugin)
    enabled = {plugin.name for plugin in loaded}
    for plugin in loaded:
        _check_settings(plugin)
        _check_queues(plugin)
        for needed in plugin.requires:
            if needed not in enabled:
                raise PluginError(f"plugin `{plugin.name}` requires `{needed}`: add it to `plugins`")
    return _in_order(loaded)


def _in_order(plugins: Sequence[Plugin]) -> tuple[Plugin, ...]:
    # Migrations of required plugins come first.
    ordered: list[Plugin] = []
    left = list(plugins)
    while left:
        waiting = {plugin.name for plugin in left}
        ready = next((plugin for plugin in left if waiting.isdisjoint(plugin.requires)), None)
        if ready is None:
            raise PluginError(f"these plugins require each other: {', '.join(sorted(waiting))}")
        ordered.append(ready)
        left.remove(ready)
    return tuple(ordered)


def scopes_of(plugins: Sequence[Plugin]) -> Scopes:
    return Scopes(declared("scope", plugins, lambda plugin: plugin.scopes, KERNEL_SCOPES))


def prefixes_of(plugins: Sequence[Plugin]) -> Mapping[str, IdPrefix]:
    """Raise PluginError for a duplicate, malformed or undeclared prefix."""
    found = declared("id prefix", plugins, lambda plugin: plugin.id_prefixes, KERNEL_PREFIXES)
    for plugin in plugins:
        for prefix in plugin.id_prefixes:
            if re.fullmatch("[a-z]{3}", prefix.name) is None:
                raise PluginError(f"plugin `{plugin.name}`: the id prefix `{prefix.name}` must be three letters, a-z")
        named = [page.names for page in plugin.pages.pages]
        named += [each.prefix for each in plugin.retention]
        for name in filter(None, named):
            if name not in found:
                raise PluginError(f"plugin `{plugin.name}` names the id prefix `{name}`: list it in `id_prefixes`")
    return found


def callback_kinds_of(plugins: Sequence[Plugin]) -> Mapping[str, CallbackKind]:
    """Raise PluginError for a duplicate name or path, or one that does not fit in a callback URL."""
    found = declared("callback kind", plugins, lambda plugin: plugin.callbacks)
    paths: dict[str, str] = {}
    for kind in found.values():
        if re.fullmatch("[a-z][a-z0-9-]{0,30}", kind.name) is None or find_filtered_words(kind.name):
            raise PluginError(
                f"the callback kind `{kind.name}` cannot be part of an address: name it in up to 31 of a-z, 0-9 and -, "
                "without words that M-Pesa filters"
            )
        if kind.path is None:
            continue
        if kind.path and re.fullmatch("[a-z0-9]+/[a-z0-9]+", kind.path) is None:
            raise PluginError(f"the callback kind `{kind.name}`: its path must have two parts, such as `c2b/result`")
        if (other := paths.setdefault(kind.path, kind.name)) != kind.name:
            raise PluginError(f"the callback kinds `{other}` and `{kind.name}` have one path: give one of them another")
    return found


def operations_of(plugins: Sequence[Plugin]) -> Mapping[str, Operation[Any, Any]]:
    return declared("Daraja operation", plugins, lambda plugin: plugin.operations)


def event_types_of(plugins: Iterable[Plugin]) -> dict[str, type[Event]]:
    found: dict[str, type[Event]] = {}
    for plugin in plugins:
        for event in plugin.publishes:
            other = found.setdefault(event.kind, event)
            if other is not event:
                raise PluginError(f"two plugins publish `{event.kind}`: enable only one of them")
    return found


def metrics_of(plugins: Iterable[Plugin]) -> Metrics:
    try:
        return Metrics([KernelMetrics, *(plugin.metrics for plugin in plugins if plugin.metrics is not None)])
    except DuplicateTimeseries as problem:
        names = ", ".join(sorted(problem.duplicates))
        raise PluginError(f"two metrics have the same name ({names}): rename one of them") from None


class Named(Protocol):
    @property
    def name(self) -> str: ...


def declared(
    what: str, plugins: Iterable[Plugin], brought: Callable[[Plugin], Iterable[N]], of_kernel: Iterable[N] = ()
) -> dict[str, N]:
    """Raise PluginError for a duplicate name."""
    kernels = {value.name: value for value in of_kernel}
    owners = dict.fromkeys(kernels, "the kernel")
    found: dict[str, N] = {}
    for plugin in plugins:
        for value in brought(plugin):
            if value.name in owners:
                raise PluginError(
                    f"{owners[value.name]} and plugin `{plugin.name}` declare the {what} `{value.name}`: rename it in "
                    "one of them, or enable only one"
                )
            owners[value.name] = f"plugin `{plugin.name}`"
            found[value.name] = value
    return found | kernels


def _check_queues(plugin: Plugin) -> None:
    for job in plugin.jobs:
        if job.queue not in QUEUES:
            raise PluginError(
                f"plugin `{plugin.name}`: the job `{plugin.job_name(job)}` names the queue `{job.queue}`, which there "
                f"is not: use one of {', '.join(QUEUES)}"
            )


def _check_settings(plugin: Plugin) -> None:
    for field in msgspec.structs.fields(plugin.settings):
        if field.encode_name.endswith("_file"):
            raise PluginError(
                f"plugin `{plugin.name}` has a setting `{field.encode_name}`: in the environment, _FILE means "
                "`read the value from this file`, so name the setting otherwise, such as `certificate_path`"
            )
