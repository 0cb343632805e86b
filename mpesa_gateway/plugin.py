"""The plugin contract: a frozen value that says what a plugin brings. Importing one does nothing."""

from __future__ import annotations

import re
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

import msgspec
from prometheus_client.registry import DuplicateTimeseries

from mpesa_gateway.check_result import Check
from mpesa_gateway.config import QUEUES, HasSettings
from mpesa_gateway.daraja.addresses import filtered_words
from mpesa_gateway.daraja.callbacks import CallbackKind
from mpesa_gateway.daraja.operations import Operation
from mpesa_gateway.db.outbox import Subscriber
from mpesa_gateway.events import Event
from mpesa_gateway.ids import KERNEL_PREFIXES, IdPrefix
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
    import click
    from piccolo.table import Table
    from prometheus_client import CollectorRegistry

    from mpesa_gateway.asgi_types import ASGIApp
    from mpesa_gateway.erasure import ErasedNumber, ErasureCase

__all__ = [
    "GROUP",
    "Eraser",
    "InstalledPlugin",
    "Job",
    "NoSettings",
    "Plugin",
    "PluginError",
    "Provides",
    "RetentionRule",
    "SealedColumn",
    "Subscriber",
    "Tables",
    "installed",
    "load",
    "on_event",
    "on_event_in_transaction",
]

GROUP = "mpesa_gateway.plugins"
"""The entry-point group in which installed plugins are found by name."""

E = TypeVar("E", bound=Event)
N = TypeVar("N", bound="Named")

Provides: TypeAlias = tuple[tuple[type[Any], Callable[[Runtime], Any]], ...]
"""Ports, and how each is made of the parts of a gateway and of other ports."""


class NoSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The settings of a plugin that has none."""


def on_event(event: type[E], handler: Callable[[E, Runtime], Awaitable[None]]) -> Subscriber:
    """Hear about ``event`` at least once, after commit, in a job of its own that is tried again on failure."""
    return Subscriber(event, handler)


def on_event_in_transaction(event: type[E], handler: Callable[[Sequence[E], Runtime], Awaitable[None]]) -> Subscriber:
    """Take part in the publisher's transaction: for rows that must exist exactly if the event does.

    ``handler`` receives the events that are published together: usually one.
    """
    return Subscriber(event, handler, inside=True)


@dataclass(frozen=True)
class Tables:
    """A plugin's Piccolo tables, the package whose numbered ``.sql`` files create them, and what they hold sealed."""

    models: tuple[type[Table], ...]
    migrations: str
    sealed: tuple[SealedColumn, ...] = ()


@dataclass(frozen=True)
class RetentionRule:
    """Rows that may go once they have been kept long enough: never those that something is still owed for.

    ``what`` names them; ``days`` says from the settings for how long they are kept, 0 for ever. ``sql`` deletes at most
    $2 of them, the oldest first, passing over those that somebody has locked: those from before the moment $1 or, with
    a ``prefix``, those whose identifier is less than $1. Identifiers begin with their time, so that no index is needed.
    """

    what: str
    sql: str
    days: Callable[[HasSettings], int]
    prefix: str = ""


@dataclass(frozen=True)
class Eraser:
    """How a payer's phone number is erased from what a plugin keeps, where they ask for it.

    ``find`` gives the identifiers of what the payer did, in order, those after the given one; ``widen`` what belongs to
    a case besides, of ours and of Daraja's; ``objects`` why a case cannot be erased now, None where it can; ``erase``
    erases and counts by what it was; ``keeps`` says what the number stands in for good. All but ``find`` are called
    inside the case's transaction.
    """

    erase: Callable[[Runtime, ErasureCase], Awaitable[Mapping[str, int]]]
    find: Callable[[Runtime, str, ErasedNumber, str], Awaitable[Sequence[str]]] | None = None
    widen: Callable[[Runtime, ErasureCase], Awaitable[set[str]]] | None = None
    objects: Callable[[Runtime, ErasureCase], Awaitable[str | None]] | None = None
    keeps: Callable[[Runtime, ErasureCase], Awaitable[Sequence[str]]] | None = None


