"""Protects refusals: the error of each parameter and field of the document names it and what is allowed."""

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest

from mpesa_gateway.errors import InvalidFields
from mpesa_gateway.http.validation import read_body
from mpesa_gateway.testing.serving import Api, running_gateway, shop
from mpesa_gateway_payments.schemas import CreatePayment
from tests.asgi import RAW_TEXT
from tests.routes import document, installed

SIMULATED = ("/simulator/", "/v1/cb/", "/v1/webhooks/mpesa")
"""Paths whose bodies and errors are Safaricom's."""

SORTS: dict[str, Any] = {
    "text": "no such value",
    "a number": 7.5,
    "a list": [["no such value"]],
    "an object": {"no such name": {"no": "value"}},
    "true": True,
}
"""Values of every sort of JSON, as messages name them."""


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema without references and without its null."""
    while "$ref" in schema:
        schema = document()["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    for several in ("oneOf", "anyOf", "allOf"):
        parts = [part for part in schema.get(several, ()) if part.get("type") != "null"]
        if len(parts) == 1:
            return resolved(parts[0])
    return schema


def query_parameters() -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Yield method, path, name and schema of each query parameter."""
    for path, methods in document()["paths"].items():
        for method, operation in methods.items():
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "query" and not path.startswith(SIMULATED):
                    yield method.upper(), path, parameter["name"], resolved(parameter["schema"])


def bodies() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield method, path and schema of each JSON body."""
    for path, methods in document()["paths"].items():
        for method, operation in methods.items():
            content = operation.get("requestBody", {}).get("content", {})
            if "application/json" in content and not path.startswith(SIMULATED):
                yield method.upper(), path, resolved(content["application/json"]["schema"])


def invalid_texts(schema: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return invalid values of a parameter, with texts that the message must contain."""
    if "enum" in schema:
        allowed = tuple(str(word) for word in schema["enum"] if word is not None)
        return {"no_such": (*allowed, "no_such"), allowed[0].upper() + "x": allowed, "null": allowed}
    kind, text = schema.get("type"), json.dumps(schema)
    found: dict[str, tuple[str, ...]] = {}
    if kind == "integer" and "maximum" in schema:
        least, most = str(schema["minimum"]), str(schema["maximum"])
        outside = (str(schema["minimum"] - 1), str(schema["maximum"] + 1), "1000", "ten", "1.5", "9" * 400)
        found = dict.fromkeys(outside, (least, most))
    elif kind == "integer":
        found = dict.fromkeys(("ten", "1.5"), ("a whole number",))
    elif kind == "boolean":
        found = dict.fromkeys(("perhaps", "7"), ("true or false",))
    elif schema.get("format") == "date-time":
        found = dict.fromkeys(("yesterday", "2026-13-01", "1700000000"), ("2026-11-23T10:15:00Z",))
    elif "pattern" in schema and "2547" in text:
        found = dict.fromkeys(("12", "+44 20 7946 0000"), ("254",))
    return found


async def problems(api: Api, method: str, path: str, body: Any = None, key: str = "k") -> dict[str, str]:
    answer = await api.call(method, path, body, headers={"Idempotency-Key": key})
    assert answer.status == 422, (method, path, body, answer)
    found = {one.get("field", ""): one["message"] for one in answer.body["errors"]}
    for message in found.values():
        assert not RAW_TEXT.search(message), (method, path, body, message)
    return found


def placed(path: str) -> str:
    return "/".join("x" if part.startswith("{") else part for part in path.split("/"))


@pytest.fixture
def all_plugins(values: dict[str, Any]) -> dict[str, Any]:
    return values | {
        "plugins": installed(),
        "worker": {"in_process": False},
        "limits": {"requests_per_second": 100_000, "burst": 1_000_000},
        "metrics": {"networks": ["127.0.0.0/8"]},
    }


