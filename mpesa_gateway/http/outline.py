"""The calls of an OpenAPI document, as people read them: what each takes and answers, and a line for a shell."""

import json
import shlex
from collections import Counter
from collections.abc import Iterator
from typing import Any

PLACES = {"path": "In the path", "query": "In the query", "header": "Headers"}
"""Where parameters stand."""

Row = tuple[str, str, str]
"""A field's name, its type, and what else there is to say of it."""

Call = tuple[str, str, dict[str, Any]]
"""A method, a path, and what the document says of them."""

LAST = ("Administration", "Operators", "Callbacks", "Simulator")
"""Groups that few readers come for."""

_METHODS = ("get", "post", "put", "patch", "delete")


def grouped(document: dict[str, Any]) -> dict[str, list[Call]]:
    """Every call, by its group: those first that most readers come for."""
    groups: dict[str, list[Call]] = {}
    for path, item in document["paths"].items():
        for method in _METHODS:
            if method in item:
                operation = item[method]
                groups.setdefault((operation.get("tags") or ["Other"])[0], []).append((method, path, operation))
    return dict(sorted(groups.items(), key=lambda group: group[0] in LAST))


def parameter_rows(operation: dict[str, Any], place: str, schemas: dict[str, Any]) -> list[Row]:
    """The parameters of a call that stand in one place, without what every call takes: that is said once."""
    return [
        (each["name"], kind_of(_resolve(each.get("schema", {}), schemas)), _needed(each))
        for each in operation.get("parameters", [])
        if each["in"] == place and each["name"] != "X-Request-ID"
    ]


def body_rows(schema: dict[str, Any], schemas: dict[str, Any]) -> list[Row]:
    """The fields of a body; of one that may be of several kinds, what each kind is."""
    options = [_resolve(option, schemas) for option in _resolve(schema, schemas).get("anyOf", ())]
    return [("one of", "", each.get("description", "")) for each in options] or list(fields(schema, schemas))


def answers(operation: dict[str, Any], schemas: dict[str, Any]) -> dict[tuple[Row, ...], list[str]]:
    """What a call answers when all is well, each shape with its statuses."""
    found: dict[tuple[Row, ...], list[str]] = {}
    for status, answer in sorted(operation.get("responses", {}).items()):
        if status.startswith("2"):
            for content in answer.get("content", {}).values():
                rows = fields(content.get("schema", {}), schemas)
                # That it went well is what the status says; that there is data, the rows of it.
                found.setdefault(tuple((*row[:2], "") for row in rows if row[0] != "success"), []).append(status)
    return found


def codes(operation: dict[str, Any]) -> list[tuple[str, str]]:
    """Every refusal of a call, as status and error code: a description of an answer begins each with its code."""
    return [
        (status, code)
        for status, answer in operation.get("responses", {}).items()
        if not status.startswith("2")
        for code in dict.fromkeys(part for part in answer.get("description", "").split("`")[1::2] if part.isupper())
    ]


def usual(operations: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """The refusals that most calls have: said once."""
    times = Counter(code for operation in operations for code in codes(operation))
    return sorted(code for code, count in times.items() if count > len(operations) / 2)


def curl(method: str, path: str, operation: dict[str, Any], schemas: dict[str, Any]) -> str:
    """The call as a line for a shell."""
    words = ["curl -sS"]
    if method != "get":
        words.append(f"-X {method.upper()}")
    words.append(f'"$BASE{path}"')
    if operation.get("security") != []:
        words.append('-H "X-API-Key: $KEY"')
    for parameter in operation.get("parameters", []):
        if parameter["in"] == "header" and parameter.get("required"):
            said = f"{parameter['name']}: {parameter.get('example', '')}"
            words.append(f"-H {shlex.quote(said)}")
    body = body_example(operation, schemas)
    if body is not None:
        words += ["-H 'Content-Type: application/json'", f"-d {shlex.quote(json.dumps(body, ensure_ascii=False))}"]
    return " ".join(words)


def body_example(operation: dict[str, Any], schemas: dict[str, Any]) -> Any:
    """A body that the call takes; None for one without."""
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if content is None:
        return None
    for said in content.get("examples", {}).values():
        return said["value"]
    return example(content.get("schema", {}), schemas)


def example(schema: dict[str, Any], schemas: dict[str, Any]) -> Any:
    """Something that fits a schema: its own example, else what it has to have."""
    schema = _resolve(schema, schemas)
    for named in ("examples", "enum"):
        if schema.get(named):
            return schema[named][0]
    for named in ("const", "default"):
        if named in schema:
            return schema[named]
    if "properties" in schema:
        wanted = schema.get("required", ())
        return {name: example(part, schemas) for name, part in schema["properties"].items() if name in wanted}
    kind = schema.get("type")
    if kind == "array":
        return [example(schema.get("items", {}), schemas)]
    plain: dict[str, Any] = {"integer": schema.get("minimum", 1), "boolean": False, "object": {}}
    return plain.get(str(kind), "")


def fields(schema: dict[str, Any], schemas: dict[str, Any], prefix: str = "", depth: int = 0) -> Iterator[Row]:
    """Each field of an object with its type, those of objects inside it by their path."""
    schema = _resolve(schema, schemas)
    required = set(schema.get("required", ()))
    for name, part in schema.get("properties", {}).items():
        inner = _resolve(part, schemas)
        said = ("required" if name in required and depth == 0 else "", inner.get("description", ""))
        yield f"{prefix}{name}", kind_of(inner), ": ".join(filter(None, said))
        if depth < 3:
            if inner.get("properties"):
                yield from fields(inner, schemas, f"{prefix}{name}.", depth + 1)
            elif inner.get("type") == "array":
                yield from fields(inner.get("items", {}), schemas, f"{prefix}{name}[].", depth + 1)


def _resolve(schema: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    while True:
        if "$ref" in schema:
            schema = schemas.get(schema["$ref"].rpartition("/")[2], {})
            continue
        options = [option for option in schema.get("oneOf", schema.get("anyOf", ())) if option.get("type") != "null"]
        if len(options) != 1:
            return schema
        schema = options[0]


def kind_of(schema: dict[str, Any]) -> str:
    """What may stand in a field."""
    if "enum" in schema:
        return " | ".join(str(word) for word in schema["enum"])
    if "const" in schema:
        return str(schema["const"])
    if "anyOf" in schema:
        options: list[dict[str, Any]] = schema["anyOf"]
        return " or ".join(dict.fromkeys(filter(None, [kind_of(option) for option in options])))
    kind: str | list[str] = schema.get("type", "")
    kinds = [kind] if isinstance(kind, str) else [one for one in kind if one != "null"]
    form = schema.get("format")
    return " or ".join(kinds) + (f" ({form})" if form else "")


def _needed(parameter: dict[str, Any]) -> str:
    needed = "required" if parameter.get("required") and parameter["in"] != "path" else ""
    return ": ".join(filter(None, (needed, parameter.get("description", ""))))
