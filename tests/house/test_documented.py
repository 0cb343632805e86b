"""What is declared is documented: every setting, error code, event, scope and command is found where hosts look."""

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

from mpesa_gateway.cli import cli
from mpesa_gateway.config import ConfigError, GatewayConfig, decode
from mpesa_gateway.db.invariants import INVARIANTS
from mpesa_gateway.errors import Code
from mpesa_gateway.events import PublicEvent
from mpesa_gateway.ids import KERNEL_PREFIXES
from mpesa_gateway.plugin import Plugin, scopes_of
from tests.house.tree import PACKAGES, ROOT, parsed, shipped_modules

OBSERVED = re.compile(r"[a-z_]+\.[a-z_]+\Z")
"""The name of something that the doctor sees: a group and a thing, ``postgres.durable``."""

# In gateway.toml a setting without default, and the section of a plugin that is not enabled, stand as comments.
SETTING = re.compile(r"^(?:# )?(?P<setting>\[[a-z_.]+\]|[a-z_]+ = .+)$")


@cache
def plugins() -> tuple[Plugin, ...]:
    """All plugins of this repository, enabled or not."""
    return tuple(import_module(f"{package.name}.plugin").plugin for package in PACKAGES[1:])


@cache
def docs() -> str:
    """The text of all pages that a host or merchant reads."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs/reference").glob("*.md"))]
    return "\n".join(page.read_text(encoding="utf-8") for page in pages)


def declared() -> dict[str, Any]:
    """Every setting by its path, with its default; None for none."""
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
    """Every setting of config/gateway.toml by its path, with its value, those that stand there as comments too."""
    lines = (ROOT / "config/gateway.toml").read_text(encoding="utf-8").splitlines()
    text = "\n".join(match["setting"] if (match := SETTING.match(line)) else line for line in lines)
    return dict(_flat(tomllib.loads(text)))


def _flat(values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{inner}", item) for inner, item in _flat(cast("dict[str, Any]", value)))
        else:
            yield name, value


def test_every_setting_is_in_the_default_file() -> None:
    assert set(documented()) == set(declared())


def test_the_default_file_tells_the_defaults() -> None:
    told = documented()
    wrong = {
        name: (told[name], default)
        for name, default in declared().items()
        if default is not None and name in told and msgspec.json.decode(msgspec.json.encode(default)) != told[name]
    }
    assert wrong == {}


def test_the_default_file_changes_nothing() -> None:
    without = GatewayConfig.from_values({})
    loaded = GatewayConfig.load(ROOT / "config/gateway.toml", {})
    assert msgspec.structs.replace(loaded, sections={}) == without


def test_every_setting_has_its_prose() -> None:
    lines = (ROOT / "config/gateway.toml").read_text(encoding="utf-8").splitlines()
    mute = [
        line
        for before, line in zip(["", *lines], lines, strict=False)
        if (match := SETTING.match(line)) and not match["setting"].startswith("[")
        if not before.startswith("# ") or SETTING.match(before)
    ]
    assert mute == []


def test_no_setting_takes_a_number_that_cannot_be() -> None:
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


def test_every_error_code_is_documented() -> None:
    assert [code.value for code in Code if not re.search(rf"\b{code.value}\b", docs())] == []


def test_every_event_is_documented() -> None:
    kinds = {event.kind for plugin in plugins() for event in plugin.publishes if issubclass(event, PublicEvent)}
    assert kinds
    assert {kind for kind in kinds if f"`{kind}`" not in docs()} == set()


def test_every_invariant_is_documented() -> None:
    named = {f"kernel.{invariant.name}" for invariant in INVARIANTS} | {"kernel.audit_chain"}
    named |= {f"{plugin.name}.{invariant.name}" for plugin in plugins() for invariant in plugin.invariants}
    assert {name for name in named if f"`{name}`" not in docs()} == set()


def test_every_line_of_the_doctor_is_documented() -> None:
    named = set(_observed())
    assert len(named) > 50
    assert {name for name in named if f"`{name}`" not in docs()} == set()


def _observed() -> Iterator[str]:
    """The names of what checks see, as they stand in the code; one name for each environment where it is put in."""
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


def test_every_scope_is_documented() -> None:
    scopes = {scope.name for scope in scopes_of(plugins()).all}
    assert {scope for scope in scopes if f"`{scope}`" not in docs()} == set()


def test_every_id_prefix_that_the_code_makes_is_declared_by_its_owner() -> None:
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


def test_every_command_is_documented() -> None:
    own = _commands(cli, "mpesa-gateway")
    brought = [f"mpesa-gateway {command.name}" for plugin in plugins() for command in plugin.commands]
    assert {name for name in [*own, *brought] if name not in docs()} == set()


def _commands(group: click.Group, path: str) -> list[str]:
    found: list[str] = []
    for name, command in sorted(group.commands.items()):
        found += _commands(command, f"{path} {name}") if isinstance(command, click.Group) else [f"{path} {name}"]
    return found
