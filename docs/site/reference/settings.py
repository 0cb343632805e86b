"""Settings: each with its comment in config/gateway.toml and its type."""

import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
from msgspec import inspect

from docs.site.reference.words import NOTE, document, prose
from mpesa_gateway.config import COMMAND_VARIABLES, ENVIRONMENT, GatewayConfig
from mpesa_gateway.plugin import NoSettings, Plugin
from mpesa_gateway.secret import Secret

_FILE = Path(__file__).parents[3] / "config/gateway.toml"

_SECTION = re.compile(r"^(?:# )?\[(?P<name>[a-z][a-z0-9_]*)\]$")
_SETTING = re.compile(r"^(?P<mark># )?(?P<name>[a-z][a-z0-9_]*) = (?P<value>.+)$")

_UNITS = ("seconds", "minutes", "hours", "days", "bytes")
"""Units at the end of a setting's name."""


def page(plugins: Sequence[Plugin]) -> str:
    """Return the page."""
    comments = dict(_commented(_FILE.read_text(encoding="utf-8")))
    sections = [
        _section(field.name, field.type, comments)
        for field in msgspec.structs.fields(GatewayConfig)
        if _is_struct(field.type)
    ]
    sections += [_section(each.name, each.settings, comments) for each in plugins if each.settings is not NoSettings]
    top = [_setting("", field, comments) for field in msgspec.structs.fields(GatewayConfig) if _is_plain(field)]
    return document("# Settings", NOTE, _opening(), "## At the top", *top, *sections)


def _opening() -> str:
    others = ", ".join(f"`{ENVIRONMENT}{name}`" for name in sorted(COMMAND_VARIABLES))
    return (
        "All settings, in the order of [config/gateway.toml](../../config/gateway.toml). The file is TOML; environment "
        "variables override it. A list in a variable is comma-separated or JSON, and a variable that ends in `_FILE` "
        f"names a file with the value. {others} are no settings: they are the paths of the file and of the data "
        "folder of `up`, and the merchant of commands.\n\n"
        "An unknown setting or an invalid value stops the start; `mpesa-gateway config check` names it, and "
        "`mpesa-gateway config show` prints the effective settings."
    )


def _section(name: str, kind: type[msgspec.Struct], comments: dict[str, tuple[str, str]]) -> str:
    fields = [_setting(name, field, comments) for field in msgspec.structs.fields(kind)]
    text = prose(kind.__doc__).removeprefix(f"`[{name}]`.").strip()
    first = text.partition("\n\n")[0]
    return document(f"## [{name}]", first if first[:1].isupper() else "", *fields)


def _setting(section: str, field: msgspec.structs.FieldInfo, comments: dict[str, tuple[str, str]]) -> str:
    path = f"{section}.{field.name}".strip(".")
    meaning, example = comments[path]
    variable = ENVIRONMENT + path.upper().replace(".", "__")
    facts = [f"{_kind(field)}. {_default(field, example)}."]
    return document(f"### {path}", meaning, f"{' '.join(facts)} In the environment: `{variable}`.")


def _default(field: msgspec.structs.FieldInfo, example: str) -> str:
    if field.default is msgspec.NODEFAULT or field.default is None:
        return "Not set by default" + (f"; such as `{example}`" if example != '""' else "")
    value = msgspec.json.encode(field.default, enc_hook=str).decode()
    return "Empty by default" if value == "[]" else f"Default `{value}`".replace(",", ", ")


def _kind(field: msgspec.structs.FieldInfo) -> str:
    text, unit = _describe(inspect.type_info(field.type))
    unit = unit or next((each for each in _UNITS if each in field.name.split("_")), "")
    text = f"{text}, in {unit}" if unit else text
    return f"{text[:1].upper()}{text[1:]}"


def _describe(kind: inspect.Type) -> tuple[str, str]:
    """Return a type in words, with its unit."""
    unit = ""
    if isinstance(kind, inspect.Metadata):
        unit = str(cast("dict[str, Any]", kind.extra or {}).get("unit", ""))
        kind = kind.type
    if isinstance(kind, inspect.UnionType):
        (kind,) = (each for each in kind.types if not isinstance(each, inspect.NoneType))
        return _describe(kind)
    if isinstance(kind, inspect.VarTupleType):
        text, inner = _describe(kind.item_type)
        least = ", one at least" if kind.min_length else ""
        several = {"text": "a list of texts", "a secret": "a list of secrets"}
        return several.get(text, f"a list{least}; each {text}"), unit or inner
    return _words(kind), unit


def _words(kind: inspect.Type) -> str:
    match kind:
        case inspect.LiteralType():
            return "one of " + ", ".join(f"`{value}`" for value in kind.values)
        case inspect.StrType():
            most = f" of {kind.max_length} characters at most" if kind.max_length else ""
            return f"text{most}" + (f" like `{kind.pattern}`" if kind.pattern else "")
        case inspect.IntType():
            return f"a whole number{_bounds(kind)}"
        case inspect.FloatType():
            return f"a number{_bounds(kind)}"
        case inspect.BoolType():
            return "`true` or `false`"
        case inspect.CustomType(cls=cls) if cls is Secret:
            return "a secret"
        case _:
            raise TypeError(f"the reference has no words for {kind}")


def _bounds(kind: inspect.IntType | inspect.FloatType) -> str:
    if kind.ge is not None and kind.le is not None:
        return f" from {kind.ge:g} to {kind.le:,g}"
    parts = [
        f" {word} {value:,g}"
        for word, value in (("of at least", kind.ge), ("above", kind.gt), ("of at most", kind.le), ("below", kind.lt))
        if value is not None
    ]
    return " and".join(parts)


def _commented(text: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield each setting of the file with the comment above it and its literal value."""
    section, comment, is_list = "", list[str](), False
    for line in text.splitlines():
        if is_list:
            is_list = not line.endswith("]")
        elif found := _SECTION.match(line):
            section, comment = found["name"], []
        elif found := _SETTING.match(line):
            path = f"{section}.{found['name']}".strip(".")
            is_list = found["value"] == "["
            if not is_list:
                tomllib.loads(f"{found['name']} = {found['value']}")
            yield path, (" ".join(comment), found["value"])
            comment = []
        elif line.startswith("# "):
            comment.append(line.removeprefix("# "))
        else:
            comment = []


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _is_plain(field: msgspec.structs.FieldInfo) -> bool:
    return not _is_struct(field.type) and field.name != "sections"
