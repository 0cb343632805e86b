"""Commands: each with its arguments and options, as in ``--help``."""

from collections.abc import Iterator, Sequence
from typing import Any

import click

from docs.site.reference.words import NOTE, code, document, prose, table
from mpesa_gateway.cli import COMMANDS, cli
from mpesa_gateway.plugin import Plugin

_PROGRAM = "mpesa-gateway"


def page(plugins: Sequence[Plugin]) -> str:
    """Return the page."""
    own = [(entry.load(), "") for entry in COMMANDS]
    brought = [(entry.load(), plugin.name) for plugin in plugins for entry in plugin.commands]
    return document(
        "# Commands",
        NOTE,
        prose(cli.help),
        f"```text\n{_PROGRAM} [OPTIONS] COMMAND [ARGS]...\n```",
        "Each has `--help`. These options come before the command:",
        _options(cli, click.Context(cli, info_name=_PROGRAM)),
        "A failed command prints a sentence on stderr and exits with 2 for an error in the command line or the "
        "settings, with 1 for any other. Commands of plugins exist while the plugin is enabled. With the gateway "
        "mounted in a Litestar application, the same commands are available as `litestar mpesa …`.",
        *(part for command, plugin in own + brought for part in _command(command, _PROGRAM, plugin)),
    )


def _command(command: click.Command, path: str, plugin: str) -> Iterator[str]:
    name = f"{path} {command.name}"
    level = "#" * min(len(name.split()), 4)
    context = click.Context(command, info_name=name)
    brought = f" Part of the plugin `{plugin}`." if plugin else ""
    yield f"{level} {name}"
    yield prose(command.help) + brought
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            yield from _command(inner, name, "")
        return
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"```text\n{name} {usage}\n```"
    yield _options(command, context)


def _options(command: click.Command, context: click.Context) -> str:
    options = [each for each in command.get_params(context) if isinstance(each, click.Option) and not each.hidden]
    rows = [(_names(each, context), _help(each, context)) for each in options if "--help" not in each.opts]
    return table(["option", "does"], rows)


def _names(option: click.Option, context: click.Context) -> str:
    names = ", ".join(sorted(option.opts, key=len))
    if option.secondary_opts:
        names += " / " + ", ".join(option.secondary_opts)
    kind: Any = option.type
    if option.is_flag or option.count:
        value = ""
    elif option.metavar:
        value = f" {option.metavar}"
    elif isinstance(option.type, click.Choice):
        value = f" {option.type.get_metavar(option, context)}"
    else:
        value = f" {kind.name.upper().replace(' RANGE', '')}"
    return code(f"{names}{value}")


def _help(option: click.Option, context: click.Context) -> str:
    text = prose(option.help)
    extra: Any = option.get_help_extra(context)
    if extra.get("default"):
        text += f" Default `{extra['default']}`."
    if extra.get("range"):
        text += f" Range: {extra['range']}."
    if extra.get("required"):
        text += " Required."
    return text.strip()
