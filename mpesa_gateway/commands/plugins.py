"""``mpesa-gateway plugins``: installed plugins, and what each provides and requires."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec
import rich_click as click

from mpesa_gateway.commands.session import Session, pass_session
from mpesa_gateway.installed_plugins import InstalledPlugin, installed
from mpesa_gateway.metrics.registry import Metrics

if TYPE_CHECKING:
    from mpesa_gateway.plugin import Plugin, Subscriber


class PluginView(msgspec.Struct, frozen=True):
    """One installed plugin. ``problem`` says why it cannot be loaded."""

    name: str
    summary: str
    distribution: str
    version: str
    is_enabled: bool
    needs: tuple[str, ...] = ()
    provides: dict[str, tuple[str, ...]] = {}
    problem: str | None = None


_HEADINGS = {
    "settings": "settings",
    "scopes": "scope",
    "id_prefixes": "id",
    "routes": "route",
    "operations": "asks",
    "callbacks": "callback",
    "tables": "table",
    "jobs": "job",
    "crons": "cron",
    "publishes": "publishes",
    "hears": "hears",
    "ports": "provides",
    "commands": "command",
    "pages": "page",
    "checks": "check",
    "metrics": "metric",
    "invariants": "invariant",
}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@pass_session
def plugins(session: Session, *, as_json: bool) -> None:
    """Print the installed plugins: which are enabled, what each provides, and which others it requires.

    Enabled plugins come first, in the order of `plugins`.
    """
    from mpesa_gateway.plugin import load

    found = installed()
    enabled = load(session.config().plugins)
    names = [plugin.name for plugin in enabled]
    views = [_view(plugin, found[plugin.name], is_enabled=True) for plugin in enabled]
    views += [_not_enabled(found[name]) for name in sorted(found) if name not in names]
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode({"plugins": views})).decode())
        return
    click.echo("\n\n".join("\n".join(_lines(view)) for view in views))


def _lines(view: PluginView) -> list[str]:
    lines = [f"{view.name}: {view.problem or view.summary}"]

    def add(heading: str, text: str) -> None:
        lines.append(f"  {heading:<10} {text}")

    add("enabled", "yes" if view.is_enabled else f"no: add `{view.name}` to `plugins`")
    add("package", f"{view.distribution} {view.version}")
    for needed in view.needs:
        add("requires", needed)
    for what, texts in view.provides.items():
        for text in texts:
            add(_HEADINGS[what], text)
    return lines


def _not_enabled(found: InstalledPlugin) -> PluginView:
    from mpesa_gateway.plugin import load_installed

    try:
        plugin = load_installed(found)
    except Exception as problem:  # noqa: BLE001 - third-party code that is not enabled
        reason = f"cannot be read ({type(problem).__name__}: {problem})"
        return PluginView(found.name, "", found.distribution, found.version, is_enabled=False, problem=reason)
    return _view(plugin, found, is_enabled=False)


def _view(plugin: Plugin, found: InstalledPlugin, *, is_enabled: bool) -> PluginView:
    provides = {what: tuple(texts) for what, texts in _provides(plugin).items() if texts}
    return PluginView(
        plugin.name, plugin.summary, found.distribution, found.version, is_enabled, plugin.requires, provides
    )


def _provides(plugin: Plugin) -> dict[str, list[str]]:
    from mpesa_gateway.db.star_expansion import columns_of
    from mpesa_gateway.plugin import NoSettings

    settings: tuple[str, ...] = () if plugin.settings is NoSettings else plugin.settings.__struct_fields__
    return {
        "settings": [f"{plugin.name}.{name}" for name in settings],
        "scopes": [scope.name for scope in plugin.scopes],
        "id_prefixes": [f"{prefix.name}_… ({prefix.what})" for prefix in plugin.id_prefixes],
        "routes": [line for route in plugin.routes for line in _route(route)],
        "operations": [f"{operation.name} {operation.path}" for operation in plugin.operations],
        "callbacks": [kind.name for kind in plugin.callbacks],
        "tables": [columns_of(table)[0] for table in plugin.tables.models] if plugin.tables else [],
        "jobs": [f"{plugin.job_name(job)} ({job.timeout} s)" for job in plugin.jobs],
        "crons": [f"{plugin.job_name(job)} {job.cron}" for job in plugin.jobs if job.cron],
        "publishes": [event.kind for event in plugin.publishes],
        "hears": [_heard(subscriber) for subscriber in plugin.subscribers],
        "ports": [port.__name__ for port, _ in plugin.provides],
        "commands": [command.name for command in plugin.commands],
        "pages": [f"/ops/{page.path}" for page in plugin.pages.pages],
        "checks": list(dict.fromkeys(check.title for check in plugin.checks)),
        "metrics": list(_metrics(plugin)),
        "invariants": [f"{invariant.name}: {invariant.sentence}" for invariant in plugin.invariants],
    }


def _metrics(plugin: Plugin) -> Iterator[str]:
    if plugin.metrics is not None:
        for metric in Metrics([plugin.metrics]).registry.collect():
            yield f"{metric.name}_total" if metric.type == "counter" else metric.name
    for collector in plugin.collectors:
        yield from (gauge.name for gauge in collector.gauges())


def _heard(subscriber: Subscriber) -> str:
    name = getattr(subscriber.event, "kind", None) or subscriber.event.__name__
    return f"{name} (in the transaction)" if subscriber.inside else name


def _route(route: Any) -> list[str]:
    methods = ",".join(sorted(route.http_methods)) if hasattr(route, "http_methods") else "*"
    return [f"{methods} {path}" for path in sorted(route.paths)]