@dataclass(frozen=True)
class Plugin:
    """What a plugin brings. Only ``name`` and ``summary`` are required."""

    name: str
    summary: str
    requires: tuple[str, ...] = ()
    settings: type[msgspec.Struct] = NoSettings
    scopes: tuple[Scope, ...] = ()
    """What an API key may do with this plugin's routes. Each scope belongs to one plugin."""
    id_prefixes: tuple[IdPrefix, ...] = ()
    """What the identifiers of this plugin's objects begin with. Each prefix belongs to one plugin."""
    routes: tuple[Any, ...] = ()
    operations: tuple[Operation[Any, Any], ...] = ()
    """What this plugin asks Daraja. Each operation belongs to one plugin."""
    callbacks: tuple[CallbackKind, ...] = ()
    """Kinds of callbacks that Safaricom sends, for the plugin ``callbacks`` to take. Each belongs to one plugin."""
    jobs: tuple[Job, ...] = ()
    publishes: tuple[type[Event], ...] = ()
    subscribers: tuple[Subscriber, ...] = ()
    provides: Provides = ()
    """Ports and how to make them. A provider with async ``start()`` and ``stop()`` runs while the gateway does."""
    tables: Tables | None = None
    forgets: tuple[RetentionRule, ...] = ()
    """What is deleted, night by night, once it has been kept long enough."""
    erasers: tuple[Eraser, ...] = ()
    """How a payer's phone number is erased from what this plugin keeps."""
    commands: tuple[click.Command, ...] = ()
    pages: Pages = NO_PAGES
    checks: tuple[Check, ...] = ()
    """What ``mpesa-gateway doctor`` looks at for this plugin."""
    invariants: tuple[Invariant, ...] = ()
    """What always holds in this plugin's tables: ``mpesa-gateway doctor --ledger`` asks whether it does."""
    metrics: Callable[[CollectorRegistry], Any] | None = None
    """The class that defines this plugin's counters and histograms: ``gateway.metrics.get(ThisClass)``."""
    collectors: tuple[Collector, ...] = ()
    """Gauges that the plugin ``metrics`` collects when Prometheus scrapes."""
    contributes: tuple[Any, ...] = ()
    """Frozen values for the kernel or another plugin, which gathers them by type: ``gateway.contributed(Need)``."""
    beside_worker: tuple[Callable[[Runtime], AbstractAsyncContextManager[None]], ...] = ()
    """What runs beside ``mpesa-gateway worker``, a process that serves no HTTP of its own."""
    front: Callable[[Runtime, ASGIApp], ASGIApp] | None = None
    """An ASGI layer in front of all routes, for addresses that no route can answer in the form of another API."""

    @property
    def contributions(self) -> tuple[Any, ...]:
        """What ``gateway.contributed`` gathers by type."""
        sealed = () if self.tables is None else self.tables.sealed
        return (self, *self.contributes, *self.forgets, *self.erasers, *sealed)

    def job_name(self, job: Job) -> str:
        """What the queue calls a job: ``webhooks.deliver``."""
        return f"{self.name}.{job.fn.__name__}"


class PluginError(Exception):
    """The list of plugins cannot be assembled. The text says what to change."""


@dataclass(frozen=True)
class InstalledPlugin:
    """A plugin that is installed: the name of its entry point, and the package that brought it."""

    name: str
    distribution: str
    version: str
    point: EntryPoint

    def load(self) -> Plugin:
        """The plugin itself. Raises PluginError for an entry point that names none, and what its import raises."""
        plugin = self.point.load()
        if not isinstance(plugin, Plugin):
            raise PluginError(
                f"plugin `{self.name}` is no Plugin value: its entry point `{self.point.value}` must name one"
            )
        if plugin.name != self.name:
            raise PluginError(
                f"plugin `{self.name}` calls itself `{plugin.name}`: its entry point must carry its own name"
            )
        return plugin


def installed() -> dict[str, InstalledPlugin]:
    """What is installed, by name; nothing of it is imported, or enabled.

    A package that is installed while this process runs is found once ``sys.path`` has changed.
    """
    return dict(_installed(tuple(sys.path)))


