"""Checks of code without running it: its commands, calls, files and settings exist."""

import configparser
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import jinja2

from mpesa_gateway.app import Gateway
from mpesa_gateway.cli import COMMANDS, cli
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.plugin import Plugin
from mpesa_gateway.testing.serving import PLUGINS, gateway_values
from tests.docs.shell import words
from tests.house.test_documented import plugins
from tests.house.tree import ROOT
from tests.routes import operations

OURS = "mpesa-gateway"
GUESTS = {"acme_sms": "examples/acme_sms"}
"""Plugins in the pages' settings that are not installed here, with the folder to import them from."""


def commands() -> dict[str, click.Command]:
    """Return the `mpesa-gateway` command with every plugin's commands."""
    entries = [*COMMANDS, *(entry for plugin in plugins() for entry in plugin.commands)]
    return {entry.name: entry.load() for entry in entries}


def misused(call: Sequence[str]) -> str | None:
    """Return click's error about a call of `mpesa-gateway`, or None if the call is valid."""
    try:
        command, rest = _found(call)
        if not isinstance(command, click.Group):
            command.make_context(call[0], rest)
    except click.exceptions.Exit:
        return None
    except click.ClickException as problem:
        return f"`{' '.join(call)}`: {problem.format_message()}"
    return None


def unknown(call: Sequence[str]) -> str | None:
    """Return the error about a call in a sentence, which may omit required parameters."""
    try:
        command, rest = _found(call)
        for word in rest:
            _option(command, word)
    except click.ClickException as problem:
        return f"`{' '.join(call)}`: {problem.format_message()}"
    return None


def _found(call: Sequence[str]) -> tuple[click.Command, list[str]]:
    """Return the command of a call and its arguments. Raises UsageError for an unknown command."""
    command: click.Command = cli
    rest = list(call[1:])
    while isinstance(command, click.Group) and rest:
        word = rest.pop(0)
        if word.startswith("-"):
            if _option(command, word):
                del rest[:1]
            continue
        known = commands() if command is cli else command.commands
        if word not in known:
            raise click.UsageError(f"No such command {word!r}.")
        command = known[word]
    return command, rest


def _option(command: click.Command, word: str) -> bool:
    """Return True if this word is an option with a separate value. Raises NoSuchOption for an unknown one."""
    name, _, value = word.partition("=")
    if not name.startswith("--") or name == "--help":
        return False
    option = next((one for one in command.params if name in {*one.opts, *one.secondary_opts}), None)
    if option is None:
        raise click.NoSuchOption(name)
    return isinstance(option, click.Option) and not option.is_flag and not value


def complaints(text: str, folder: Path = ROOT) -> list[str]:
    """Yield the errors in shell lines that are run elsewhere, as seen from a checkout."""
    reads = ["bash", "-n", "-c", text]
    parsed = subprocess.run(reads, capture_output=True, text=True, check=False)
    if parsed.returncode != 0:
        return [parsed.stderr]
    return [problem for call in words(text) for problem in _against(call, folder)]


def noted(call: Sequence[str], folder: Path) -> list[str]:
    """Yield the errors in a recorded call of a stand-in; every file that it names exists by then."""
    missing = [word for word in call if re.fullmatch(r"[\w./-]*/[\w./-]+", word) and not (folder / word).exists()]
    return [*_against(call, folder), *(f"`{' '.join(call)}`: there is no {word}" for word in missing)]


def _against(call: Sequence[str], folder: Path) -> Iterator[str]:
    if ours := _ours(call):
        problem = misused(ours)
        yield from () if problem is None else (problem,)
    if "curl" in call:
        yield from wrong_calls(call)
    for option, value in pairwise(call):
        if option in {"-r", "-c", "-f", "-k", "--requirement", "--constraint"} and not (folder / value).exists():
            yield f"`{' '.join(call)}`: there is no {value}"
    for word in call:
        if (found := re.fullmatch(r"--from-file=(?:[\w.]+=)?(.+)", word)) and not (folder / found[1]).exists():
            yield f"`{' '.join(call)}`: there is no {found[1]}"


