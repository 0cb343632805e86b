"""Protects the reference: every setting, error code, event, scope and command is documented."""

import ast
import re
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import Any, cast, get_args

import click
import msgspec

from mpesa_gateway.cli import COMMANDS
from mpesa_gateway.config import ConfigError, GatewayConfig, decode
from mpesa_gateway.db.invariants import INVARIANTS
from mpesa_gateway.errors import Code
from mpesa_gateway.events import PublicEvent
from mpesa_gateway.ids import KERNEL_PREFIXES
from mpesa_gateway.plugin import Plugin, scopes_of
from tests.house.tree import PACKAGES, ROOT, parsed, shipped_modules

OBSERVED = re.compile(r"[a-z][a-z0-9_]*\.[a-z_]+\Z")
"""The name of a doctor observation: a group and an object, ``postgres.durable``."""

# gateway.toml shows a setting without default, and the section of a disabled plugin, as comments.
SETTING = re.compile(r"^(?:# )?(?P<setting>\[[a-z0-9_.]+\]|[a-z][a-z0-9_]* = .+)$")


@cache
def plugins() -> tuple[Plugin, ...]:
    return tuple(import_module(f"{package.name}.plugin").plugin for package in PACKAGES[1:])


@cache
def docs() -> str:
    """Return the text of all pages for hosts and merchants."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs/reference").glob("*.md"))]
    return "\n".join(page.read_text(encoding="utf-8") for page in pages)


def declared() -> dict[str, Any]:
    """Return every setting by its path, with its default or None."""
    found: dict[str, Any] = {}

    def walk(kind: type[msgspec.Struct], path: str) -> None:
        for field in msgspec.structs.fields(kind):
            name = f"{path}{field.name}"
            if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
                walk(field.type, f"{name}.")
            elif name != "sections":
                found[name] = None if field.default is msgspec.NODEFAULT else field.default

    walk(GatewayConfig, "")
    for plugin in plugins():
        walk(plugin.settings, f"{plugin.name}.")
    return found


def documented() -> dict[str, Any]:
    """Return every setting of config/gateway.toml by its path with its value, commented settings included."""
    lines = (ROOT / "config/gateway.toml").read_text(encoding="utf-8").splitlines()
    text = "\n".join(match["setting"] if (match := SETTING.match(line)) else line for line in lines)
    return dict(_flat(tomllib.loads(text)))


def _flat(values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{inner}", item) for inner, item in _flat(cast("dict[str, Any]", value)))
        else:
            yield name, value


def test_settings_all_appear_in_the_default_file() -> None:
    assert set(documented()) == set(declared())


def test_default_file_values_equal_the_defaults() -> None:
    values = documented()
    wrong = {
        name: (values[name], default)
        for name, default in declared().items()
        if default is not None and name in values and msgspec.json.decode(msgspec.json.encode(default)) != values[name]
    }
    assert wrong == {}


def test_default_file_loaded_changes_no_setting() -> None:
    without = GatewayConfig.from_values({})
    loaded = GatewayConfig.load(ROOT / "config/gateway.toml", {})
    assert msgspec.structs.replace(loaded, sections={}) == without


def test_settings_all_have_a_description() -> None:
    lines = (ROOT / "config/gateway.toml").read_text(encoding="utf-8").splitlines()
    mute = [
        line
        for before, line in zip(["", *lines], lines, strict=False)
        if (match := SETTING.match(line)) and not match["setting"].startswith("[")
        if not before.startswith("# ") or SETTING.match(before)
    ]
    assert mute == []


def test_settings_out_of_range_are_rejected() -> None:
    kinds = [field.type for field in msgspec.structs.fields(GatewayConfig) if _is_struct(field.type)]
    taken: list[str] = []
    for kind in [*kinds, *(plugin.settings for plugin in plugins())]:
        for field in msgspec.structs.fields(kind):
            if _numbers(field.type):
                for value in (-1, [-1]):
                    with suppress(ConfigError):
                        decode({field.name: value}, kind, "")
                        taken.append(f"{kind.__name__}.{field.name} = {value}")
    assert taken == []


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _numbers(kind: Any) -> bool:
    return kind in {int, float} or any(_numbers(part) for part in get_args(kind))


def test_error_codes_are_all_documented() -> None:
    assert [code.value for code in Code if not re.search(rf"\b{code.value}\b", docs())] == []


def test_events_are_all_documented() -> None:
    kinds = {event.kind for plugin in plugins() for event in plugin.publishes if issubclass(event, PublicEvent)}
    assert kinds
    assert {kind for kind in kinds if f"`{kind}`" not in docs()} == set()


def test_invariants_are_all_documented() -> None:
    named = {f"kernel.{invariant.name}" for invariant in INVARIANTS} | {"kernel.audit_chain"}
    named |= {f"{plugin.name}.{invariant.name}" for plugin in plugins() for invariant in plugin.invariants}
    assert {name for name in named if f"`{name}`" not in docs()} == set()


def test_doctor_lines_are_all_documented() -> None:
    named = set(_observed())
    assert len(named) > 50
    assert {name for name in named if f"`{name}`" not in docs()} == set()


def _observed() -> Iterator[str]:
    """Yield the observation names in the source, once per environment where the name contains it."""
    for path in shipped_modules():
        if path.parent.name != "doctor" and path.name != "doctor.py":
            continue
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.JoinedStr):
                text = "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in node.values)
                for word in ("sandbox", "live") if text in {"daraja.*", "certificate.*"} else ():
                    yield text.replace("*", word)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and OBSERVED.match(node.value):
                yield node.value


def test_scopes_are_all_documented() -> None:
    scopes = {scope.name for scope in scopes_of(plugins()).all}
    assert {scope for scope in scopes if f"`{scope}`" not in docs()} == set()


def test_id_prefixes_are_declared_by_the_owner_of_the_table() -> None:
    declared = {"mpesa_gateway": {prefix.name for prefix in KERNEL_PREFIXES}}
    declared |= {f"mpesa_gateway_{each.name}": {prefix.name for prefix in each.id_prefixes} for each in plugins()}
    made: dict[str, set[str]] = {}
    for path in shipped_modules():
        package = next(part for part in path.parts if part in declared)
        found = re.findall(r"\b_?ids\.new\(\s*[\"'](\w+)[\"'][,)]", path.read_text(encoding="utf-8"))
        made.setdefault(package, set()).update(found)
    kernels = declared["mpesa_gateway"]
    foreign = {package: names - declared[package] - kernels for package, names in made.items()}
    assert {package: names for package, names in foreign.items() if names} == {}
    assert set().union(*made.values()) | {"key", "req"} == set().union(*declared.values())


def test_commands_are_all_documented() -> None:
    own = [name for entry in COMMANDS for name in _commands(entry.load(), f"mpesa-gateway {entry.name}")]
    brought = [f"mpesa-gateway {entry.name}" for plugin in plugins() for entry in plugin.commands]
    assert {name for name in [*own, *brought] if name not in docs()} == set()


def _commands(command: click.Command, path: str) -> list[str]:
    if not isinstance(command, click.Group):
        return [path]
    return [name for inner in command.commands.values() for name in _commands(inner, f"{path} {inner.name}")]


def test_listed_commands_have_the_name_and_summary_of_the_command() -> None:
    entries = [*COMMANDS, *(entry for plugin in plugins() for entry in plugin.commands)]
    assert len(entries) > 20
    for entry in entries:
        command = entry.load()
        first = " ".join((command.help or "").split("\n\n")[0].split())
        assert (entry.name, entry.summary) == (command.name, first)
