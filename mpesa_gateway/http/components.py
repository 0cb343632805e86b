"""The shapes of bodies and answers for the OpenAPI document, drawn from the very types that are read and written."""

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args, get_origin

import msgspec

from mpesa_gateway.http.reading import is_moment
from mpesa_gateway.http.rules import Rule

_REFERENCE = "#/components/schemas/{name}"
_NO_NUL = r"^[^\x00]*$"
_MODULE = re.compile(r"(?:\b[a-z_][a-z_0-9]*\.)+(?=[A-Z])")


class Components:
    """The schemas of some types and of all that is inside them. A type that msgspec cannot describe has none."""

    def __init__(self, bodies: Iterable[Any], answers: Iterable[Any], gateway: Any) -> None:
        """``bodies`` are what is read, ``answers`` what is written: of those every field is always there."""
        read = set(_structs(kind for kind in bodies if _is_described(kind)))
        written = [kind for kind in answers if _is_described(kind)]
        kinds = [*read, *written, *(each for each in _structs(written) if each not in read)]
        self._references: dict[Any, dict[str, Any]] = {}
        self.schemas: dict[str, dict[str, Any]] = {}
        if not kinds:
            return
        references, schemas = msgspec.json.schema_components(kinds, ref_template=_REFERENCE)
        names = {name: _short(schema.get("title", name)) for name, schema in schemas.items()}
        if len(set(names.values())) < len(names):
            names = {name: name for name in schemas}
        self._references = {kind: _renamed(each, names) for kind, each in zip(kinds, references, strict=True)}
        self.schemas = {names[name]: _renamed(schema, names) for name, schema in schemas.items()}
        for schema in self.schemas.values():
            if "description" in schema:
                schema["description"] = plain(schema["description"])
        for kind, reference in self._references.items():
            if _is_struct(kind) and "$ref" in reference:
                refine(self.schemas[reference["$ref"].rpartition("/")[2]], kind, gateway, is_written=kind not in read)

    def reference(self, kind: Any) -> dict[str, Any] | None:
        """The schema of a type, None where there is none."""
        return self._references.get(kind)


def refine(schema: dict[str, Any], kind: Any, gateway: Any, *, is_written: bool = False) -> None:
    """Add what a struct says beyond its fields' types: ``RULES`` of each, ``TOGETHER`` between them, ``EXAMPLE``."""
    struct: Any = get_origin(kind) or kind
    rules: Mapping[str, Any] = getattr(struct, "RULES", {})
    for field in msgspec.structs.fields(kind):
        part = schema["properties"][field.encode_name]
        rule = rules.get(field.name)
        said = rule.schema_of(gateway) if isinstance(rule, Rule) else {}
        if is_moment(field.type):
            said = {"format": "date-time"} | said
        if not part:
            # Any value at all, as msgspec sees it: the rule knows better.
            part.update(said)
        elif said:
            present = (
                part if "anyOf" not in part else next(each for each in part["anyOf"] if each.get("type") != "null")
            )
            present.update(said)
            for name in [name for name, value in present.items() if value is None and name != "default"]:
                del present[name]
        if part.get("default", part) is None:
            # Null is what leaving it out means, and nothing that a client should send for it.
            del part["default"]
        if not is_written:
            _forbid_nul(part)
    schema.update(getattr(struct, "TOGETHER", {}))
    if hasattr(struct, "EXAMPLE"):
        schema["examples"] = [dict(struct.EXAMPLE)]
    schema.pop("title", None)
    if is_written and struct.__struct_config__.omit_defaults:
        _leave_out(schema, kind)
    elif is_written:
        schema["required"] = list(schema["properties"])


def _leave_out(schema: dict[str, Any], kind: Any) -> None:
    """Say of fields that are left out instead of being null that they are never null."""
    for field in msgspec.structs.fields(kind):
        part = schema["properties"][field.encode_name]
        if field.default is None and "anyOf" in part:
            (present,) = [option for option in part.pop("anyOf") if option.get("type") != "null"]
            part.update(present)


def _forbid_nul(part: dict[str, Any]) -> None:
    """Say of text that anything may be in it but what no database of ours keeps."""
    for option in (part, *part.get("anyOf", ())):
        if option.get("type") == "string" and not {"pattern", "enum", "const", "format"} & option.keys():
            option["pattern"] = _NO_NUL


def _structs(kinds: Iterable[Any]) -> Iterator[Any]:
    """Each struct in these types, those inside structs too, once."""
    seen: list[Any] = []
    waiting = list(kinds)
    while waiting:
        kind = waiting.pop()
        if kind in seen:
            continue
        seen.append(kind)
        if _is_struct(kind):
            yield kind
            waiting += [field.type for field in msgspec.structs.fields(kind)]
        waiting += get_args(kind)


def _is_struct(kind: Any) -> bool:
    struct: Any = get_origin(kind) or kind
    return isinstance(struct, type) and issubclass(struct, msgspec.Struct)


def _is_described(kind: Any) -> bool:
    try:
        msgspec.json.schema_components([kind])
    except TypeError:
        return False
    return True


def _short(title: str) -> str:
    """``Success[list[shop.views.ItemView]]`` as ``Success_list_ItemView``."""
    return re.sub(r"[^A-Za-z0-9]+", "_", _MODULE.sub("", title)).strip("_")


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """The same schema with its references renamed."""
    if isinstance(value, list):
        parts: list[Any] = value  # pyright: ignore[reportUnknownVariableType] - JSON
        return [_renamed(each, names) for each in parts]
    if not isinstance(value, dict):
        return value
    pairs: dict[str, Any] = value  # pyright: ignore[reportUnknownVariableType] - likewise
    if "$ref" in pairs:
        return pairs | {"$ref": _REFERENCE.format(name=names[pairs["$ref"].rpartition("/")[2]])}
    return {name: _renamed(each, names) for name, each in pairs.items()}


def plain(docstring: str) -> str:
    """A docstring as a description: with its lines where they belong, and code marked as Markdown does."""
    return inspect.cleandoc(docstring).replace("``", "`")


def name_words(document: dict[str, Any]) -> None:
    """Make a schema of its own of each set of words that has a name, for all the places where it stands."""
    schemas: dict[str, dict[str, Any]] = document["components"]["schemas"]
    for part in [*inside(list(schemas.values())), *inside(document["paths"])]:
        if "title" not in part or any(part is schema for schema in schemas.values()):
            continue
        if "$ref" in part:
            known = schemas[part["$ref"].rpartition("/")[2]]
        elif "enum" in part:
            known = {"type": "string", "enum": part["enum"]}
        else:
            continue
        name = part["title"]
        words = schemas.setdefault(name, {"type": "string"} | {key: known[key] for key in known if key != "title"})
        if set(words.get("enum", ())) == set(known.get("enum", ())):
            for key in {"title", "description", "type", "enum"} & part.keys():
                del part[key]
            part["$ref"] = _REFERENCE.format(name=name)


def inside(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in a JSON value."""
    if isinstance(value, dict):
        pairs: dict[str, Any] = value  # pyright: ignore[reportUnknownVariableType] - JSON
        yield pairs
        value = list(pairs.values())
    if isinstance(value, list | tuple):
        parts: list[Any] = list(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType] - JSON
        for part in parts:
            yield from inside(part)
