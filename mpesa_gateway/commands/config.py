"""``mpesa-gateway config``: checks and prints the settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import rich_click as click

from mpesa_gateway import toml
from mpesa_gateway.client_ip import read_networks
from mpesa_gateway.commands.listing import JSON, print_json
from mpesa_gateway.commands.session import Session, pass_session
from mpesa_gateway.config import GatewayConfig, masked_setting
from mpesa_gateway.security.sealing import sealer_for

if TYPE_CHECKING:
    from mpesa_gateway.plugin import Plugin


@click.group()
def config() -> None:
    """Check or show the settings."""


@config.command()
@JSON
@pass_session
def check(session: Session, *, as_json: bool) -> None:
    """Read the settings and load the plugins as at start; connect to nothing."""
    from mpesa_gateway.app import Gateway

    settings = session.config()
    embedded = [name for name in ("database", "valkey") if getattr(settings, name).url is None]
    if embedded:
        _check_plugins(settings)
    else:
        _ = Gateway(settings).asgi.litestar
    if as_json:
        file = session.config_path
        print_json({"usable": True, "file": file and str(file), "embedded": embedded})
        return
    click.echo(f"The configuration can be used ({session.config_path or 'no file, only the environment'}).")
    for name in embedded:
        click.echo(f"`{name}.url` is not set: `mpesa-gateway up` brings its own, every other command refuses to start.")


@config.command()
@JSON
@pass_session
def show(session: Session, *, as_json: bool) -> None:
    """Print every setting of the kernel and the enabled plugins as TOML; secrets are masked."""
    settings = session.config()
    plugins = _check_plugins(settings)
    values: dict[str, Any] = masked_setting(settings)
    del values["sections"]
    values |= {
        plugin.name: masked_setting(settings.section(plugin.name, plugin.settings))
        for plugin in plugins
        if plugin.settings.__struct_fields__
    }
    if as_json:
        print_json(values)
        return
    click.echo(toml.dumps(values), nl=False)


def _check_plugins(settings: GatewayConfig) -> tuple[Plugin, ...]:
    """Raises what a Gateway raises, but needs no database."""
    from mpesa_gateway.plugin import load

    plugins = load(settings.plugins)
    settings.refuse_sections_except([plugin.name for plugin in plugins])
    for plugin in plugins:
        settings.section(plugin.name, plugin.settings)
    read_networks(settings.security.trusted_proxies, "security.trusted_proxies")
    if settings.security.master_key is not None or settings.security.master_key_file is not None:
        sealer_for(settings.security)
    return plugins