@lru_cache(maxsize=1)
def _installed(_: tuple[str, ...]) -> dict[str, InstalledPlugin]:
    return {
        point.name: InstalledPlugin(
            point.name, point.dist.name if point.dist else "", point.dist.version if point.dist else "", point
        )
        for point in entry_points(group=GROUP)
    }


def load(names: Sequence[str], extra: Iterable[Plugin] = ()) -> tuple[Plugin, ...]:
    """Return the enabled plugins in the order listed, but each after the plugins that it requires.

    Installed is not enabled; ``extra`` are a host's own values. Raises PluginError for an unknown or repeated name,
    for a requirement that is not enabled, and for plugins that require each other.
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
        loaded.append(found.load())
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
    # The tables of a plugin refer to those of the plugins that it requires: their migrations are applied first.
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
    """The scopes of these plugins and of the kernel. Raises PluginError where one is declared twice."""
    return Scopes(declared("scope", plugins, lambda plugin: plugin.scopes, KERNEL_SCOPES))


def prefixes_of(plugins: Sequence[Plugin]) -> Mapping[str, IdPrefix]:
    """What identifiers begin with, by prefix.

    Raises PluginError for one that is declared twice, that is not three lower-case letters, or that a plugin names
    elsewhere without declaring it.
    """
    found = declared("id prefix", plugins, lambda plugin: plugin.id_prefixes, KERNEL_PREFIXES)
    for plugin in plugins:
        for prefix in plugin.id_prefixes:
            if re.fullmatch("[a-z]{3}", prefix.name) is None:
                raise PluginError(f"plugin `{plugin.name}`: the id prefix `{prefix.name}` must be three letters, a-z")
        named = [page.names for page in plugin.pages.pages]
        named += [each.prefix for each in plugin.forgets]
        for name in filter(None, named):
            if name not in found:
                raise PluginError(f"plugin `{plugin.name}` names the id prefix `{name}`: list it in `id_prefixes`")
    return found


def callback_kinds_of(plugins: Sequence[Plugin]) -> Mapping[str, CallbackKind]:
    """The kinds of callbacks, by name.

    Raises PluginError for a name or path that is declared twice, a name that cannot stand in an address for Daraja,
    and a path that is no place of the specification's.
    """
    found = declared("callback kind", plugins, lambda plugin: plugin.callbacks)
    paths: dict[str, str] = {}
    for kind in found.values():
        if re.fullmatch("[a-z][a-z0-9-]{0,30}", kind.name) is None or filtered_words(kind.name):
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
    """What Daraja is asked, by name. Raises PluginError where two plugins declare one name."""
    return declared("Daraja operation", plugins, lambda plugin: plugin.operations)


def event_types_of(plugins: Iterable[Plugin]) -> dict[str, type[Event]]:
    """The published events, by name. Raises PluginError where two plugins publish different events by one name."""
    found: dict[str, type[Event]] = {}
    for plugin in plugins:
        for event in plugin.publishes:
            other = found.setdefault(event.kind, event)
            if other is not event:
                raise PluginError(f"two plugins publish `{event.kind}`: enable only one of them")
    return found


def metrics_of(plugins: Iterable[Plugin]) -> Metrics:
    """Return the metrics of the kernel and the plugins. Raises PluginError if two have the same name."""
    try:
        return Metrics([KernelMetrics, *(plugin.metrics for plugin in plugins if plugin.metrics is not None)])
    except DuplicateTimeseries as problem:
        names = ", ".join(sorted(problem.duplicates))
        raise PluginError(f"two metrics have the same name ({names}): rename one of them") from None


class Named(Protocol):
    """What a plugin declares under a name."""

    @property
    def name(self) -> str:
        """Its name, of which there is one in a gateway."""
        ...


def declared(
    what: str, plugins: Iterable[Plugin], brought: Callable[[Plugin], Iterable[N]], of_kernel: Iterable[N] = ()
) -> dict[str, N]:
    """What the plugins and the kernel declare of one thing, by name, in that order.

    Raises PluginError for a name that is declared twice.
    """
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
