"""JSON Schemas of bodies and responses, made from the msgspec types."""

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args, get_origin

import msgspec

from mpesa_gateway.http.field_rules import Rule
from mpesa_gateway.http.validation import is_moment

_REFERENCE = "#/components/schemas/{name}"
_NO_NUL = r"^[^\x00]*$"
_MODULE = re.compile(r"(?:\b[a-z_][a-z_0-9]*\.)+(?=[A-Z])")


class Components:
    """The schemas of types and of their inner types, if msgspec can describe them."""

    def __init__(self, bodies: Iterable[Any], answers: Iterable[Any], gateway: Any) -> None:
        """``bodies`` are decoded types, ``answers`` encoded types, whose fields are all present."""
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
                schema["description"] = to_markdown(schema["description"])
        for kind, reference in self._references.items():
            if _is_struct(kind) and "$ref" in reference:
                refine(self._named(reference), kind, gateway, is_written=kind not in read)
        for schema in self.schemas.values():
            if "examples" in schema and "properties" in schema:
                schema["examples"] = [self.example(schema)]

    def reference(self, kind: Any) -> dict[str, Any] | None:
        return self._references.get(kind)

    def example(self, schema: dict[str, Any]) -> Any:
        """Return a valid value; an object's own example replaces generated values."""
        if "$ref" in schema:
            return self.example(self._named(schema))
        own: Any = next(iter(schema.get("examples", ())), None)
        if "properties" in schema:
            required: Iterable[str] = schema.get("required", ())
            properties: dict[str, dict[str, Any]] = schema["properties"]
            made: dict[str, Any] = {name: self.example(part) for name, part in properties.items() if name in required}
            made.update(own or {})
            return made
        if own is None and "anyOf" in schema:
            return self.example(next(each for each in schema["anyOf"] if each.get("type") != "null"))
        if own is None and schema.get("type") == "array":
            return [self.example(schema["items"])]
        values: dict[str | None, Any] = {
            "date-time": "2026-11-23T10:15:12Z",
            "integer": schema.get("minimum", 1),
            "boolean": True,
            "object": {},
        }
        value = values.get(schema.get("format", schema.get("type")), "")
        choices = [schema["default"]] if "default" in schema else schema.get("enum", [value])
        return choices[0] if own is None else own

    def _named(self, reference: dict[str, Any]) -> dict[str, Any]:
        return self.schemas[reference["$ref"].rpartition("/")[2]]


def refine(schema: dict[str, Any], kind: Any, gateway: Any, *, is_written: bool = False) -> None:
    """Add a struct's ``RULES``, ``TOGETHER`` and ``EXAMPLE`` to its schema."""
    struct: Any = get_origin(kind) or kind
    rules: Mapping[str, Any] = getattr(struct, "RULES", {})
    for field in msgspec.structs.fields(kind):
        part = schema["properties"][field.encode_name]
        rule = rules.get(field.name)
        extra = rule.schema_of(gateway) if isinstance(rule, Rule) else {}
        if is_moment(field.type):
            extra = {"format": "date-time"} | extra
        if not part:
            # msgspec allows any value here.
            part.update(extra)
        elif extra:
            present = (
                part if "anyOf" not in part else next(each for each in part["anyOf"] if each.get("type") != "null")
            )
            present.update(extra)
            for name in [name for name, value in present.items() if value is None and name != "default"]:
                del present[name]
        if part.get("default", part) is None:
            # Null means absent; a client does not send it.
            del part["default"]
        if not is_written:
            _forbid_nul(part)
    schema.update(getattr(struct, "TOGETHER", {}))
    if hasattr(struct, "EXAMPLE"):
        schema["examples"] = [dict(struct.EXAMPLE)]
    schema.pop("title", None)
    if is_written and struct.__struct_config__.omit_defaults:
        _remove_null(schema, kind)
    elif is_written:
        schema["required"] = list(schema["properties"])


def _remove_null(schema: dict[str, Any], kind: Any) -> None:
    """Fields that are omitted when null cannot be null."""
    for field in msgspec.structs.fields(kind):
        part = schema["properties"][field.encode_name]
        if field.default is None and "anyOf" in part:
            (present,) = [option for option in part.pop("anyOf") if option.get("type") != "null"]
            part.update(present)


def _forbid_nul(part: dict[str, Any]) -> None:
    """PostgreSQL does not store NUL."""
    for option in (part, *part.get("anyOf", ())):
        if option.get("type") == "string" and not {"pattern", "enum", "const", "format"} & option.keys():
            option["pattern"] = _NO_NUL


def _structs(kinds: Iterable[Any]) -> Iterator[Any]:
    seen: list[Any] = []
    pending = list(kinds)
    while pending:
        kind = pending.pop()
        if kind in seen:
            continue
        seen.append(kind)
        if _is_struct(kind):
            yield kind
            pending += [field.type for field in msgspec.structs.fields(kind)]
        pending += get_args(kind)


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
    if isinstance(value, list):
        parts: list[Any] = value  # pyright: ignore[reportUnknownVariableType] - JSON
        return [_renamed(each, names) for each in parts]
    if not isinstance(value, dict):
        return value
    pairs: dict[str, Any] = value  # pyright: ignore[reportUnknownVariableType] - JSON
    if "$ref" in pairs:
        return pairs | {"$ref": _REFERENCE.format(name=names[pairs["$ref"].rpartition("/")[2]])}
    return {name: _renamed(each, names) for name, each in pairs.items()}


def to_markdown(docstring: str) -> str:
    return inspect.cleandoc(docstring).replace("``", "`")


def name_enumerations(document: dict[str, Any]) -> None:
    """Replace each titled enumeration by a reference to a named schema."""
    schemas: dict[str, dict[str, Any]] = document["components"]["schemas"]
    for part in [*iter_objects(list(schemas.values())), *iter_objects(document["paths"])]:
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


def iter_objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        pairs: dict[str, Any] = value  # pyright: ignore[reportUnknownVariableType] - JSON
        yield pairs
        value = list(pairs.values())
    if isinstance(value, list | tuple):
        parts: list[Any] = list(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType] - JSON
        for part in parts:
            yield from iter_objects(part)
