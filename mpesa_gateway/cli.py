"""The command ``mpesa-gateway``: lists commands without importing them."""

import os
import sys
from typing import Any

import rich_click as click
from click.exceptions import Exit

from mpesa_gateway.command_entry import CommandEntry
from mpesa_gateway.commands.session import CONFIG_VARIABLE, DATA_VARIABLE, Session
from mpesa_gateway.config import ConfigError
from mpesa_gateway.installed_plugins import installed

SIMULATOR = "simulator"
"""Its command `demo` needs only that it is installed."""

INTERRUPTED = 130

COMMANDS = (
    CommandEntry(
        "up",
        "mpesa_gateway.commands.up:up",
        "Run the API, a worker and simulated phones, on embedded Postgres and Valkey.",
    ),
    CommandEntry(
        "serve", "mpesa_gateway.commands.serve:serve", "Serve the HTTP API until stopped (Ctrl-C or SIGTERM)."
    ),
    CommandEntry(
        "worker", "mpesa_gateway.commands.worker:worker", "Run the jobs and crons of the queues until stopped."
    ),
    CommandEntry(
        "migrate",
        "mpesa_gateway.commands.migrate:migrate",
        "Apply the migrations of the kernel and of every enabled plugin.",
    ),
    CommandEntry(
        "doctor", "mpesa_gateway.commands.doctor:doctor", "Check everything that payments and webhooks depend on."
    ),
    CommandEntry("config", "mpesa_gateway.commands.config:config", "Check or show the settings."),
    CommandEntry(
        "plugins",
        "mpesa_gateway.commands.plugins:plugins",
        "Print the installed plugins: which are enabled, what each provides, and which others it requires.",
    ),
    CommandEntry(
        "openapi",
        "mpesa_gateway.commands.openapi:openapi",
        "Print the OpenAPI document of the enabled plugins as JSON, as /schema/openapi.json serves it.",
    ),
    CommandEntry("merchants", "mpesa_gateway.commands.merchants:merchants", "Create, list and deactivate merchants."),
    CommandEntry("apikeys", "mpesa_gateway.commands.api_keys:apikeys", "Create, list and revoke API keys."),
    CommandEntry(
        "events", "mpesa_gateway.commands.events:events", "List events, show one, and retry a subscriber that fails."
    ),
    CommandEntry("keys", "mpesa_gateway.commands.keys:keys", "Generate master keys, and reseal stored secrets."),
    CommandEntry("audit", "mpesa_gateway.commands.audit:audit", "Work with the audit log."),
    CommandEntry("privacy", "mpesa_gateway.commands.privacy:privacy", "Erase payers' phone numbers on request."),
    CommandEntry(
        "completion",
        "mpesa_gateway.commands.completion:completion",
        "Print the completion script of SHELL, to be loaded when the shell starts.",
    ),
)


class ListedCommand(click.RichCommand):
    """A command in a list of commands: its name and summary."""

    def __init__(self, entry: CommandEntry) -> None:
        super().__init__(name=entry.name, help=entry.summary)
        self.entry = entry


class Commands(click.RichGroup):
    """Commands of the kernel and of enabled plugins.

    ``get_command`` returns what a list shows; ``resolve_command`` imports the command that is called.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        own = super().list_commands(ctx)
        try:
            return [*own, *(name for name in _plugin_commands(ctx) if name not in own)]
        except Exception as problem:
            if _exit_status(problem) is None:
                raise
            return own

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, cmd_name) or _plugin_commands(ctx).get(cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, listed, rest = super().resolve_command(ctx, args)
        return name, listed.entry.load() if isinstance(listed, ListedCommand) else listed, rest

    def invoke(self, ctx: click.Context) -> Any:
        """Print errors as one sentence; exit with 130 after Ctrl-C."""
        try:
            return super().invoke(ctx)
        except (Exit, click.ClickException, click.Abort):
            raise
        except Exception as problem:
            status = _exit_status(problem)
            if status is None:
                raise
            _say(str(problem))
            ctx.exit(status)
        except KeyboardInterrupt:
            # click would print "Aborted!" and exit with 1.
            ctx.exit(INTERRUPTED)


def _exit_status(problem: Exception) -> int | None:
    """Return the exit status of an error that is one sentence, None for one that needs its traceback."""
    if isinstance(problem, ConfigError):
        return 2
    from mpesa_gateway.commands.failures import CONFIGURATION, OTHERS  # noqa: PLC0415 - imports the whole gateway

    if isinstance(problem, CONFIGURATION):
        return 2
    return 1 if isinstance(problem, OTHERS) else None


def _say(problem: str) -> None:
    click.echo(f"mpesa-gateway: {problem}", err=True)


def _plugin_commands(ctx: click.Context) -> dict[str, click.Command]:
    known = installed()
    names = _session(ctx).config().plugins
    if any(name not in known for name in names):
        from mpesa_gateway.plugin import load  # noqa: PLC0415 - imports the whole gateway, to raise its error

        load(names)
    found = [known[name] for name in dict.fromkeys((*names, SIMULATOR)) if name in known]
    return {entry.name: ListedCommand(entry) for plugin in found for entry in plugin.commands()}


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


for listed in COMMANDS:
    cli.add_command(ListedCommand(listed))


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
