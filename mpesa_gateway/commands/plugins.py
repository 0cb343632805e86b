"""``mpesa-gateway plugins``: what is enabled, and what each plugin brings."""

from collections.abc import Iterator
from typing import Any

import rich_click as click

from mpesa_gateway.commands.session import Session, pass_session
from mpesa_gateway.plugin import NoSettings, Plugin, load


@click.command()
@pass_session
def plugins(session: Session) -> None:
    """Print what is loaded: each enabled plugin with its routes, jobs, events and commands."""
    for number, plugin in enumerate(load(session.config().plugins)):
        click.echo(("\n" if number else "") + f"{plugin.name}: {plugin.summary}")
        for heading, lines in _parts(plugin):
            for line in lines:
                click.echo(f"  {heading:<10} {line}")


def _parts(plugin: Plugin) -> Iterator[tuple[str, list[str]]]:
    yield "requires", list(plugin.requires)
    if plugin.settings is not NoSettings:
        yield "settings", [f"[{plugin.name}] {', '.join(plugin.settings.__struct_fields__)}"]
    yield "scope", list(plugin.scopes)
    yield "route", [line for route in plugin.routes for line in _route(route)]
    yield (
        "job",
        [f"{plugin.job_name(job)} ({job.timeout} s{f', cron {job.cron}' if job.cron else ''})" for job in plugin.jobs],
    )
    yield "publishes", [event.kind for event in plugin.publishes]
    yield (
        "hears",
        [
            f"{getattr(subscriber.event, 'kind', None) or subscriber.event.__name__}"
            f"{' (in the transaction)' if subscriber.inside else ''}"
            for subscriber in plugin.subscribers
        ],
    )
    yield "provides", [port.__name__ for port, _ in plugin.provides]
    yield "command", [str(command.name) for command in plugin.commands]
    yield "check", list(dict.fromkeys(check.title for check in plugin.checks))
    yield "counts", [measure.name for measure in plugin.counts]
    yield "reads", [gauge.name for reading in plugin.readings for gauge in reading.gauges]
    yield "invariant", [f"{invariant.name}: {invariant.sentence}" for invariant in plugin.invariants]


def _route(route: Any) -> list[str]:
    methods = ",".join(sorted(route.http_methods)) if hasattr(route, "http_methods") else "*"
    return [f"{methods} {path}" for path in sorted(route.paths)]
