"""The command ``mpesa-gateway``."""

import os
import sys
from typing import Any

import rich_click as click

from mpesa_gateway.commands.api_keys import apikeys
from mpesa_gateway.commands.audit import audit
from mpesa_gateway.commands.completion import completion
from mpesa_gateway.commands.config import config
from mpesa_gateway.commands.doctor import doctor
from mpesa_gateway.commands.events import events
from mpesa_gateway.commands.keys import keys
from mpesa_gateway.commands.merchants import merchants
from mpesa_gateway.commands.migrate import migrate
from mpesa_gateway.commands.openapi import openapi
from mpesa_gateway.commands.plugins import plugins
from mpesa_gateway.commands.privacy import privacy
from mpesa_gateway.commands.serve import serve
from mpesa_gateway.commands.session import CONFIG_VARIABLE, DATA_VARIABLE, CommandFailed, Session
from mpesa_gateway.commands.up import up
from mpesa_gateway.commands.worker import worker
from mpesa_gateway.config import ConfigError
from mpesa_gateway.db.migrator import MigrationError
from mpesa_gateway.errors import ApiError
from mpesa_gateway.http.auth import RouteError
from mpesa_gateway.plugin import Plugin, PluginError, installed, load
from mpesa_gateway.security.audit import BrokenChain
from mpesa_gateway.security.sealing import UnsealError
from mpesa_gateway.single_gateway import SecondGateway
from mpesa_gateway.standalone.process import StartFailed
from mpesa_gateway.standalone.settings import SIMULATOR

CONFIGURATION = (ConfigError, PluginError, RouteError)

OTHERS = (CommandFailed, StartFailed, ApiError, MigrationError, SecondGateway, BrokenChain, UnsealError)
"""Exit status 1, without a traceback."""


INTERRUPTED = 130


class Commands(click.RichGroup):
    """Commands of the kernel and of enabled plugins."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        own = super().list_commands(ctx)
        try:
            return [*own, *(name for name in _plugin_commands(ctx) if name not in own)]
        except CONFIGURATION:
            return own

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, cmd_name) or _plugin_commands(ctx).get(cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        """Print errors as one sentence; exit with 130 after Ctrl-C."""
        try:
            return super().invoke(ctx)
        except CONFIGURATION as problem:
            _say(str(problem))
            ctx.exit(2)
        except OTHERS as problem:
            _say(str(problem))
            ctx.exit(1)
        except KeyboardInterrupt:
            # click would print "Aborted!" and exit with 1.
            ctx.exit(INTERRUPTED)


def _say(problem: str) -> None:
    click.echo(f"mpesa-gateway: {problem}", err=True)


def _plugin_commands(ctx: click.Context) -> dict[str, click.Command]:
    found: list[Plugin] = list(load(_session(ctx).config().plugins))
    if SIMULATOR in installed() and all(plugin.name != SIMULATOR for plugin in found):
        found.append(installed()[SIMULATOR].load())
    return {str(command.name): command for plugin in found for command in plugin.commands}


def _session(ctx: click.Context) -> Session:
    if not isinstance(ctx.obj, Session):
        ctx.obj = Session(ctx.params.get("config_path"), ctx.params.get("data"))
    return ctx.obj


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    "config_path",
    metavar="FILE",
    is_eager=True,
    help=f"The settings; without it {CONFIG_VARIABLE}, else config/gateway.toml if there is one.",
)
@click.option(
    "--data",
    metavar="FOLDER",
    is_eager=True,
    help=f"Where `up` keeps its data; without it {DATA_VARIABLE}, else ./data.",
)
@click.version_option(package_name="mpesa-gateway")
@click.pass_context
def cli(context: click.Context, config_path: str | None, data: str | None) -> None:
    """A self-hosted payments gateway for M-Pesa.

    Start with `mpesa-gateway up`, then `mpesa-gateway demo` in another terminal.
    """
    context.obj = Session(config_path, data)


for command in (up, serve, worker, migrate, doctor, config, plugins, openapi):
    cli.add_command(command)
for command in (merchants, apikeys, events, keys, audit, privacy, completion):
    cli.add_command(command)


def _is_text(argument: str) -> bool:
    """Bytes that are not UTF-8 arrive as surrogates."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        return False
    return True


def main() -> None:
    for number, argument in enumerate(sys.argv[1:], start=1):
        if not _is_text(argument):
            _say(f"argument {number} is not valid UTF-8: {os.fsencode(argument)!r}; correct it, or rename the file")
            sys.exit(2)
    cli(prog_name="mpesa-gateway")


if __name__ == "__main__":
    main()