async def test_every_invalid_query_value_is_named_with_what_is_allowed(all_plugins: dict[str, Any]) -> None:
    walked = 0
    async with (
        running_gateway(all_plugins) as (gateway, base),
        shop(gateway, base, scopes=gateway.scopes.all, is_configured=False) as api,
    ):
        for method, path, name, schema in query_parameters():
            for text, wanted in invalid_texts(schema).items():
                found = await problems(api, method, f"{placed(path)}?{name}={text}")
                assert name in found, (path, name, text, found)
                missing = [word for word in wanted if word not in found[name]]
                assert not missing, (path, name, text, found[name])
                walked += 1
    assert walked > 100


async def test_every_invalid_body_value_is_named_with_what_is_allowed(all_plugins: dict[str, Any]) -> None:
    walked, keys = 0, itertools.count()
    async with (
        running_gateway(all_plugins) as (gateway, base),
        shop(gateway, base, scopes=gateway.scopes.all, is_configured=False) as api,
    ):
        for method, path, schema in bodies():
            for where, part in fields_of(schema):
                for sort, value in SORTS.items():
                    if fits(part, value):
                        continue
                    body = put({}, where, value)
                    found = await problems(api, method, placed(path), body, f"k{next(keys)}")
                    name = ".".join(where)
                    named = [field for field in found if field == name or field.startswith((f"{name}.", f"{name}["))]
                    assert named, (path, where, sort, found)
                    for word in part.get("enum", ()) if sort == "text" else ():
                        assert word is None or word in found[name], (path, where, found[name])
                    walked += 1
    assert walked > 100


def fields_of(schema: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Yield the path and schema of each field, with nested ones."""
    for name, part in resolved(schema).get("properties", {}).items():
        inner = resolved(part)
        yield (*path, name), inner
        if "properties" in inner:
            yield from fields_of(inner, (*path, name))


def put(body: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    name, *rest = path
    return body | {name: put({}, tuple(rest), value) if rest else value}


def fits(schema: dict[str, Any], value: Any) -> bool:
    """Return True if the value's JSON type is allowed; enumerations allow no other text."""
    if "enum" in schema:
        return value in schema["enum"]
    kinds: set[type] = set()
    names = {"string": str, "number": float, "integer": int, "boolean": bool, "object": dict, "array": list}
    for part in (schema, *schema.get("anyOf", ()), *schema.get("oneOf", ())):
        listed = part.get("type", [])
        kinds |= {names[kind] for kind in ([listed] if isinstance(listed, str) else listed) if kind in names}
    return not kinds or (type(value) in kinds and type(value) in {str, dict, bool})


@pytest.mark.parametrize(
    ("amount", "said"),
    [
        (0, "between 1 and 250000"),
        (-5, "between 1 and 250000"),
        ("-5", "between 1 and 250000"),
        (-5.5, "between 1 and 250000"),
        (10**15, "between 1 and 250000"),
        (250_001, "between 1 and 250000"),
        (0.5, "without cents"),
        ("five", "a whole number of KES"),
        (True, "a whole number of KES"),
    ],
)
def test_payment_amount_outside_the_bounds_is_explained_alike(amount: Any, said: str) -> None:
    assert said in create_problems(amount=amount)["amount"]


def create_problems(**changes: Any) -> dict[str, str]:
    body = {"amount": 500, "phone": "254711000001"} | changes
    with pytest.raises(InvalidFields) as refused:
        read_body(json.dumps(body).encode(), CreatePayment)
    return {problem.field or "": problem.message for problem in refused.value.problems}


@pytest.mark.parametrize(
    ("pairs", "field", "said"),
    [
        ({"a": 1}, "metadata.a", "must be text, not a number"),
        ({"a": "x", "b": None}, "metadata.b", "must be text, not null"),
        ({"a": "x" * 501}, "metadata.a", "at most 500 characters"),
        ({"a": "\x00"}, "metadata.a", "must not contain NUL"),
        ({"": "x"}, "metadata", "1 to 40 characters"),
        ({"x" * 41: "x"}, "metadata", "1 to 40 characters"),
        (["a"], "metadata", "must be an object, not a list"),
    ],
)
def test_payment_metadata_names_the_invalid_pair(pairs: Any, field: str, said: str) -> None:
    found = create_problems(metadata=pairs)
    assert list(found) == [field]
    assert said in found[field]