def _ours(call: Sequence[str]) -> Sequence[str]:
    """Return our command in this call, after variables or in a container, or an empty list."""
    for number, word in enumerate(call):
        if word.rpartition("/")[2] == OURS:
            before = call[:number]
            is_first = all(re.match(r"\w+=", other) for other in before)
            return call[number:] if is_first or "exec" in before else ()
    return ()


def wrong_calls(call: Sequence[str]) -> Iterator[str]:
    """Yield the API calls by curl that no route matches."""
    method = "POST" if any(word in {"-d", "--data", "--json"} for word in call) else "GET"
    for option, value in pairwise(call):
        method = value if option in {"-X", "--request"} else method
    for word in call:
        if found := re.match(r"(?:https?://[^/]+|\$\{?\w+\}?)(/[^?\s]*)", word):
            path = found[1]
            if not any(one.method == method and _fits(one.path, path) for one in operations()):
                yield f"no gateway answers {method} {path}"


def _fits(pattern: str, path: str) -> bool:
    return re.fullmatch(re.sub(r"\\\{[^}]*\\\}|\{[^}]*\}", "[^/]+", pattern), path) is not None


def _toml(text: str) -> None:
    """Check TOML: uv settings equal ours, and a gateway configuration loads."""
    values = tomllib.loads(text)
    if "tool" in values:
        ours = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
        assert values["tool"]["uv"].items() <= ours["tool"]["uv"].items()
    elif "project" not in values:
        _configured(values)


def _configured(values: dict[str, Any]) -> None:
    guests = [name for name in values.get("plugins", []) if name in GUESTS]
    names = [name for name in values.get("plugins", PLUGINS) if name not in guests]
    names += [plugin.name for plugin in plugins() if plugin.name in values and plugin.name not in names]
    wanted = gateway_values("postgresql://nowhere", "redis://nowhere", plugins=names)
    for name, value in values.items():
        if name != "plugins":
            wanted[name] = wanted.get(name, {}) | value if isinstance(value, dict) else value
    Gateway(GatewayConfig.from_values(wanted), plugins=tuple(_guest(name) for name in guests))


def _guest(name: str) -> Plugin:
    sys.path.append(str(ROOT / GUESTS[name]))
    try:
        found: Plugin = import_module(f"{name}.plugin").plugin
    finally:
        sys.path.pop()
    return found


def _ini(text: str) -> None:
    configparser.ConfigParser().read_string(text)


def _html(text: str) -> None:
    jinja2.Environment(autoescape=True).parse(text)


def _text(text: str) -> None:
    """Check program output, or a usage line of curl or `mpesa-gateway … [OPTIONS]`."""
    if text.startswith("curl "):
        problems = [problem for call in words(text) for problem in wrong_calls(call)]
    elif text.startswith(f"{OURS} "):
        call = text.split()
        end = next((number for number, word in enumerate(call) if word.startswith("[")), 0)
        problem = unknown(call[:end]) if end else "this can be run: write sh behind the fence"
        problems = [] if problem is None else [problem]
    else:
        problems = []
    if problems:
        raise ValueError("\n".join(problems))


def _copy_of(*examples: str) -> Callable[[str], None]:
    """A block in a language without a runner copies one of these tested examples, without its comments."""

    def check(text: str) -> None:
        wholes = [(ROOT / example).read_text(encoding="utf-8").replace("<?php\n", "") for example in examples]
        if not any(_code(text) == _code(whole) for whole in wholes):
            raise ValueError(f"the block differs from {' and '.join(examples)}")

    return check


def _code(text: str) -> list[str]:
    lines = (re.sub(r"\s*//.*", "", line) for line in text.splitlines())
    return [line for line in lines if line]


READERS: dict[str, Callable[[str], Any]] = {
    "json": json.loads,
    "toml": _toml,
    "yaml": lambda text: import_module("yaml").safe_load(text),
    "ini": _ini,
    "html": _html,
    "js": _copy_of("examples/webhooks/verify.mjs"),
    "php": _copy_of("examples/webhooks/verify.php", "examples/clients/shop.php"),
    "text": _text,
}
"""Languages that are never run, with the check of each block. ``text`` is program output."""
